#!/bin/sh
# Writes deploy/requirements-{cpu,cuda,build}.txt: every package of the images (the node and its extra ray) at its
# version of constraints.txt, with the SHA-256 of what the indexes serve. pip refuses anything else when an image is built.
#
#   deploy/lock.sh                           needs uv (pip install uv), PyPI and TORCH_LINKS
#
#   requirements-cuda.txt    all from PyPI: torch there brings NVIDIA's libraries as packages, the host only needs a driver
#   requirements-cpu.txt     without those: torch is the CPU build of PyTorch's own index (TORCH_LINKS, a page or a folder)
#   requirements-build.txt   what makes the wheel
set -eu
cd "$(dirname "$0")/.."
torch_links=${TORCH_LINKS:-https://download.pytorch.org/whl/cpu/torch/}
torch=$(grep '^torch==' constraints.txt)
pinned=$(mktemp)
cpu=$(mktemp)
trap 'rm -f "$pinned" "$cpu"' EXIT
grep -v '^torch==' constraints.txt >"$pinned"
echo "$torch+cpu" >"$cpu"

lock() {
    to=$1
    shift
    uv pip compile --quiet --no-config --no-header --no-annotate --generate-hashes --default-index https://pypi.org/simple \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 --output-file "deploy/$to" "$@" >/dev/null
}

echo hatchling | lock requirements-build.txt -
lock requirements-cuda.txt --extra ray --constraint constraints.txt pyproject.toml
lock requirements-cpu.txt --extra ray --constraint "$pinned" --override "$cpu" --find-links "$torch_links" pyproject.toml
