"""The data sets of a storage commitment: information of an N-ACTION and of an N-EVENT-REPORT (PS3.4 J.3)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import dsutils

from db.commitments import Verdict
from dicomnode.errors import CannotUnderstand

__all__ = [
    "ALL_COMMITTED",
    "REQUEST_COMMITMENT",
    "SOME_FAILED",
    "SYNTAXES",
    "Call",
    "decode_call",
    "decode_report",
    "encode",
    "make_call",
    "make_report",
]

REQUEST_COMMITMENT = 1  # PS3.4 table J.3-1
ALL_COMMITTED, SOME_FAILED = 1, 2  # PS3.4 table J.3-2
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]

_PROCESSING_FAILURE = 0x0110
_MOST_INSTANCES = 50_000
_ITEM = b"\xfe\xff\x00\xe0"  # little endian
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class Call:
    """Content of a request: the transaction, and the SOP Class and SOP Instance UID of each instance, each once."""

    transaction_uid: str
    references: tuple[tuple[str, str], ...]


def make_call(call: Call) -> Dataset:
    """Return the information of the N-ACTION."""
    ds = Dataset()
    ds.TransactionUID = call.transaction_uid
    ds.ReferencedSOPSequence = [_make_item(*each) for each in call.references]
    return ds


def make_report(transaction_uid: str, verdicts: Sequence[Verdict], retrieve_ae_title: str) -> tuple[int, Dataset]:
    """Return event type and information of the N-EVENT-REPORT."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.RetrieveAETitle = retrieve_ae_title
    committed = [_make_item(each.sop_class_uid, each.sop_instance_uid) for each in verdicts if each.is_committed]
    failed = [_make_failed_item(each) for each in verdicts if not each.is_committed]
    if committed:
        ds.ReferencedSOPSequence = committed
    if failed:
        ds.FailedSOPSequence = failed
    return SOME_FAILED if failed else ALL_COMMITTED, ds


def encode(ds: Dataset, syntax: UID) -> BytesIO:
    """Return the data set encoded for a message."""
    return BytesIO(dsutils.encode(ds, syntax.is_implicit_VR, syntax.is_little_endian) or b"")


def decode_call(content: BytesIO | None, syntax: UID) -> Call:
    """Decode the information of an N-ACTION. Raises CannotUnderstand."""
    ds = _decode(content, syntax)
    references = dict.fromkeys(_read_items(ds, "ReferencedSOPSequence"))
    if not references:
        raise CannotUnderstand("the request refers to no instance")
    return Call(_read_uid(ds, "TransactionUID"), tuple(references))


def decode_report(content: BytesIO | None, syntax: UID) -> tuple[str, list[Verdict]]:
    """Decode the information of an N-EVENT-REPORT into its Transaction UID and verdicts. Raises CannotUnderstand."""
    ds = _decode(content, syntax)
    verdicts = [Verdict(*each) for each in _read_items(ds, "ReferencedSOPSequence")]
    failed = [*_read_items(ds, "FailedSOPSequence")]
    reasons = [int(item.get("FailureReason") or _PROCESSING_FAILURE) for item in ds.get("FailedSOPSequence") or ()]
    verdicts += [Verdict(*each, reason) for each, reason in zip(failed, reasons, strict=True)]
    return _read_uid(ds, "TransactionUID"), verdicts


def _make_item(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def _make_failed_item(verdict: Verdict) -> Dataset:
    item = _make_item(verdict.sop_class_uid, verdict.sop_instance_uid)
    item.FailureReason = verdict.failure_reason
    return item


def _decode(content: BytesIO | None, syntax: UID) -> Dataset:
    encoded = content.getvalue() if content else b""
    if encoded.count(_ITEM) > _MOST_INSTANCES:
        raise CannotUnderstand(f"the message has more than {_MOST_INSTANCES} items")
    try:
        ds: Dataset = dsutils.decode(BytesIO(encoded), syntax.is_implicit_VR, syntax.is_little_endian, False)
        ds.decode()
    except Exception as exc:  # whatever broken bytes make the decoder raise
        raise CannotUnderstand("the data set of the message cannot be decoded") from exc
    return ds


def _read_items(ds: Dataset, keyword: str) -> Iterator[tuple[str, str]]:
    for item in ds.get(keyword) or ():
        yield _read_uid(item, "ReferencedSOPClassUID"), _read_uid(item, "ReferencedSOPInstanceUID")


def _read_uid(ds: Dataset, keyword: str) -> str:
    value = str(ds.get(keyword) or "").strip()
    if len(value) > 64 or not _UID.fullmatch(value):
        raise CannotUnderstand(f"{keyword} is no UID")
    return value
