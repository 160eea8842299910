"""``python -m tests.fuzz.guided TARGET SECONDS``: try one target with atheris, which follows the branches that are run.

atheris is no dependency of the tests: ``pip install '.[fuzz]'``.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris
from hypothesis import given, seed, settings

from tests.fuzz import oracle, targets
from tests.fuzz.child import QUIET
from tests.fuzz.targets import Target

__all__ = ["main"]

_SEEDS = 100
_MORE_MB = 2048
_PACKAGES = ["dicomnode", "model_zoo", "pipelines", "python_multipart"]


def main() -> None:
    """Run until the time is over; an input that is a finding lies in build/fuzz as the other engine leaves it."""
    name, seconds = sys.argv[1:]
    with atheris.instrument_imports(include=_PACKAGES):
        target = targets.load(name)
    found = Path("build/fuzz/guided") / name
    found.mkdir(parents=True, exist_ok=True)
    _write_seeds(target, found)
    oracle.limit_memory(_MORE_MB)
    options = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix=build/fuzz/{name}-",
        "-max_len=65536",
        "-rss_limit_mb=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(found)], lambda data: oracle.check(target, data))
    atheris.Fuzz()


def _write_seeds(target: Target, folder: Path) -> None:
    """Write the kept inputs and some of the other engine's, from which this one goes on."""
    seeds = [path.read_bytes() for path in targets.read_corpus(target.name)]

    @seed(1)
    @settings(QUIET, max_examples=_SEEDS)
    @given(target.examples)
    def collect(data: bytes) -> None:
        seeds.append(data)

    collect()
    for content in seeds:
        (folder / hashlib.sha256(content).hexdigest()).write_bytes(content)


if __name__ == "__main__":
    main()
