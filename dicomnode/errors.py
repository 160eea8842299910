"""What can go wrong, as one tree.

    NodeError
    ├── ConfigError            node.toml cannot be used as written
    ├── NotFound               nothing has that name, number or UID
    ├── NotAllowed             the thing exists, but its state forbids what was asked
    ├── InputRefused           an input cannot be processed honestly; the message is for a person to read
    ├── GeometryError          the geometry of images is missing, contradicts itself or is not supported
    ├── NotMarked              a result lacks a mark that says it is synthetic
    ├── NotSent                a notification was not taken; ``reached`` says whether its receiver answered
    ├── NodeBusy               the node does as much as it may; the same may be asked again soon
    ├── StorageDamaged         a file differs from what its row says
    ├── RefusedObject          an instance is not accepted; ``dicom_status`` says how
    │   ├── OutOfSpace             0xA700  the disk is nearly full
    │   ├── OverRate               0xA700  more per minute than its sender may send
    │   ├── TooLarge               0x0124  larger than its sender may send
    │   ├── MismatchedClass        0xA900  the data set is not of the SOP class that was announced
    │   ├── CannotUnderstand       0xC000  the data set cannot be parsed
    │   └── DuplicateConflict      0xC111  same SOP Instance UID as before, other content
    ├── IdentifierRefused      0xA900  a query or retrieval lacks a key that its level demands
    └── PeerError              another application entity
        ├── PeerUnreachable        no association or no answer
        └── PeerRefused            it answered, and said no

``dicom_status`` is what a request is answered with when the error reaches the wire (PS3.4 B.2.3, C.4); ``retry`` says
whether the same work may succeed later. Messages say what and where, never who.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CannotUnderstand",
    "ConfigError",
    "DuplicateConflict",
    "GeometryError",
    "IdentifierRefused",
    "InputRefused",
    "MismatchedClass",
    "NodeBusy",
    "NodeError",
    "NotAllowed",
    "NotFound",
    "NotMarked",
    "NotSent",
    "OutOfSpace",
    "OverRate",
    "PeerError",
    "PeerRefused",
    "PeerUnreachable",
    "RefusedObject",
    "StorageDamaged",
    "TooLarge",
]


class NodeError(Exception):
    """Anything that this program says no with."""

    dicom_status: ClassVar[int] = 0x0110  # PS3.7 C.4.2: processing failure
    retry: ClassVar[bool] = False


class ConfigError(NodeError):
    """node.toml cannot be used as written."""


class NotFound(NodeError):
    """Nothing has that name, number or UID."""


class NotAllowed(NodeError):
    """The thing exists, but its state forbids what was asked."""


class InputRefused(NodeError):
    """An input cannot be processed honestly."""


class GeometryError(NodeError):
    """The geometry of images is missing, contradicts itself or is not supported."""


class NotMarked(NodeError):
    """A result lacks a mark that says it is synthetic."""


class NotSent(NodeError):
    """A notification was not taken by its receiver, which answered (``reached``) or did not."""

    retry: ClassVar[bool] = True

    def __init__(self, message: str, *, reached: bool) -> None:
        super().__init__(message)
        self.reached = reached


class NodeBusy(NodeError):
    """The node does as much as it may."""

    retry: ClassVar[bool] = True


class StorageDamaged(NodeError):
    """A file differs from what its row says."""


class RefusedObject(NodeError):
    """An instance is not accepted."""

    dicom_status: ClassVar[int] = 0xC000


class OutOfSpace(RefusedObject):
    """The disk is nearly full."""

    dicom_status: ClassVar[int] = 0xA700
    retry: ClassVar[bool] = True


class OverRate(RefusedObject):
    """More per minute than its sender may send."""

    dicom_status: ClassVar[int] = 0xA700
    retry: ClassVar[bool] = True


class TooLarge(RefusedObject):
    """Larger than its sender may send."""

    dicom_status: ClassVar[int] = 0x0124  # PS3.7 9.1.1.1.9: refused, not authorized


class MismatchedClass(RefusedObject):
    """The data set is not of the SOP class that was announced."""

    dicom_status: ClassVar[int] = 0xA900


class CannotUnderstand(RefusedObject):
    """The data set cannot be parsed."""

    dicom_status: ClassVar[int] = 0xC000


class DuplicateConflict(RefusedObject):
    """Same SOP Instance UID as before, other content."""

    dicom_status: ClassVar[int] = 0xC111


class IdentifierRefused(NodeError):
    """A query or retrieval lacks a key that its level demands."""

    dicom_status: ClassVar[int] = 0xA900  # PS3.4 C.4.1.1.4


class PeerError(NodeError):
    """Another application entity."""


class PeerUnreachable(PeerError):
    """No association or no answer."""

    retry: ClassVar[bool] = True


class PeerRefused(PeerError):
    """It answered, and said no."""
