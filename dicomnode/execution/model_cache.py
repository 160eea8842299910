"""Models that stay loaded between the jobs of one worker, as long as their files are those that were verified."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts, Model

__all__ = ["Stamp", "Warm", "stamp"]

Stamp = tuple[tuple[str, int, int, int], ...]
_Key = tuple[str, str, str]


class Warm:
    """The last ``size`` models by their use. A file that changed in whatever way makes its bundle be verified again."""

    def __init__(self, size: int, load: Callable[..., Model] | None = None) -> None:
        self._size, self._load = size, load
        self._held: OrderedDict[_Key, tuple[Stamp, Model]] = OrderedDict()

    def __call__(self, facts: BundleFacts, *, device: str) -> Model:
        """As ``registry.load_from``."""
        key, found = (str(facts.path), facts.digest, device), stamp(facts)
        held = self._held.pop(key, None)
        if held is None or held[0] != found:
            del held  # before the next one is loaded: a GPU may not hold both
            while len(self._held) >= max(1, self._size):
                self._held.popitem(last=False)
            held = found, self._fresh(facts, device)
        if self._size:
            self._held[key] = held
        return held[1]

    def _fresh(self, facts: BundleFacts, device: str) -> Model:
        from model_zoo import registry

        return (self._load or registry.load_from)(facts, device=device)


def stamp(facts: BundleFacts) -> Stamp:
    """Of each file of the bundle its name, size, time of change and place on the disk."""
    found = []
    for path in sorted(path for path in facts.path.rglob("*") if path.is_file()):
        status = path.stat()
        found.append((str(path), status.st_size, status.st_ctime_ns, status.st_ino))
    return tuple(found)
