#!/bin/sh
# A backup into the empty data folder and empty database that NODE_TOML names, and the proof that all of it is there.
#
#   deploy/restore.sh NODE_TOML BACKUP               DICOMNODE=dicomnode
set -eu
[ $# -eq 2 ] || { echo "usage: $0 NODE_TOML BACKUP" >&2; exit 2; }
node="${DICOMNODE:-dicomnode} --config $1"
$node restore "$2"
$node storage verify
$node audit verify
echo "restored; start it with: $node serve"
