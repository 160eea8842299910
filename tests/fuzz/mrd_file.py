"""MRD files: HDF5 and its XML header become k-space, or they are refused."""

from __future__ import annotations

import io
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import h5py
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from dicomnode import mrd
from pipelines.contract import Refused
from tests.fuzz.changes import change
from tests.scanner import Scan, acquire

__all__ = ["REFUSALS", "examples", "target"]

REFUSALS = (Refused,)
_NOW = datetime(2026, 11, 20, tzinfo=UTC)
_ODD_TEXTS = (b"", b"0", b"-1", b"1", b"3", b"65535", b"99999999999", b"1e300", b"nan", b"x", b"<a/>", b"4294967295")
_FIELDS = (
    "version", "flags", "number_of_samples", "available_channels", "active_channels", "center_sample",
    "trajectory_dimensions", "encoding_space_ref", "discard_pre", "discard_post", "sample_time_us", "scan_counter",
)  # fmt: skip
_COUNTERS = (
    "kspace_encode_step_1",
    "kspace_encode_step_2",
    "average",
    "slice",
    "contrast",
    "phase",
    "repetition",
    "set",
    "segment",
)
_NUMBERS = (0, 1, 2, 5, 8, 255, 65535)


def target(data: bytes) -> None:
    """``data``: the file."""
    mrd.wrap(data, now=_NOW)
    mrd.to_images(mrd.read(data))


def examples() -> SearchStrategy[bytes]:
    """Files with odd numbers in header and acquisitions, and files whose bytes are changed."""
    return st.one_of(_edited(), change(_file()), _edited().flatmap(change))


@cache
def _file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        acquire(Scan(n=(6, 4, 1), coils=1), Path(folder) / "a.h5")
        return (Path(folder) / "a.h5").read_bytes()


@st.composite
def _edited(draw: DrawFn) -> bytes:
    """Return the file with a few values of its XML header and of its acquisitions replaced."""
    content = io.BytesIO(_file())
    with h5py.File(content, "r+") as file:
        group = file["dataset"]
        group["xml"][0] = draw(_headers(group["xml"][0]))
        records = group["data"][:]
        for _ in range(draw(st.integers(0, 3))):
            _edit(draw, records)
        group["data"][:] = records
    return content.getvalue()


def _edit(draw: DrawFn, records: Any) -> None:
    place, number = draw(st.integers(0, len(records) - 1)), draw(st.sampled_from(_NUMBERS))
    if draw(st.booleans()):
        records["head"][draw(st.sampled_from(_FIELDS))][place] = number
    else:
        records["head"]["idx"][draw(st.sampled_from(_COUNTERS))][place] = number


@st.composite
def _headers(draw: DrawFn, xml: bytes) -> bytes:
    for _ in range(draw(st.integers(0, 3))):
        ends = [at for at in range(len(xml)) if xml.startswith(b"</", at)]
        end = draw(st.sampled_from(ends))
        start = xml.rindex(b">", 0, end) + 1
        xml = xml[:start] + draw(st.sampled_from(_ODD_TEXTS)) + xml[end:]
    return xml
