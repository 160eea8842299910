#!/bin/sh
# From nothing to a served study by the README alone: a fresh Debian, the packages that the README's apt-get line names,
# a clone, 'make demo' as an ordinary user, then the README's first study without any network.
#
#   deploy/fresh-debian.sh ROOT [COMMIT]      as root, with debootstrap, unshare and ip; ROOT is made, or used again
#
#   MIRROR=http://deb.debian.org/debian  SUITE=bookworm
#   BIND="FOLDER ..."    folders of this machine that are seen inside, read-only: packages for pip, say
#   CA=FILE              certificates to trust instead of Debian's own
# What begins with PIP_, npm_config_ or OMP_ in the environment goes along. It ends with 'served: ...', or with an error.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 ROOT [COMMIT]" >&2; exit 2; }
source=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
root=$(cd "$1" && pwd)
commit=$(git -C "$source" rev-parse --verify "${2:-HEAD}^{commit}")
began=$(date +%s)
network="env"

say() {
    echo "== $(($(date +%s) - began)) s: $*"
}

# What goes along of our environment, for sh to read.
kept() {
    env | sed -n "/^\(PIP_\|npm_config_\|OMP_\)/{s/'/'\\\\''/g; s/=\(.*\)/='\1'/; s/^/export /p}"
}

without_network() {
    unshare --net sh -c 'ip link set lo up; exec "$@"' - "$@"
}

inside() {
    who=$1
    shift
    { kept; echo "$*"; } >"$root/tmp/inside.sh"
    "$network" chroot "$root" /usr/bin/env -i HOME="/home/$who" LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/runuser -u "$who" -- sh -eu /tmp/inside.sh
}

leave() {
    grep -o " $root/[^ ]*" /proc/mounts | sort -r | while IFS= read -r mounted; do umount "${mounted# }" || umount -l "${mounted# }"; done
}
trap leave EXIT

say "a fresh Debian in $root"
[ -e "$root/etc/debian_version" ] || debootstrap --variant=minbase "${SUITE:-bookworm}" "$root" "${MIRROR:-http://deb.debian.org/debian}" >"$root.log"
for mounted in proc sys dev dev/shm; do
    mount --rbind "/$mounted" "$root/$mounted"
    mount --make-rslave "$root/$mounted"
done
for folder in ${BIND:-}; do
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
done
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"

packages=$(sed -n 's/^    \(sudo \)\{0,1\}apt-get install \([^#]*\).*$/\2/p' "$source/README.md")
say "the README's packages: $packages"
inside root "apt-get update -qq && apt-get install -y -qq $packages >/dev/null"
[ -z "${CA:-}" ] || cp "$CA" "$root/etc/ssl/certs/ca-certificates.crt"
inside root "id reader >/dev/null 2>&1 || useradd --create-home reader"

say "commit $commit"
rm -rf "$root/home/reader/dicomnode" "$root/tmp/dicomnode.git"
git clone --quiet --bare "$source" "$root/tmp/dicomnode.git"
chown -R --reference="$root/home/reader" "$root/tmp/dicomnode.git"
inside reader "cd && git clone --quiet /tmp/dicomnode.git dicomnode && cd dicomnode && git checkout --quiet --detach $commit"

say "make demo"
inside reader "cd ~/dicomnode && make demo"

say "the README's first study, without any network"
cat >"$root/home/reader/first-study.sh" <<'EOF'
set -eu
cd ~/dicomnode
. .venv/bin/activate
rm -rf ~/mynode
dicomnode init ~/mynode && cd ~/mynode
dicomnode check || echo "(that PACS is not here)"
dicomnode serve >serve.log 2>&1 &
node=$!
trap 'kill $node; wait $node || true' EXIT
until grep -q '^ready:' serve.log; do
    kill -0 $node || { cat serve.log; exit 1; }
    sleep 1
done
dicomnode kspace wrap "$(ls ~/dicomnode/out/demo/*/kspace.h5 | tail -n 1)" scan.dcm
dicomnode send scan.dcm --to 127.0.0.1:11112:DICOMNODE
until dicomnode jobs list --json | grep -q '"state": "done"'; do
    if dicomnode jobs list --json | grep -E '"state": "(dead|refused|held|cancelled)"'; then exit 1; fi
    kill -0 $node || { cat serve.log; exit 1; }
    sleep 5
done
dicomnode status
dicomnode jobs list
python - <<'EOP'
import json, urllib.request
def ask(path):
    return json.load(urllib.request.urlopen("http://127.0.0.1:8104/" + path))
(study,) = ask("dicom-web/studies")
uid = study["0020000D"]["Value"][0]
series = ask(f"dicom-web/studies/{uid}/series")
print("served: one study with", len(series), "series, made of:", *sorted(one["00080060"]["Value"][0] for one in series))
assert len(series) > 3
with urllib.request.urlopen("http://127.0.0.1:8104/readyz") as answer:
    print("ready:", answer.status, answer.read().decode())
EOP
EOF
network=without_network
inside reader 'sh -eu ~/first-study.sh'
say "done"
