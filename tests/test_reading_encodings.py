"""Stored values from every encoding: transfer syntaxes, bits in their cells, lengths, fragments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.tag import Tag
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.datasets import lossy
from dicomnode.errors import InputRefused
from dicomnode.reading import frames, volumes
from dicomnode.reading.stored_values import decode_frame
from tests import pixel_files
from tests.pixel_files import (
    SHAPE,
    compress,
    make_item,
    make_values,
    reencode,
    set_attributes,
    set_private,
    write_as,
    write_series,
)  # fmt: skip
from tests.series import write_enhanced

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
CODED = (RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)


def _read(paths: list[Path]) -> np.ndarray[Any, Any]:
    return volumes.read(paths).volume.data


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32])
def test_native_transfer_syntaxes(syntax: UID, dtype: type[Any], tmp_path: Path) -> None:
    data = make_values(dtype, 120 if dtype is np.uint8 else 3000)
    bits = np.dtype(dtype).itemsize * 8
    paths = write_series(tmp_path, data, set_attributes(BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1))
    for path in paths:
        reencode(path, syntax)
    assert np.array_equal(_read(paths), data)


def test_bytes_in_big_endian_words(tmp_path: Path) -> None:
    data = make_values(np.uint8, 250)
    paths = write_series(tmp_path, data, set_attributes(BitsAllocated=8, BitsStored=8, HighBit=7))
    for path in paths:
        ds = dcmread(path)
        ds.PixelData = np.frombuffer(ds.PixelData, "u2").byteswap().tobytes()
        ds["PixelData"].VR = "OW"
        write_as(ds, path, ExplicitVRBigEndian)
    assert np.array_equal(_read(paths), data)


@pytest.mark.parametrize("syntax", CODED, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_compressed_transfer_syntaxes(syntax: UID, dtype: type[Any], tmp_path: Path) -> None:
    data = make_values(dtype, 2000)
    paths = write_series(tmp_path, data, set_attributes(BitsStored=12, HighBit=11))
    for path in paths:
        compress(path, syntax)
    assert np.array_equal(_read(paths), data)


UNDECODED = {
    "HTJ2K": "1.2.840.10008.1.2.4.201",
    "JPEG XL": "1.2.840.10008.1.2.4.110",
    "MPEG": "1.2.840.10008.1.2.4.102",
    "JPIP": "1.2.840.10008.1.2.4.94",
    "JPEG Extended of 12 bits": "1.2.840.10008.1.2.4.51",
}


@pytest.mark.parametrize("syntax", UNDECODED.values(), ids=UNDECODED)
def test_what_nothing_decodes_is_refused(syntax: str, tmp_path: Path) -> None:
    paths = write_series(tmp_path, make_values(most=2000), set_attributes(BitsStored=12, HighBit=11))
    for path in paths:
        compress(path, RLELossless)
        ds = dcmread(path)
        ds.file_meta.TransferSyntaxUID = UID(syntax)
        ds.save_as(path, enforce_file_format=True)
    with pytest.raises(InputRefused, match="not to be decoded"):
        _read(paths)


def test_a_private_transfer_syntax_is_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, make_values())
    for path in paths:  # GE: implicit, pixels big endian
        write_as(dcmread(path), path, UID("1.2.840.113619.5.2"))
    with pytest.raises(InputRefused, match=r"private transfer syntax \(1.2.840.113619.5.2\)"):
        _read(paths)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless], ids=lambda u: u.keyword)
def test_pixels_are_shifted_down_from_high_bit(syntax: UID, dtype: type[Any], tmp_path: Path) -> None:
    data = make_values(dtype, 2000)
    paths = write_series(tmp_path, (data << 4).astype(dtype), set_attributes(BitsStored=12, HighBit=15))
    for path in paths:
        compress(path, syntax, BitsStored=12, HighBit=15) if syntax == RLELossless else reencode(path, syntax)
    assert np.array_equal(_read(paths), data)


def test_bits_below_the_values_that_no_overlay_explains_are_refused(tmp_path: Path) -> None:
    """The values lie in the low bits, but High Bit declares the high ones."""
    for dtype in (np.uint16, np.int16):
        paths = write_series(
            tmp_path / dtype.__name__, make_values(dtype, 2000), set_attributes(BitsStored=12, HighBit=15)
        )
        with pytest.raises(InputRefused, match=r"High Bit \(0028,0102\) is 15 .* the bits below hold something"):
            _read(paths)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1], ids=lambda uid: uid.keyword)
def test_a_shift_in_compressed_samples_is_refused(syntax: UID, tmp_path: Path) -> None:
    paths = write_series(tmp_path, (make_values(most=2000) << 4).astype(np.uint16))
    for path in paths:
        compress(path, syntax, BitsStored=12, HighBit=15)
    with pytest.raises(InputRefused, match=r"High Bit \(0028,0102\) is 15 with Bits Stored \(0028,0101\) 12"):
        _read(paths)


def test_compressed_samples_of_more_than_bits_stored_are_refused(tmp_path: Path) -> None:
    for folder, most in (("within", 4000), ("beyond", 60000)):
        data = make_values(most=most)
        paths = write_series(tmp_path / folder, data)
        for path in paths:
            compress(path, JPEG2000Lossless, BitsStored=12, HighBit=11)
        if folder == "within":
            assert np.array_equal(_read(paths), data)
        else:
            with pytest.raises(InputRefused, match="values of more than 12 Bits Stored"):
                _read(paths)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_bits_beside_bits_stored_are_dropped(dtype: type[Any], tmp_path: Path) -> None:
    data = make_values(dtype, 2000)
    cells = (data.astype(np.int64) & 0x0FFF) | 0xA000
    paths = write_series(tmp_path, cells.astype(np.uint16), set_attributes(BitsStored=12, HighBit=11,
                                                             PixelRepresentation=int(dtype is np.int16)))  # fmt: skip
    assert np.array_equal(_read(paths), data)


def _add_overlay(position: int) -> Callable[[int, Dataset], None]:
    def edit(_: int, ds: Dataset) -> None:
        ds.BitsStored, ds.HighBit = 12, 11
        ds.add_new(0x60000010, "US", SHAPE[1])
        ds.add_new(0x60000011, "US", SHAPE[2])
        ds.add_new(0x60000100, "US", 16)
        ds.add_new(0x60000102, "US", position)

    return edit


def test_an_overlay_in_unused_bits_is_no_part_of_the_values(tmp_path: Path) -> None:
    data = make_values(most=4000)
    cells = data | (1 << 13)
    assert np.array_equal(_read(write_series(tmp_path / "beside", cells, _add_overlay(13))), data)
    with pytest.raises(InputRefused, match=r"Overlay Bit Position \(6000,0102\) 11 lies among the bits"):
        _read(write_series(tmp_path / "among", data, _add_overlay(11)))


IMPOSSIBLE: dict[str, dict[str, object]] = {
    "High Bit below Bits Stored": {"BitsStored": 12, "HighBit": 10},
    "High Bit beyond the cell": {"BitsStored": 12, "HighBit": 16},
    "no High Bit": {"BitsStored": 12, "HighBit": None},
    "no bits": {"BitsStored": 0, "HighBit": 11},
    "no Bits Stored": {"BitsStored": None},
    "packed": {"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11},
    "no sign": {"PixelRepresentation": None},
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_bits_that_say_nothing_are_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"instance 4: (Bits Allocated|the pixels are damaged)"):
        _read(write_series(tmp_path, make_values(), set_attributes(**IMPOSSIBLE[case])))


def test_a_missing_high_bit_of_full_cells_is_their_last(tmp_path: Path) -> None:
    assert np.array_equal(_read(write_series(tmp_path, make_values(), set_attributes(HighBit=None))), make_values())


def test_slices_may_differ_in_sign_and_bits(tmp_path: Path) -> None:
    data = make_values(np.int16, 1000)

    def edit(k: int, ds: Dataset) -> None:
        if k % 2:
            ds.PixelRepresentation, ds.PixelData = 0, (data[k] + 1000).astype(np.uint16).tobytes()
            ds.BitsStored, ds.HighBit = 12, 11
        ds.RescaleSlope, ds.RescaleIntercept = "1", "-1000" if k % 2 else "0"

    assert np.array_equal(_read(write_series(tmp_path, data, edit)), data)


@pytest.mark.parametrize("count", [-2, 2, 40])
def test_pixels_of_another_length_are_refused(count: int, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        ds.PixelData = ds.PixelData[:count] if count < 0 else ds.PixelData + bytes(count)
        ds.add_new(0xFFFCFFFC, "OB", bytes(200))  # the bytes that follow must not be read as pixels

    with pytest.raises(InputRefused, match="instance 4: the pixels are damaged"):
        _read(write_series(tmp_path, make_values(), edit))


def test_the_padding_of_an_odd_length_is_no_pixel(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 250, (3, 5, 7)).astype(np.uint8)

    def edit(k: int, ds: Dataset) -> None:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.PixelData += b"\0"
        ds["PixelData"].VR = "OB"

    assert np.array_equal(_read(write_series(tmp_path, data, edit)), data)


@pytest.mark.parametrize("kind", ["no offsets", "offsets", "extended offsets", "two fragments a frame"])
def test_fragments_and_offset_tables(kind: str, tmp_path: Path) -> None:
    data = make_values(most=4000)
    path = write_enhanced(tmp_path / "e.dcm", pixel_files.make_axial_grid(), data, list(range(SHAPE[0])))
    compress(path, RLELossless)
    ds = dcmread(path)
    found = [bytes(frame) for frame in generate_frames(ds.PixelData, number_of_frames=SHAPE[0])]
    if kind == "extended offsets":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(found)
    else:
        fragments = 2 if kind == "two fragments a frame" else 1
        ds.PixelData = encapsulate(found, fragments_per_frame=fragments, has_bot=kind != "no offsets")
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path, enforce_file_format=True)
    assert np.array_equal(_read([path]), data)


def test_more_frames_than_announced_are_refused(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "e.dcm", pixel_files.make_axial_grid(), make_values(), list(range(SHAPE[0])))
    compress(path, RLELossless)
    ds = dcmread(path)
    found = [bytes(frame) for frame in generate_frames(ds.PixelData, number_of_frames=SHAPE[0])]
    ds.PixelData = encapsulate([*found, found[0]])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path, enforce_file_format=True)
    with pytest.raises(InputRefused, match="240 pixels decoded"):
        _read([path])


@pytest.mark.parametrize(("keyword", "bits"), [("FloatPixelData", 32), ("DoubleFloatPixelData", 64)])
def test_floating_point_pixels(keyword: str, bits: int, tmp_path: Path) -> None:
    data = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)

    def edit(k: int, ds: Dataset) -> None:
        for gone in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(ds, gone)
        ds.BitsAllocated = bits
        setattr(ds, keyword, data[k].astype(f"<f{bits // 8}").tobytes())

    paths = write_series(tmp_path, make_values(), edit)
    assert np.array_equal(_read(paths), data)
    ds = dcmread(paths[0])
    ds.PixelData = make_values()[0].tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(paths[0], enforce_file_format=True)
    with pytest.raises(InputRefused, match=r"damaged.* more than one of Pixel Data, Float Pixel Data"):
        _read(paths)
    del ds[keyword]
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.BitsAllocated = 16, 15, 0, 16
    setattr(ds, keyword, b"")
    ds.save_as(paths[0], enforce_file_format=True)
    with pytest.raises(InputRefused, match="more than one of Pixel Data, Float Pixel Data"):
        _read(paths)


def test_an_icon_is_not_the_image(tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        icon = make_item(Rows=2, Columns=2, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0)
        icon.SamplesPerPixel, icon.PhotometricInterpretation, icon.PixelData = 1, "MONOCHROME2", bytes(4)
        icon["PixelData"].VR = "OB"
        ds.IconImageSequence = [icon]

    assert np.array_equal(_read(write_series(tmp_path, make_values(), edit)), make_values())


@pytest.mark.parametrize(("syntax", "header_value", "expected"), [
    (ExplicitVRLittleEndian, "01", True), (ExplicitVRLittleEndian, "00", None), (RLELossless, None, None),
])  # fmt: skip
def test_a_lossy_compression_is_a_fact(
    syntax: UID, header_value: str | None, expected: bool | None, tmp_path: Path
) -> None:
    paths = write_series(
        tmp_path, make_values(most=4000), set_attributes(LossyImageCompression=header_value, BitsStored=12, HighBit=11)
    )
    for path in paths:
        compress(path, syntax) if syntax.is_encapsulated else None
    assert volumes.read(paths).facts.get("lossy_compressed") == expected


def test_a_lossy_transfer_syntax_is_a_fact_though_unstated(kit: Path) -> None:
    header = frames.read_header(kit / "dicom" / "pydicom-test-files" / "JPEGLSNearLossless_16.dcm")
    header.pop("LossyImageCompression", None)
    assert lossy.is_lossy(header)


@pytest.mark.parametrize(("header_value", "expected"), [(None, True), ("01", True), ("00", False)])
def test_jpeg_2000_that_says_it_is_lossless_is_believed(header_value: str | None, expected: bool) -> None:
    header = make_item(LossyImageCompression=header_value)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = JPEG2000
    assert lossy.is_lossy(header) == expected


def _write_with_bytes(folder: Path, tag: int, vr: bytes, nested: bool) -> list[Path]:
    """Write files with an element of four bytes, whatever its VR needs, at the top or in an item of a sequence."""

    def edit(_: int, ds: Dataset) -> None:
        place = Dataset() if nested else ds
        place.add_new(0x00190010, "LO", "ACME")
        place.add_new(tag, "LO", "Q7Q7")
        if nested:
            ds.RequestAttributesSequence = [place]

    paths = write_series(folder, make_values(), edit)
    for path in paths:
        assert path.read_bytes().count(b"LO\4\0Q7Q7") == 1
        path.write_bytes(path.read_bytes().replace(b"LO\4\0Q7Q7", vr + b"\4\0Q7Q7"))
    return paths


def _write_with_value(folder: Path, tag: int, value: bytes) -> list[Path]:
    """Write files in implicit VR with an element of this value, whatever its VR allows."""
    paths = write_series(folder, make_values())
    for path in paths:
        ds = dcmread(path)
        ds.add(DataElement(tag, "OB", value, validation_mode=IGNORE))
        write_as(ds, path, ImplicitVRLittleEndian)
    return paths


@pytest.mark.parametrize(
    ("tag", "value"), [(0x00200012, b"inf "), (0x00280034, b"1\\inf "), (0x00283006, b"\1\0")],
    ids=["an infinite whole number", "one of two", "a table without its descriptor"],
)  # fmt: skip
def test_a_value_that_its_vr_cannot_hold_is_refused_by_its_tag(tag: int, value: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=rf"its element \({tag >> 16:04x},{tag & 0xFFFF:04x}\) cannot be decoded"):
        _read(_write_with_value(tmp_path, tag, value))


def test_an_infinite_whole_number_of_a_private_element_is_not_read(tmp_path: Path) -> None:
    paths = write_series(tmp_path, make_values(), set_private(0x0019, "ACME", 0x01, "LO", "inf "))
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"LO\4\0inf ", b"IS\4\0inf "))
    assert np.array_equal(_read(paths), make_values())


SINGLE = {
    **dict.fromkeys(("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
                     "PixelRepresentation", "InConcatenationNumber"), b"\x10\0\x08\0"),
    **dict.fromkeys(("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"), b"1.2\\1.34"),
}  # fmt: skip


@pytest.mark.parametrize("keyword", SINGLE)
def test_two_values_where_an_instance_has_one_are_refused_by_name(keyword: str, tmp_path: Path) -> None:
    tag = Tag(keyword)
    paths = _write_with_value(tmp_path, tag, SINGLE[keyword])
    named = rf"instance \d: .* \({tag.group:04X},{tag.element:04X}\) has 2 values, where an instance has one"
    with pytest.raises(InputRefused, match=named):
        _read(paths)
    if tag.group == 0x0028:
        with pytest.raises(InputRefused, match=named):
            decode_frame(paths[0], 0)


@pytest.mark.parametrize("nested", [False, True], ids=["at the top", "in a sequence"])
@pytest.mark.parametrize("vr", [b"FD", b"XX"], ids=["too few bytes", "no VR"])
def test_elements_that_cannot_be_decoded(vr: bytes, nested: bool, tmp_path: Path) -> None:
    assert np.array_equal(_read(_write_with_bytes(tmp_path / "private", 0x00191001, vr, nested)), make_values())
    with pytest.raises(InputRefused, match=r"its element \(0018,9073\) cannot be decoded"):
        _read(_write_with_bytes(tmp_path / "public", 0x00189073, vr, nested))
