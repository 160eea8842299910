#!/bin/sh
# Secrets of deploy/compose.yaml, drawn by the kernel, as files in deploy/secrets; those that are there stay.
#
#   deploy/new-secrets.sh
#
# Compose mounts each into its container as it is, read by the container's own user: so the files are readable and the
# folder is its owner's only.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 0700 secrets
echo '*' >secrets/.gitignore

drawn() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

keep() {
    [ -s "secrets/$1" ] || printf '%s\n' "$2" >"secrets/$1"
    chmod 0644 "secrets/$1"
}

keep database_password "$(drawn)"
keep web_token "$(drawn)"
keep grafana_password "$(drawn)"
keep orthanc_users.json "{\"RegisteredUsers\": {\"admin\": \"$(drawn)\"}}"
ls secrets
