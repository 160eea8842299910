"""Meaning of stored values: padding, rescale, lookup tables, real world values, photometric interpretation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from dicomnode.deidentify.defacing import SeriesFaceMask
from dicomnode.errors import InputRefused
from dicomnode.reading import frames, stored_values, volumes
from dicomnode.transcoding import pixels
from dicomnode.web import rendered
from tests.pixel_files import (
    SHAPE,
    Edit,
    compress,
    make_axial_grid,
    make_item,
    make_values,
    reencode,
    set_attributes,
    turn_into_ct,
    write_series,
)
from tests.series import write_enhanced

RIM = np.zeros(SHAPE, bool)
RIM[:, :2] = True


def _read(paths: list[Path]) -> NDArray[np.float32]:
    return volumes.read(paths).volume.data


def _combine(*edits: Edit) -> Edit:
    def edit(k: int, ds: Dataset) -> None:
        for each in edits:
            each(k, ds)

    return edit


def _make_padded(value: int, dtype: type[np.integer[Any]] = np.int16) -> NDArray[Any]:
    data: NDArray[Any] = make_values(np.uint16, 3000).astype(dtype) + dtype(5)
    data[RIM] = value
    return data


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_padding_of_mr_becomes_zero_whichever_vr_it_has(vr: str, tmp_path: Path) -> None:
    def pad(_: int, ds: Dataset) -> None:
        ds.add_new(0x00280120, vr, -32768 if vr == "SS" else 32768)

    data = _make_padded(-32768)
    found = _read(write_series(tmp_path, data, pad))
    assert np.array_equal(found[~RIM], data[~RIM])
    assert (found[RIM] == max(0, data[~RIM].min())).all()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.keyword)
def test_padding_is_found_in_other_encodings(syntax: Any, tmp_path: Path) -> None:
    paths = write_series(tmp_path, _make_padded(-2000), set_attributes(PixelPaddingValue=-2000))
    for path in paths:
        reencode(path, syntax)
    assert _read(paths).min() >= 0


def test_padding_of_ct_becomes_air_and_is_found_before_the_rescale(tmp_path: Path) -> None:
    data = _make_padded(-2000)
    data[0, 5, 5] = 0
    found = _read(write_series(tmp_path, data, _combine(turn_into_ct, set_attributes(PixelPaddingValue=-2000))))
    assert np.array_equal(found[~RIM], data[~RIM] - 1024)
    assert (found[RIM] == -1000).all()


def test_padding_becomes_a_value_within_the_measured_range(tmp_path: Path) -> None:
    data = _make_padded(0, np.uint16) + np.uint16(1000)
    data[RIM] = 0
    found = _read(write_series(tmp_path, data, set_attributes(PixelPaddingValue=0)))
    assert (found[RIM] == data[~RIM].min()).all()


def test_a_range_of_padding(tmp_path: Path) -> None:
    data = _make_padded(-32768)
    data[:, 1] = -30000
    found = _read(write_series(tmp_path, data, set_attributes(PixelPaddingValue=-32768, PixelPaddingRangeLimit=-30000)))
    assert found.min() == max(0, data[~RIM].min())
    with pytest.raises(InputRefused, match=r"Range Limit \(0028,0121\) without a Pixel Padding Value"):
        _read(write_series(tmp_path / "alone", data, set_attributes(PixelPaddingRangeLimit=-30000)))


def test_padding_of_fewer_bits_than_its_cell(tmp_path: Path) -> None:
    data = (_make_padded(0) % 2000).astype(np.int16)
    data[RIM] = -2000
    bits = {"BitsStored": 12, "HighBit": 11}
    zero_filled = (data.astype(np.int64) & 0x0FFF).astype(np.int16)
    for value in (-2000, 63536, 2096):  # signed, the same two bytes unsigned, its twelve bits alone
        padding = DataElement(0x00280120, "SS" if value < 0 else "US", value)
        pad = _combine(set_attributes(**bits), lambda _, ds, padding=padding: ds.add(padding))  # type: ignore[misc]
        found = _read(write_series(tmp_path / str(value), zero_filled, pad))
        assert (found[RIM] >= 0).all(), value
        assert np.array_equal(found[~RIM], data[~RIM]), value


def test_padding_beyond_bits_stored_is_refused_where_pixels_hold_it(tmp_path: Path) -> None:
    data = (_make_padded(0, np.uint16) % 4000).astype(np.uint16)
    bits = {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": 63536}
    assert np.array_equal(_read(write_series(tmp_path / "none", data, set_attributes(**bits))), data)
    data[RIM] = 63536
    with pytest.raises(InputRefused, match=r"Pixel Padding Value \(0028,0120\) 63536, which 12 Bits Stored"):
        _read(write_series(tmp_path / "some", data, set_attributes(**bits)))


def test_a_series_of_padding_and_a_padding_value_that_is_none_are_refused(tmp_path: Path) -> None:
    data = np.full(SHAPE, -9, np.int16)
    with pytest.raises(InputRefused, match="every pixel of the series is padding"):
        _read(write_series(tmp_path / "all", data, set_attributes(PixelPaddingValue=-9)))
    with pytest.raises(InputRefused, match="no single number"):
        _read(write_series(tmp_path / "two", data, set_attributes(PixelPaddingValue=[-9, -8])))


@pytest.mark.parametrize(("bits", "value"), [(32, -1e30), (32, float("nan")), (64, -1e30)])
@pytest.mark.parametrize("limited", [False, True])
def test_padding_of_floating_point_pixels(bits: int, value: float, limited: bool, tmp_path: Path) -> None:
    kind = "Float" if bits == 32 else "DoubleFloat"
    data = np.random.default_rng(2).normal(size=SHAPE)
    data[RIM] = value

    def edit(k: int, ds: Dataset) -> None:
        for gone in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(ds, gone)
        ds.BitsAllocated = bits
        setattr(ds, f"{kind}PixelData", data[k].astype(f"<f{bits // 8}").tobytes())
        padding = float(np.float32(value)) if bits == 32 else value
        setattr(ds, f"{kind}PixelPaddingValue", padding)
        if limited and np.isfinite(value):
            setattr(ds, f"{kind}PixelPaddingRangeLimit", padding / 10)

    found = _read(write_series(tmp_path, make_values(), edit))
    assert np.array_equal(found[~RIM], data[~RIM].astype(np.float32))
    assert (found[RIM] == 0).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_in_pictures_and_does_not_make_their_window(photometric: str, tmp_path: Path) -> None:
    data, plain = _make_padded(-32768), _make_padded(5)
    common = {"PhotometricInterpretation": photometric}
    bare, padded = (
        write_series(tmp_path / name, each, set_attributes(**common, **more))[0]
        for name, each, more in (("bare", plain[:, 2:], {}), ("padded", data, {"PixelPaddingValue": -32768}))
    )
    expected, frame = (
        np.asarray(Image.open(io.BytesIO(rendered.render_frame(path, 0, rendered.RenderOptions("image/png")))))
        for path in (bare, padded)
    )
    assert np.array_equal(frame[2:], expected)
    assert (frame[:2] == 0).all()


def test_pictures_show_the_bits_that_high_bit_says(tmp_path: Path) -> None:
    data = make_values(most=4000)
    low = write_series(tmp_path / "low", data, set_attributes(BitsStored=12, HighBit=11))[0]
    high = write_series(tmp_path / "high", (data << 4).astype(np.uint16), set_attributes(BitsStored=12, HighBit=15))[0]
    pictures = [
        rendered.render_frame(path, 0, rendered.RenderOptions("image/png", window=(2000.0, 4000.0, "linear")))
        for path in (low, high)
    ]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, RLELossless], ids=lambda uid: uid.keyword)
def test_a_frame_for_a_client_keeps_the_bits_that_its_header_speaks_of(syntax: UID, tmp_path: Path) -> None:
    shifted = (make_values(most=4000) << 4).astype(np.uint16)
    path = write_series(tmp_path, shifted, set_attributes(BitsStored=12, HighBit=15))[0]
    compress(path, syntax) if syntax == RLELossless else reencode(path, syntax)
    place = pixels.read_layout(path)
    assert place is not None
    assert pixels.decode_frame(place, 0) == shifted[0].tobytes()


def test_a_copy_without_face_keeps_the_other_values_whatever_high_bit_was(tmp_path: Path) -> None:
    data = make_values(most=4000)
    path = write_series(tmp_path, (data << 4).astype(np.uint16), set_attributes(BitsStored=12, HighBit=15))[0]
    copy = dcmread(path)
    SeriesFaceMask({(path, 0): RIM[0]}, 7).remove(path, copy)
    copy.save_as(path, enforce_file_format=True)
    assert np.array_equal(stored_values.decode_frames(path, frames.read_header(path))[0], np.where(RIM[0], 7, data[0]))


WRONG_LINES: dict[str, dict[str, object]] = {
    "slope of zero": {"RescaleSlope": "0", "RescaleIntercept": "0"},
    "slope alone": {"RescaleSlope": "2"},
    "intercept alone": {"RescaleIntercept": "-1024"},
    "several": {"RescaleSlope": ["1", "2"], "RescaleIntercept": "0"},
}


@pytest.mark.parametrize("case", WRONG_LINES)
def test_a_rescale_that_is_no_line_is_refused(case: str, tmp_path: Path) -> None:
    paths = write_series(tmp_path, make_values(), set_attributes(**WRONG_LINES[case]))
    with pytest.raises(InputRefused, match=r"Rescale Slope \(0028,1053\) and Intercept"):
        _read(paths)
    with pytest.raises(InputRefused, match=r"Rescale Slope \(0028,1053\) and Intercept"):
        rendered.render_frame(paths[0], 0, rendered.RenderOptions())


@pytest.mark.parametrize("kind", ["US", "OD", "Z_EFF", "MGML", "HU_MOD"])
def test_ct_of_another_quantity_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=rf"not in Hounsfield units by Rescale Type \(0028,1054\) {kind}"):
        _read(write_series(tmp_path, make_values(), _combine(turn_into_ct, set_attributes(RescaleType=kind))))


def test_ct_without_rescale_is_refused_and_without_its_type_is_hounsfield(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="not in Hounsfield units"):
        _read(
            write_series(
                tmp_path / "none",
                make_values(),
                _combine(turn_into_ct, set_attributes(RescaleSlope=None, RescaleIntercept=None)),
            )
        )
    volume = volumes.read(
        write_series(tmp_path / "type", make_values(), _combine(turn_into_ct, set_attributes(RescaleType=None)))
    ).volume
    assert volume.unit == "[hnsf'U]"
    assert np.array_equal(volume.data, make_values().astype(np.float32) - 1024)


def _set_table(first: int, bits: int, data: Any, vr: str = "US", count: int | None = None) -> Edit:
    def edit(k: int, ds: Dataset) -> None:
        table = make_item(ModalityLUTType="US")
        table.add_new(0x00283002, vr, [len(data) if count is None else count, first, bits])
        packed = bits == 8 and isinstance(data, bytes)
        table.add_new(0x00283006, "OW", data if packed else np.asarray(data, "<u2").tobytes())
        ds.ModalityLUTSequence = [table]

    return edit


@pytest.mark.parametrize(("dtype", "first", "vr"), [
    (np.uint16, 100, "US"), (np.int16, -50, "SS"), (np.int16, 65486, "US"), (np.uint16, 40000, "US"),
])  # fmt: skip
def test_a_modality_table_maps_from_its_first_value(dtype: Any, first: int, vr: str, tmp_path: Path) -> None:
    start = first - 65536 if dtype is np.int16 and first > 32767 else first
    data = np.random.default_rng(1).integers(start - 20, start + 120, SHAPE).astype(dtype)
    table = np.arange(100) ** 2
    found = _read(write_series(tmp_path, data, _set_table(first, 16, table, vr)))
    assert np.array_equal(found, table[np.clip(data.astype(int) - start, 0, 99)])


@pytest.mark.parametrize("count", [100, 101])
def test_a_modality_table_of_bytes_is_packed_or_in_words(count: int, tmp_path: Path) -> None:
    table = np.random.default_rng(3).integers(0, 256, count)
    data = np.random.default_rng(1).integers(0, count, SHAPE).astype(np.uint16)
    packed = table.astype(np.uint8).tobytes() + bytes(count % 2)
    for name, entries in (("packed", packed), ("words", table)):
        found = _read(write_series(tmp_path / name, data, _set_table(0, 8, entries, count=count)))
        assert np.array_equal(found, table[data]), name


def test_a_modality_table_of_65536_entries_says_zero(tmp_path: Path) -> None:
    table = np.arange(65536)[::-1]
    found = _read(write_series(tmp_path, make_values(), _set_table(0, 16, table, count=0)))
    assert np.array_equal(found, table[make_values()])


def test_a_modality_table_in_big_endian(tmp_path: Path) -> None:
    table = np.arange(3000) * 7
    paths = write_series(tmp_path, make_values(), _set_table(0, 16, table))
    for path in paths:
        ds = dcmread(path)
        entries = ds.ModalityLUTSequence[0]
        entries.LUTData = np.asarray(table, ">u2").tobytes()
        ds.save_as(path, enforce_file_format=True)
        reencode(path, ExplicitVRBigEndian)
    assert np.array_equal(_read(paths), table[make_values()])


def _append_second_table(edit: Edit) -> Edit:
    def edit_and_append(k: int, ds: Dataset) -> None:
        edit(k, ds)
        ds.ModalityLUTSequence.append(ds.ModalityLUTSequence[0])

    return edit_and_append


WRONG_TABLES: dict[str, tuple[Edit, str]] = {
    "two tables": (_append_second_table(_set_table(0, 16, np.arange(9))), "more than one Modality LUT"),
    "table and rescale": (_combine(_set_table(0, 16, np.arange(9)),
                                   set_attributes(RescaleSlope="1", RescaleIntercept="0")),
                          "more than one Modality LUT or rescale"),
    "too few entries": (_set_table(0, 16, np.arange(9), count=12),
                        r"LUT Data \(0028,3006\) does not have the 12 entries"),
    "entries of 32 bits": (_set_table(0, 32, np.arange(9)), "entries of 32 bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_a_modality_table_with_two_readings_is_refused(case: str, tmp_path: Path) -> None:
    edit, reason = WRONG_TABLES[case]
    with pytest.raises(InputRefused, match=reason):
        _read(write_series(tmp_path, make_values(), edit))


def _make_map(unit: str = "mm2/s", scheme: str = "UCUM", **values: Any) -> Dataset:
    code = make_item(CodeValue=unit, CodingSchemeDesignator=scheme, CodeMeaning=unit)
    first, last = values.pop("span", (0, 4095))
    line = {} if "RealWorldValueLUTData" in values else {"RealWorldValueSlope": 1e-3, "RealWorldValueIntercept": 0.0}
    found = make_item(MeasurementUnitsCodeSequence=[code], **(line | values))
    if first is not None:
        found.add_new(0x00409216, "SS" if first < 0 else "US", first)
        found.add_new(0x00409211, "SS" if last < 0 else "US", last)
    return found


def _set_mappings(*mappings: Dataset) -> Edit:
    return set_attributes(RealWorldValueMappingSequence=list(mappings))


def test_real_world_values_by_table_and_by_two_lines(tmp_path: Path) -> None:
    table = _make_map(RealWorldValueLUTData=(np.arange(4096) ** 2 * 1e-6).tolist())
    assert np.allclose(
        _read(write_series(tmp_path / "table", make_values(), _set_mappings(table))),
        make_values().astype(float) ** 2 * 1e-6,
    )
    lines = _make_map(span=(0, 999)), _make_map(span=(1000, 4095), RealWorldValueSlope=2e-3)
    found = _read(write_series(tmp_path / "lines", make_values(), _set_mappings(*lines)))
    assert np.allclose(found, make_values() * np.where(make_values() < 1000, 1e-3, 2e-3))


def test_a_signed_range_of_real_world_values_written_unsigned(tmp_path: Path) -> None:
    mapping = _make_map(span=(65536 - 3000, 3000))
    assert np.allclose(
        _read(write_series(tmp_path, make_values(np.int16), _set_mappings(mapping))), make_values(np.int16) * 1e-3
    )


def test_a_mapping_without_a_ucum_unit_is_not_used(tmp_path: Path) -> None:
    for name, mapping in (
        ("none", _make_map("1")),
        ("scheme", _make_map("furlong", "99X")),
        ("US", _make_map("no units")),
    ):
        volume = volumes.read(write_series(tmp_path / name, make_values(), _set_mappings(mapping))).volume
        assert volume.unit == "1", name
        assert np.array_equal(volume.data, make_values()), name


def test_a_mapping_to_the_unit_is_chosen_among_several(tmp_path: Path) -> None:
    volume = volumes.read(write_series(tmp_path, make_values(), _set_mappings(_make_map("1"), _make_map()))).volume
    assert volume.unit == "mm2/s"
    assert np.allclose(volume.data, make_values() * 1e-3)


WRONG_MAPPINGS: dict[str, tuple[Edit, str]] = {
    "outside of the range": (_set_mappings(_make_map(span=(0, 100))), "pixels lie outside of the stored values"),
    "several units": (_set_mappings(_make_map(), _make_map("ms")), r"to several units \(mm2/s, ms\)"),
    "same values twice": (_set_mappings(_make_map(), _make_map(RealWorldValueSlope=2e-3)),
                          "two real world value mappings"),
    "half a line": (_set_mappings(_make_map(RealWorldValueIntercept=None)), "not exactly one of line and table"),
    "short table": (_set_mappings(_make_map(RealWorldValueLUTData=[1.0, 2.0])), "does not have an entry for each"),
    "half a range": (_set_mappings(_make_map(span=(None, None), RealWorldValueFirstValueMapped=0)),
                     "does not say for which stored values"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_MAPPINGS)
def test_a_mapping_with_no_or_two_readings_is_refused(case: str, tmp_path: Path) -> None:
    edit, reason = WRONG_MAPPINGS[case]
    with pytest.raises(InputRefused, match=reason):
        _read(write_series(tmp_path, make_values(), edit))


def test_padding_needs_no_real_world_value(tmp_path: Path) -> None:
    data = make_values()
    data[RIM] = 9999
    found = _read(
        write_series(tmp_path, data, _combine(_set_mappings(_make_map()), set_attributes(PixelPaddingValue=9999)))
    )
    assert np.allclose(found[~RIM], data[~RIM] * 1e-3)
    assert found[RIM].max() <= found[~RIM].min()


def test_frames_of_ct_have_their_own_transformation(tmp_path: Path) -> None:
    def edit(number: int, group: Dataset) -> None:
        group.PixelValueTransformationSequence = [
            make_item(RescaleSlope="2", RescaleIntercept=f"{-1000 - number}", RescaleType="HU")
        ]

    path = write_enhanced(tmp_path / "e.dcm", make_axial_grid(), make_values(), list(range(SHAPE[0])), edit)
    ds = dcmread(path)
    ds.Modality, ds.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2.1"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.save_as(path)
    volume = volumes.read([path]).volume
    assert volume.unit == "[hnsf'U]"
    assert np.array_equal(volume.data, make_values() * 2.0 - 1000 - np.arange(SHAPE[0])[:, None, None])
