"""The errors of the node, as one tree.

    NodeError
    ├── ConfigError            node.toml cannot be used as written
    ├── NotFound               no object has that name, number or UID
    ├── NotAllowed             the object exists, but its state forbids the request
    ├── InputRefused           an input cannot be processed correctly; the message is for a person to read
    ├── GeometryError          the geometry of images is missing, contradicts itself or is not supported
    ├── NotMarked              a result lacks a mark that says it is synthetic
    ├── LoginRefused           the provider of log-ins does not vouch for a person, or the person has no role here
    ├── ProviderUnreachable    the provider of log-ins does not answer, or not as OpenID Connect says
    ├── NotSent                a notification was not taken; ``reached`` says whether its receiver answered
    ├── NodeBusy               the node is at its limits; the same request may succeed soon
    ├── WorkitemRefused        a request on the worklist is refused; ``status`` says how
    ├── StorageDamaged         a file differs from its row
    ├── RefusedObject          an instance is not accepted; ``dicom_status`` says how
    │   ├── OutOfSpace             0xA700  the disk is nearly full
    │   ├── OverRate               0xA700  more per minute than the sender may send
    │   ├── TooLarge               0x0124  larger than the sender may send
    │   ├── MismatchedClass        0xA900  the data set is not of the SOP class that was announced
    │   ├── CannotUnderstand       0xC000  the data set cannot be parsed
    │   └── DuplicateConflict      0xC111  same SOP Instance UID as before, other content
    ├── IdentifierRefused      0xA900  a query or retrieval lacks a key that its level demands
    └── PeerError              another application entity
        ├── PeerUnreachable        no association or no answer
        └── PeerRefused            the peer answered with a refusal
            └── NotOffered             the peer does not offer the SOP class

``dicom_status`` answers the request when the error reaches the wire (PS3.4 B.2.3, C.4); ``retry`` says whether the same
work may succeed later. Messages name the fault and its place, never a patient.
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
    "LoginRefused",
    "MismatchedClass",
    "NodeBusy",
    "NodeError",
    "NotAllowed",
    "NotFound",
    "NotMarked",
    "NotOffered",
    "NotSent",
    "OutOfSpace",
    "OverRate",
    "PeerError",
    "PeerRefused",
    "PeerUnreachable",
    "ProviderUnreachable",
    "RefusedObject",
    "StorageDamaged",
    "TooLarge",
    "WorkitemRefused",
]


class NodeError(Exception):
    """An error that the node foresees; its message is for the user."""

    dicom_status: ClassVar[int] = 0x0110  # PS3.7 C.4.2: processing failure
    retry: ClassVar[bool] = False


class ConfigError(NodeError):
    """node.toml cannot be used as written."""


class NotFound(NodeError):
    """No object has that name, number or UID."""


class NotAllowed(NodeError):
    """The object exists, but its state forbids the request."""


class LoginRefused(NodeError):
    """The provider of log-ins does not vouch for a person, or the person has no role here."""


class ProviderUnreachable(NodeError):
    """The provider of log-ins does not answer, or not as OpenID Connect says."""

    retry: ClassVar[bool] = True


class InputRefused(NodeError):
    """An input cannot be processed correctly."""


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
    """The node is at its limits."""

    retry: ClassVar[bool] = True


class WorkitemRefused(NodeError):
    """A request on the worklist is refused with a status of PS3.4 CC.2 or PS3.7 C."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StorageDamaged(NodeError):
    """A file differs from its row."""


class RefusedObject(NodeError):
    """An instance is not accepted."""

    dicom_status: ClassVar[int] = 0xC000


class OutOfSpace(RefusedObject):
    """The disk is nearly full."""

    dicom_status: ClassVar[int] = 0xA700
    retry: ClassVar[bool] = True


class OverRate(RefusedObject):
    """The sender sends more per minute than it may."""

    dicom_status: ClassVar[int] = 0xA700
    retry: ClassVar[bool] = True


class TooLarge(RefusedObject):
    """The object is larger than its sender may send."""

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
    """The peer answered with a refusal."""


class NotOffered(PeerRefused):
    """The peer does not offer the SOP class."""
