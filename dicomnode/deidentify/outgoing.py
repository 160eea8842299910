"""Copies on the way to a destination with a profile, and the last check that only such copies go there."""

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

__all__ = ["is_deidentified_copy", "outgoing_copies"]

_TAGS_READ = ["PatientIdentityRemoved", "DeidentificationMethod"]


@contextmanager
def outgoing_copies(peer: Peer, config: Config) -> Iterator[Callable[[Path], Path]]:
    """Yield a function from a file of the spool to the file that the peer gets: the same, or a de-identified copy.

    Copies last as long as this context. The same file gives the same copy, so a retry sends the same UIDs. The
    function raises InputRefused, ConfigError or NotMarked.
    """
    if not peer.deidentify:
        yield lambda path: path
        return
    from dicomnode.deidentify import copying
    from dicomnode.results import marking

    with tempfile.TemporaryDirectory(prefix="outgoing-", dir=config.data_dir) as folder:

        def copy(path: Path) -> Path:
            ds = copying.open_deidentifier(config, peer.deidentify).read(path)
            marking.check_marks(ds)
            target = Path(folder) / f"{ds.SOPInstanceUID}.dcm"
            ds.save_as(target, enforce_file_format=True)
            return target

        yield copy


def is_deidentified_copy(path: Path, profile_name: str) -> bool:
    """Return whether the file states that it was de-identified by that profile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS_READ))
    return method.is_deidentified_by(ds, profile_name)
