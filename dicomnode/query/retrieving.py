"""Sub-operations of C-GET and C-MOVE: stored instances sent over an association, one at a time.

A result passes the gate before it is sent. An instance whose transfer syntax the receiver does not accept is
decompressed where pydicom can; an instance that cannot be sent counts as failed and is listed in the last response.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context

from db.catalogue import StoredObject
from dicomnode.datasets.encoding import check_inflated_size
from dicomnode.delivery import gate
from dicomnode.errors import NodeError
from dicomnode.storage import spool
from dicomnode.transcoding import pixels
from dicomnode.transcoding.convert import convert_to_explicit_little_endian

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

__all__ = ["Tally", "make_batches", "make_contexts", "send"]

_log = logging.getLogger(__name__)
_MOST_DECOMPRESSED = 256 << 20
_MAX_CONTEXTS = 128  # PS3.8 9.3.2.2
_MOST_LISTED_FAILURES = 1000  # a value of VR UI has no room for more than about so many UIDs (PS3.5 7.1.2)


@dataclass
class Tally:
    """Counts of sub-operations for the responses (PS3.4 C.4.2.1.6)."""

    remaining: int
    completed: int = 0
    warned: int = 0
    failed: int = 0
    failed_uids: list[str] = field(default_factory=list)

    def add(self, stored: StoredObject, status: int | None) -> None:
        """Count one sub-operation by its status; None: the instance was not sent or not answered."""
        self.remaining -= 1
        if status == 0x0000:
            self.completed += 1
        elif status is not None and status >> 12 == 0xB:  # PS3.4 B.2.3: stored, with a warning
            self.warned += 1
        else:
            self.failed += 1
            self.failed_uids.append(stored.sop_instance_uid)

    @property
    def status(self) -> int:
        """Status of the last response (PS3.4 C.4.2.1.5, C.4.3.1.4)."""
        if not (self.failed or self.warned):
            return 0x0000
        return 0xB000 if self.completed or self.warned else 0xA702

    @property
    def failures(self) -> Dataset | None:
        """Identifier of the last response; None without failures."""
        if not self.failed_uids:
            return None
        ds = Dataset()
        ds.FailedSOPInstanceUIDList = self.failed_uids[:_MOST_LISTED_FAILURES]
        return ds


def make_batches(objects: Sequence[StoredObject]) -> Iterator[list[StoredObject]]:
    """Yield batches of objects in their order, each with few enough contexts for one association."""
    batch: list[StoredObject] = []
    offered: set[tuple[str, str]] = set()
    for stored in objects:
        together = offered | set(_context_pairs(stored))
        if len(together) > _MAX_CONTEXTS:
            yield batch
            batch, together = [], set(_context_pairs(stored))
        batch.append(stored)
        offered = together
    if batch:
        yield batch


def make_contexts(objects: Sequence[StoredObject]) -> list[PresentationContext]:
    """Return the contexts to propose: one for each pair of class and syntax, so that the receiver answers for each."""
    return [
        build_context(*pair) for pair in dict.fromkeys(pair for stored in objects for pair in _context_pairs(stored))
    ]


def send(
    assoc: Association,
    root: Path,
    stored: StoredObject,
    *,
    number: int,
    move_originator: tuple[str, int] | None = None,
) -> int | None:
    """Send an instance by C-STORE; return the status, or None where it was not sent or not answered.

    The node is the SCU, also on an association that the peer opened (role selection).
    """
    path = spool.path(root, stored.sha256)
    try:
        if stored.is_result:
            gate.check_outgoing_result(path, stored.sha256)
        content = path if _accepts(assoc, stored, stored.transfer_syntax_uid) else _decompress(assoc, stored, path)
        originator_aet, originator_id = move_originator or (None, None)
        answer = assoc.send_c_store(
            content, msg_id=number % 65535 + 1, originator_aet=originator_aet, originator_id=originator_id
        )
    except NodeError as exc:
        _log.error("an instance was not sent: %s", exc)
        return None
    except Exception as exc:  # whatever a broken file makes a decoder raise: the other instances are still sent
        _log.warning("an instance was not sent: %s", type(exc).__name__)
        return None
    return int(answer.Status) if "Status" in answer else None


def _context_pairs(stored: StoredObject) -> tuple[tuple[str, str], ...]:
    syntaxes = (stored.transfer_syntax_uid, str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
    return tuple(dict.fromkeys((stored.sop_class_uid, syntax) for syntax in syntaxes))


def _accepts(assoc: Association, stored: StoredObject, syntax: str) -> bool:
    return any(
        cx.abstract_syntax == stored.sop_class_uid and cx.transfer_syntax[0] == syntax and cx.as_scu
        for cx in assoc.accepted_contexts
    )


def _decompress(assoc: Association, stored: StoredObject, path: Path) -> Any:
    """Return the data set in an uncompressed transfer syntax.

    Raises ValueError, NodeError and whatever pydicom does.
    """
    if not any(_accepts(assoc, stored, str(uid)) for uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)):
        raise ValueError("the receiver takes no transfer syntax that this can be sent in")
    if not UID(stored.transfer_syntax_uid).is_encapsulated:
        check_inflated_size(path)
        return dcmread(path)
    layout = pixels.read_layout(path)
    if layout is not None and layout.frames * layout.frame_bits > 8 * _MOST_DECOMPRESSED:
        raise ValueError("decompressed, the instance is larger than the node sends")
    return dcmread(io.BytesIO(b"".join(convert_to_explicit_little_endian(path))))
