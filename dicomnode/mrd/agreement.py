"""Agreement of all acquisitions of one image with each other and with the limits of the header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from pipelines.contract import Refused

__all__ = ["check_channels", "check_flags", "check_limits", "check_shared"]

_SHARED = (
    "measurement_uid",
    "number_of_samples",
    "center_sample",
    "discard_pre",
    "discard_post",
    "sample_time_us",
    "available_channels",
    "channel_mask",
    "patient_table_position",
)
_TOLERANCE = 1e-3
"""For times in microseconds and positions in mm; whole numbers must be equal."""
_LIMITED = ("average", "contrast", "phase", "repetition", "set")
"""Segments tell no images apart, and converters state one segment where the echoes of a train are counted."""
_USERS = 8
_COMPRESSED = range(ismrmrd.ACQ_COMPRESSION1, ismrmrd.ACQ_COMPRESSION4 + 1)
_UNDEFINED = range(ismrmrd.ACQ_IS_PHASE_STABILIZATION + 1, ismrmrd.ACQ_COMPRESSION1)
_USER_FLAGS = range(ismrmrd.ACQ_USER1, ismrmrd.ACQ_USER8 + 1)


def check_shared(heads: NDArray[np.void], rows: Sequence[int]) -> None:
    """Refuse where the acquisitions ``rows`` differ in what is one for an image, or in a counter of the user."""
    chosen = heads[list(rows)]
    for field in _SHARED:
        _check_one(field, chosen[field], rows)
    for number in range(_USERS):
        _check_one(f"idx.user[{number}]", chosen["idx"]["user"][:, number], rows)


def _check_one(name: str, values: NDArray[Any], rows: Sequence[int]) -> None:
    different = np.abs(values.astype(np.float64) - values[0].astype(np.float64)) > _TOLERANCE
    if values.dtype.kind != "f":
        different = values != values[0]
    elif not np.isfinite(values).all():
        raise Refused(f"k-space: {name} is not a finite number in some acquisitions")
    places = np.flatnonzero(different.reshape(len(values), -1).any(axis=1))
    if places.size:
        raise Refused(
            f"k-space: {name} is {_plain(values[0])} in acquisition {rows[0]} and {_plain(values[places[0]])} in "
            f"acquisition {rows[places[0]]}; one image has one value"
        )


def _plain(value: Any) -> str:
    if np.ndim(value) == 0:
        return f"{value:g}" if isinstance(value, np.floating) else str(value)
    elements = np.trim_zeros(np.asarray(value), "b") if value.dtype.kind == "u" else np.asarray(value)
    return f"({', '.join(_plain(each) for each in elements)})"


def check_flags(heads: NDArray[np.void], rows: Sequence[int]) -> None:
    """Refuse compressed samples, flags that ISMRMRD does not define, and user flags on some acquisitions only."""
    flags = heads["flags"][list(rows)]
    for flag in (*_COMPRESSED, *_UNDEFINED, *_USER_FLAGS):
        carried = (flags & np.uint64(1 << (flag - 1))) != 0
        if not carried.any():
            continue
        row = rows[int(np.argmax(carried))]
        if flag in _COMPRESSED:
            raise Refused(f"k-space: the samples of acquisition {row} are compressed (flag {flag}); write them plain")
        if flag in _UNDEFINED:
            raise Refused(f"k-space: acquisition {row} carries flag {flag}, which ISMRMRD does not define")
        if not carried.all():
            raise Refused(
                f"k-space: some acquisitions of the image carry ACQ_USER{flag - ismrmrd.ACQ_USER1 + 1}, others do not; "
                "what it means is not known"
            )


def check_channels(heads: NDArray[np.void], row: int, noise_rows: Sequence[int]) -> None:
    """Refuse a noise scan through other receiver channels than those of the image's acquisition ``row``."""
    for other in noise_rows:
        if (heads["channel_mask"][other] != heads["channel_mask"][row]).any():
            raise Refused(
                f"k-space: channel_mask of the noise scan (acquisition {other}) differs from that of the image "
                f"(acquisition {row})"
            )


def check_limits(encoding: ismrmrd.xsd.encodingType, heads: NDArray[np.void]) -> None:
    """Refuse counters that leave the header's encoding limits."""
    limits = encoding.encodingLimits
    for name in _LIMITED:
        _check_limit(name, getattr(limits, name), heads["idx"][name])
    for number in range(_USERS):
        _check_limit(f"user_{number}", getattr(limits, f"user_{number}"), heads["idx"]["user"][:, number])
    samples = limits.kspace_encoding_step_0
    if samples is not None and int(heads["number_of_samples"].max()) > samples.maximum - samples.minimum + 1:
        raise Refused(
            f"k-space: acquisitions hold {heads['number_of_samples'].max()} samples, the header's limits of "
            f"kspace_encoding_step_0 are {samples.minimum} to {samples.maximum}"
        )


def _check_limit(name: str, limit: ismrmrd.xsd.limitType | None, values: NDArray[np.uint16]) -> None:
    if limit is None:
        return
    low, high = int(values.min()), int(values.max())
    if not limit.minimum <= low <= high <= limit.maximum:
        raise Refused(
            f"k-space: the counter '{name}' runs from {low} to {high}, the header allows {limit.minimum} to "
            f"{limit.maximum}"
        )
