#!/bin/sh
# A dated backup of a node that may run meanwhile; for cron or a systemd timer. Older ones than the newest KEEP go.
#
#   deploy/backup.sh NODE_TOML BACKUPS_FOLDER        KEEP=14 DICOMNODE=dicomnode
#
# On the spool's own disk files are linked, which costs no space and no time; copy the folder to another machine
# afterwards: rsync -aH --ignore-existing BACKUPS_FOLDER/ elsewhere:/backups/
set -eu
[ $# -eq 2 ] || { echo "usage: $0 NODE_TOML BACKUPS_FOLDER" >&2; exit 2; }
config=$1 folder=$2
umask 077
mkdir -p "$folder"
"${DICOMNODE:-dicomnode}" --config "$config" backup "$folder/$(date -u +%Y%m%dT%H%M%SZ)"
# whole ones only: what broke off is called .part
find "$folder" -mindepth 1 -maxdepth 1 -type d -name '[0-9]*T[0-9]*Z' | sort -r | tail -n "+$((${KEEP:-14} + 1))" |
while IFS= read -r old; do
    rm -rf -- "$old"
done
