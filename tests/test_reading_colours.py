"""Grey or colour, and attributes for display only: photometric interpretation, palettes, windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomnode.errors import InputRefused
from dicomnode.reading import volumes
from tests.pixel_files import Edit, make_values, set_attributes, turn_into_ct, write_series


def _read(paths: list[Path]) -> NDArray[np.float32]:
    return volumes.read(paths).volume.data


def _invert_ct(k: int, ds: Dataset) -> None:
    turn_into_ct(k, ds)
    ds.PhotometricInterpretation = "MONOCHROME1"


PHOTOMETRIC: dict[str, tuple[dict[str, object], str]] = {
    "MONOCHROME1 of MR": ({"PhotometricInterpretation": "MONOCHROME1"}, "whether they are inverted signals"),
    "inverse": ({"PresentationLUTShape": "INVERSE"}, "whether they are inverted signals"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour image"),
    "RGB by planes": (
        {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 1},
        "colour image",
    ),
    "YBR": ({"PhotometricInterpretation": "YBR_FULL_422", "SamplesPerPixel": 3}, "colour image"),
    "none": ({"PhotometricInterpretation": None}, r"has no Photometric Interpretation \(0028,0004\)"),
}


@pytest.mark.parametrize("case", PHOTOMETRIC)
def test_values_that_are_no_signal_are_refused(case: str, tmp_path: Path) -> None:
    values, reason = PHOTOMETRIC[case]
    with pytest.raises(InputRefused, match=reason):
        _read(write_series(tmp_path, make_values(), set_attributes(**values)))


def test_monochrome1_of_ct_is_in_hounsfield_units_all_the_same(tmp_path: Path) -> None:
    found = _read(write_series(tmp_path, make_values(), _invert_ct))
    assert np.array_equal(found, make_values().astype(np.float32) - 1024)


def _write_coloured(first: int) -> Edit:
    return set_attributes(PixelPresentation="COLOR", RedPaletteColorLookupTableDescriptor=[256, first, 16])


def test_values_that_are_colours_over_the_image_are_refused(tmp_path: Path) -> None:
    assert np.array_equal(_read(write_series(tmp_path / "scale", make_values(), _write_coloured(0))), make_values())
    assert np.array_equal(_read(write_series(tmp_path / "beyond", make_values(), _write_coloured(3500))), make_values())
    with pytest.raises(InputRefused, match="pixels are colours"):
        _read(write_series(tmp_path / "over", make_values(), _write_coloured(2000)))


@pytest.mark.parametrize("keyword", [
    "WindowCenter", "SmallestImagePixelValue", "LargestImagePixelValue", "PixelIntensityRelationshipSign",
])  # fmt: skip
def test_what_is_for_display_or_summary_changes_no_value(keyword: str, tmp_path: Path) -> None:
    extra: dict[str, object] = {keyword: 7, "WindowWidth": 3} if keyword == "WindowCenter" else {keyword: 7}
    assert np.array_equal(_read(write_series(tmp_path, make_values(), set_attributes(**extra))), make_values())
