"""A volume tiled into one image is refused, whichever of its marks remain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.reading import volumes
from tests.pixel_files import Edit, check_refused, make_values, set_attributes, set_private, write_series


def _set_csa_count(count: bytes) -> Edit:
    def edit(_: int, ds: Dataset) -> None:
        value = len(count).to_bytes(4, "little") * 4 + count
        header = b"NumberOfImagesInMosaic".ljust(64, b"\0") + bytes(20) + value + bytes(16)
        ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)

    return edit


TILES: dict[str, Edit] = {
    "Image Type": set_attributes(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]),
    "UIH's word": set_attributes(ImageType=["ORIGINAL", "PRIMARY", "M", "VFRAME"]),
    "Siemens' count": set_private(0x0019, "SIEMENS MR HEADER", 0x0A, "US", 36),
    "UIH's count": set_private(0x0065, "Image Private Header", 0x50, "DS", "20"),
    "the CSA header": _set_csa_count(b"36      "),
    "the acquisition matrix": set_attributes(
        Manufacturer="SIEMENS", AcquisitionMatrix=[2, 0, 0, 2], PixelSpacing=["60", "60"]
    ),
    "UIH's acquisition matrix": set_attributes(
        Manufacturer="UIH", AcquisitionMatrix=[0, 2, 2, 0], PixelSpacing=["60", "60"]
    ),
    "the field of view": set_attributes(PixelSpacing=["120", "120"]),
}


@pytest.mark.parametrize("case", TILES)
def test_tiles_are_known_by_whatever_is_left_of_them(case: str, tmp_path: Path) -> None:
    check_refused(write_series(tmp_path, make_values(), TILES[case]), "instance 4 is a mosaic")


NO_TILES: dict[str, Edit] = {
    "one image": set_private(0x0019, "SIEMENS MR HEADER", 0x0A, "US", 1),
    "an empty count": _set_csa_count(b""),
    "interpolated": set_attributes(Manufacturer="SIEMENS", AcquisitionMatrix=[0, 4, 3, 0], PixelSpacing=["60", "60"]),
    "one head, strongly interpolated": set_attributes(
        Manufacturer="SIEMENS", AcquisitionMatrix=[0, 2, 2, 0], PixelSpacing=["40", "40"]
    ),
    "another maker's": set_attributes(Manufacturer="GE MEDICAL SYSTEMS", AcquisitionMatrix=[0, 2, 2, 0]),
    "long": set_attributes(PixelSpacing=["200", "10"]),
}


@pytest.mark.parametrize("case", NO_TILES)
def test_other_images_are_no_tiles(case: str, tmp_path: Path) -> None:
    assert np.array_equal(
        volumes.read(write_series(tmp_path, make_values(), NO_TILES[case])).volume.data, make_values()
    )


@pytest.mark.parametrize("left", ["all but the word", "no private elements", "no private elements nor matrix"])
def test_a_real_mosaic_that_lost_its_word_is_refused(left: str, kit: Path, tmp_path: Path) -> None:
    ds = dcmread(sorted((kit / "dicom" / "transfer-syntaxes-mosaic").glob("*.dcm"))[0])
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    if left != "all but the word":
        ds.remove_private_tags()
    if left.endswith("matrix"):
        del ds.AcquisitionMatrix
    ds.save_as(tmp_path / "a.dcm")
    check_refused([tmp_path / "a.dcm"], "is a mosaic")
