"""The cache of models that stay loaded between the jobs of a worker while their files are unchanged."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts, Model

__all__ = ["Fingerprint", "ModelCache", "fingerprint"]

Fingerprint = tuple[tuple[str, int, int, int], ...]
_Key = tuple[str, str, str]


class ModelCache:
    """The ``size`` most recently used models. A bundle is verified and loaded again when any of its files changed."""

    def __init__(self, size: int, load: Callable[..., Model] | None = None) -> None:
        self._size, self._load = size, load
        self._entries: OrderedDict[_Key, tuple[Fingerprint, Model]] = OrderedDict()

    def __call__(self, facts: BundleFacts, *, device: str) -> Model:
        """Return the model of a bundle, like ``registry.load_from``."""
        key, current = (str(facts.path), facts.digest, device), fingerprint(facts)
        entry = self._entries.pop(key, None)
        if entry is None or entry[0] != current:
            del entry  # before the next one is loaded: a GPU may not hold both
            while len(self._entries) >= max(1, self._size):
                self._entries.popitem(last=False)
            entry = current, self._load_model(facts, device)
        if self._size:
            self._entries[key] = entry
        return entry[1]

    def _load_model(self, facts: BundleFacts, device: str) -> Model:
        from model_zoo import registry

        return (self._load or registry.load_from)(facts, device=device)


def fingerprint(facts: BundleFacts) -> Fingerprint:
    """Return path, size, time of change and inode of each file of a bundle."""
    files = []
    for path in sorted(path for path in facts.path.rglob("*") if path.is_file()):
        status = path.stat()
        files.append((str(path), status.st_size, status.st_ctime_ns, status.st_ino))
    return tuple(files)
