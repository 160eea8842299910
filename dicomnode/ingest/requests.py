"""Normalisation of association requests and aborts (PS3.8 9.3.2, 9.3.8, annex D) before pynetdicom decodes them.

Missing or malformed items are corrected where only one reading is possible; otherwise the request is refused with a
reason of table 9-21. Items that no acceptor needs (user identity, common extended negotiation) are left out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Refusal", "UnreadableError", "normalise_abort", "normalise_request"]

_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_NO_SUCH_ABSTRACT_SYNTAX = _APPLICATION_CONTEXT  # no service has it: the context gets result 3 of table 9-18
_NO_SUCH_TRANSFER_SYNTAX = _APPLICATION_CONTEXT  # no data set has it: result 4
_UNNAMED_IMPLEMENTATION = "2.25.0"
_COMMON_PDU = 16384
"""Maximum length for a peer that states none: every implementation takes as much."""
_SHORTEST_PDU = 16
_MOST_SYNTAXES = 200
_LONGEST_INFORMATION = 256
_LONGEST_VERSION_NAME = 16
_FIXED_FIELDS = struct.Struct(">HH16s16s32s")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_TITLE = re.compile(r"[ -\[\]-~]{1,16}")  # PS3.5 6.2, AE: no control characters, no backslash
_PLACEHOLDER = "UNNAMED"

# PS3.8 table 9-21: result, source, reason
_NO_REASON = (1, 1, 1)
_APPLICATION_CONTEXT_NOT_SUPPORTED = (1, 1, 2)
_CALLING_AE_TITLE_NOT_RECOGNISED = (1, 1, 3)
_PROTOCOL_VERSION_NOT_SUPPORTED = (1, 2, 2)

_CONTEXT, _ABSTRACT, _TRANSFER, _USER = 0x20, 0x30, 0x40, 0x50
_MAXIMUM_LENGTH, _CLASS_UID, _WINDOW, _ROLE, _VERSION_NAME, _EXTENDED = 0x51, 0x52, 0x53, 0x54, 0x55, 0x56
_ABORT_BY_USER, _BY_PROVIDER = bytes(4), b"\2"
_ABORT_REASONS = (b"\0", b"\1", b"\2", b"\4", b"\5", b"\6")
_ROLES = (b"\0\1", b"\1\0", b"\1\1")


@dataclass(frozen=True)
class Refusal:
    """Result, source and reason of an A-ASSOCIATE-RJ, with an explanation for the log."""

    codes: tuple[int, int, int]
    explanation: str


class UnreadableError(Exception):
    """The bytes are no A-ASSOCIATE-RQ; the message says at which item."""


def normalise_request(body: bytes, own_title: str) -> tuple[bytes, Refusal | None]:
    """Return an A-ASSOCIATE-RQ PDU that pynetdicom decodes, and the refusal to answer with, if any.

    ``body``: the received PDU without its header of six bytes.

    Raises UnreadableError where the items of the request cannot be separated.
    """
    if len(body) < _FIXED_FIELDS.size:
        raise UnreadableError("an association request shorter than its fixed fields")
    version, _, called, calling, _ = _FIXED_FIELDS.unpack_from(body)
    items = list(_split_items(body[_FIXED_FIELDS.size :]))
    contexts = [_Context.decode(value) for kind, value in items if kind == _CONTEXT]
    user = [item for kind, value in items if kind == _USER for item in _split_items(value)]
    names = [_decode_text(value) for kind, value in items if kind == 0x10]
    refusal = _find_refusal(version, _decode_text(calling), names, contexts, user)
    usable = {context.id: context for context in contexts if context.id % 2}
    parts = [
        _FIXED_FIELDS.pack(1, 0, _encode_ae_title(called, own_title), _encode_ae_title(calling, _PLACEHOLDER), b""),
        _encode_item(0x10, _APPLICATION_CONTEXT.encode()),
        *(context.encode() for context in usable.values()),
        _encode_item(_USER, b"".join(_encode_user_items(user, {context.abstract for context in usable.values()}))),
    ]
    content = b"".join(parts)
    return struct.pack(">BBL", 1, 0, len(content)) + content, refusal


def normalise_abort(body: bytes) -> bytes:
    """Return the body of an A-ABORT PDU with a source and reason of PS3.8 table 9-26; others have no meaning."""
    is_by_provider = len(body) == len(_ABORT_BY_USER) and body[2:3] == _BY_PROVIDER and body[3:] in _ABORT_REASONS
    return body if is_by_provider else _ABORT_BY_USER


@dataclass(frozen=True)
class _Context:
    """A proposed presentation context."""

    id: int
    abstract: str
    transfer: tuple[str, ...]

    @classmethod
    def decode(cls, value: bytes) -> _Context:
        """Return a context; a missing or ambiguous abstract or transfer syntax becomes a UID that nothing supports."""
        if len(value) < 4:
            raise UnreadableError("an association request with a presentation context of no length")
        items = list(_split_items(value[4:]))
        abstract = {uid for kind, each in items if kind == _ABSTRACT and (uid := _parse_uid(each))}
        transfer = dict.fromkeys(uid for kind, each in items if kind == _TRANSFER and (uid := _parse_uid(each)))
        sop_class = abstract.pop() if len(abstract) == 1 else _NO_SUCH_ABSTRACT_SYNTAX
        return cls(value[0], sop_class, tuple(transfer)[:_MOST_SYNTAXES] or (_NO_SUCH_TRANSFER_SYNTAX,))

    def encode(self) -> bytes:
        """Return the context as an item of the request."""
        syntaxes = b"".join(_encode_item(_TRANSFER, uid.encode()) for uid in self.transfer)
        return _encode_item(
            _CONTEXT, bytes((self.id, 0, 0, 0)) + _encode_item(_ABSTRACT, self.abstract.encode()) + syntaxes
        )


def _find_refusal(
    version: int, calling: str, names: list[str], contexts: list[_Context], user: list[tuple[int, bytes]]
) -> Refusal | None:
    if not version & 1:
        return Refusal(_PROTOCOL_VERSION_NOT_SUPPORTED, "it is not of version 1 of the protocol")
    if set(names) != {_APPLICATION_CONTEXT}:
        return Refusal(_APPLICATION_CONTEXT_NOT_SUPPORTED, "it does not name the application context of DICOM")
    if not _TITLE.fullmatch(calling):
        return Refusal(_CALLING_AE_TITLE_NOT_RECOGNISED, "the calling AE title is blank or not in ASCII")
    ids = [context.id for context in contexts]
    if not ids:
        return Refusal(_NO_REASON, "it proposes no presentation context")
    if len(set(ids)) < len(ids) or any(number % 2 == 0 for number in ids):
        return Refusal(_NO_REASON, "a presentation context ID is even, or stands twice")
    if 0 < _find_maximum_length(user) < _SHORTEST_PDU:
        return Refusal(_NO_REASON, f"the peer takes less than {_SHORTEST_PDU} bytes in a PDU")
    return None


def _encode_user_items(items: list[tuple[int, bytes]], proposed: set[str]) -> Iterator[bytes]:
    """Yield the items of annex D that pynetdicom negotiates, each once, the mandatory ones always."""
    first = dict(reversed(items))
    yield _encode_item(_MAXIMUM_LENGTH, struct.pack(">L", _find_maximum_length(items)))
    yield _encode_item(_CLASS_UID, (_parse_uid(first.get(_CLASS_UID, b"")) or _UNNAMED_IMPLEMENTATION).encode())
    window = first.get(_WINDOW, b"")
    if len(window) == 4:
        yield _encode_item(_WINDOW, window)
    roles = _group_by_class(items, _ROLE, proposed)
    yield from (
        _encode_item(_ROLE, _prefix_length(uid) + rest[:2]) for uid, rest in roles.items() if rest[:2] in _ROLES
    )
    version = _decode_text(first.get(_VERSION_NAME, b""))[:_LONGEST_VERSION_NAME].strip()
    if _TITLE.fullmatch(version):
        yield _encode_item(_VERSION_NAME, version.encode())
    extended = _group_by_class(items, _EXTENDED, proposed)
    yield from (_encode_item(_EXTENDED, _prefix_length(uid) + rest) for uid, rest in extended.items())


def _group_by_class(items: Iterable[tuple[int, bytes]], item_type: int, proposed: set[str]) -> dict[str, bytes]:
    """Return the content of the sub-items of a type for each proposed SOP class (PS3.7 D.3.3.4, D.3.3.5)."""
    contents: dict[str, bytes] = {}
    for kind, value in items:
        if kind == item_type and len(value) >= 2:
            end = 2 + int.from_bytes(value[:2], "big")
            if (uid := _parse_uid(value[2:end])) in proposed:
                contents.setdefault(uid, value[end : end + _LONGEST_INFORMATION])
    return contents


def _find_maximum_length(items: Iterable[tuple[int, bytes]]) -> int:
    lengths = [value for kind, value in items if kind == _MAXIMUM_LENGTH and len(value) == 4]
    return int.from_bytes(lengths[0], "big") if lengths else _COMMON_PDU


def _split_items(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each item; zeros that pad the end are skipped."""
    at = 0
    while len(content) - at >= 4 or any(content[at:]):
        if len(content) - at < 4:
            raise UnreadableError("an association request that ends inside an item")
        kind, _, length = struct.unpack_from(">BBH", content, at)
        at += 4 + length
        if at > len(content):
            raise UnreadableError(f"an association request with an item of type {kind:02X}H that is too long")
        yield kind, content[at - length : at]


def _encode_ae_title(value: bytes, default: str) -> bytes:
    text = _decode_text(value)
    return (text if _TITLE.fullmatch(text) else default).encode().ljust(16)


def _parse_uid(value: bytes) -> str:
    """Return the UID, or an empty string where the value is none."""
    text = _decode_text(value)
    return text if len(text) <= 64 and _UID.fullmatch(text) else ""


def _decode_text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")


def _encode_item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _prefix_length(uid: str) -> bytes:
    return struct.pack(">H", len(uid)) + uid.encode()
