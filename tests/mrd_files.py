"""Files of one small acquisition with a field, a flag or a header element changed, and helpers that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ismrmrd import xsd

from dicomnode import mrd
from pipelines.contract import KSpace, Refused
from tests.scanner import Scan, acquire

__all__ = [
    "Edit",
    "acquire_scan",
    "edit_line",
    "is_equal",
    "make_smooth",
    "read_refusal",
    "set_calibration",
    "set_field",
]

POINT = np.array([12.5, -30.0, 7.25])
Edit = Callable[[Any], None]


def acquire_scan(path: Path, **how: Any) -> mrd.MRD:
    return acquire(Scan(points_mm=[POINT], **how), path / "a.h5")


def read_refusal(path: Path, **how: Any) -> str:
    with pytest.raises(Refused) as refusal:
        mrd.to_images(acquire_scan(path, **how))
    return str(refusal.value)


def is_equal(one: KSpace, other: KSpace) -> bool:
    return (
        np.array_equal(one.samples, other.samples)
        and np.array_equal(one.mask, other.mask)
        and np.array_equal(one.grid.affine_mm, other.grid.affine_mm)
        and (one.calibration, one.slice_thickness_mm) == (other.calibration, other.slice_thickness_mm)
    )


def edit_line(line: int, change: Edit) -> Edit:
    return lambda acquisition: change(acquisition) if acquisition.idx.kspace_encode_step_1 == line else None


def set_field(name: str, value: Any) -> Edit:
    """Return an edit that sets a field such as "idx.user" or "center_sample"; in an array every element."""

    def change(acquisition: Any) -> None:
        *parents, last = name.split(".")
        for parent in parents:
            acquisition = getattr(acquisition, parent)
        try:
            getattr(acquisition, last)[:] = value
        except TypeError:
            setattr(acquisition, last, value)

    return change


def set_calibration(mode: str | None) -> Edit:
    def change(header: Any) -> None:
        header.encoding[0].parallelImaging = xsd.parallelImagingType(
            accelerationFactor=xsd.accelerationFactorType(kspace_encoding_step_1=2, kspace_encoding_step_2=1),
            calibrationMode=mode and xsd.calibrationModeType(mode))  # fmt: skip

    return change


def make_smooth(acquisition: Any) -> None:
    """Replace the samples by the k-space of a smooth object, strongest at line 10 and sample 12."""
    y = acquisition.idx.kspace_encode_step_1 - 10
    x = np.arange(acquisition.data.shape[1]) - 12
    acquisition.data[:] = np.exp(-(x**2 + y**2) / 8) + 0.001
