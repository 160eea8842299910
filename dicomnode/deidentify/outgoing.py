"""On the way to a destination: a copy where it has a profile, and a last look that nothing else goes there."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmread

from dicomnode.deidentify import method

if TYPE_CHECKING:
    from dicomnode.config import Config, Peer

__all__ = ["copies", "is_copy"]

_LOOKED_AT = ["PatientIdentityRemoved", "DeidentificationMethod"]


@contextmanager
def copies(peer: Peer, config: Config) -> Iterator[Callable[[Path], Path]]:
    """A function from what the node keeps to what the peer gets: the file itself, or a copy that lasts as long as this
    context. The same file gives the same copy, so a retry sends the same UIDs. It raises InputRefused, ConfigError or
    NotMarked."""
    if not peer.deidentify:
        yield lambda path: path
        return
    from dicomnode.deidentify import copying
    from dicomnode.results import marking

    with tempfile.TemporaryDirectory(prefix="outgoing-", dir=config.data_dir) as folder:

        def copied(path: Path) -> Path:
            ds = copying.opened(config, peer.deidentify).read(path)
            marking.check(ds)
            target = Path(folder) / f"{ds.SOPInstanceUID}.dcm"
            ds.save_as(target, enforce_file_format=True)
            return target

        yield copied


def is_copy(path: Path, profile_name: str) -> bool:
    """Whether the file says that it is a copy by that profile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(path, stop_before_pixels=True, specific_tags=list(_LOOKED_AT))
    return method.states(ds, profile_name)
