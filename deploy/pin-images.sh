#!/bin/sh
# The digest of every image in images.env behind its tag, as the registry says today. Run it again to move on.
#
#   deploy/pin-images.sh                     needs docker with buildx; INSPECT= another program that prints a digest
set -eu
cd "$(dirname "$0")"
inspect() {
    docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1"
}
pinned=$(mktemp)
trap 'rm -f "$pinned"' EXIT
while IFS= read -r line; do
    case $line in
        [A-Z]*_IMAGE=*)
            image=${line#*=}
            image=${image%@*}
            digest=$(${INSPECT:-inspect} "$image")
            case $digest in
                sha256:????????????????????????????????????????????????????????????????) ;;
                *) echo "$image: no digest but: $digest" >&2; exit 1 ;;
            esac
            echo "${line%%=*}=$image@$digest"
            ;;
        *) echo "$line" ;;
    esac
done <images.env >"$pinned"
cat "$pinned" >images.env
