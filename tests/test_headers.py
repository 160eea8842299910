"""Facts from the header of a file: equal to pydicom's, in bounded memory, with a clear message for broken input."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from db.studies import InstanceFacts
from dicomnode.datasets import headers
from dicomnode.datasets.encoding import OpenFile, Window, open_source, walk
from dicomnode.errors import CannotUnderstand
from tests.peers.files import write_instance
from tests.sending import Encoded, kit_files, read_encoded


def _read_facts(each: Encoded, path: Path) -> InstanceFacts:
    return headers.read(each.save(path))


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_the_facts_are_those_that_pydicom_reads(tmp_path: Path, syntax: UID) -> None:
    path = tmp_path / "a.dcm"
    ds = write_instance(
        path,
        PatientName="Müller^Jörg=ミュラー",
        StudyDescription="Schädel",
        SliceThickness="1.5",
        ImageType=["ORIGINAL", "PRIMARY", "M"],
        RequestAttributesSequence=Sequence([Dataset()]),
    )
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True) if syntax != ExplicitVRBigEndian else _save_big_endian(ds, path)
    facts = headers.read(path)
    assert (facts.study_uid, facts.series_uid) == (ds.StudyInstanceUID, ds.SeriesInstanceUID)
    assert (facts.sop_instance_uid, facts.sop_class_uid) == (ds.SOPInstanceUID, ds.SOPClassUID)
    assert facts.transfer_syntax_uid == syntax
    assert (facts.patient_name, facts.patient_id) == (str(ds.PatientName), "PHANTOM")
    assert (facts.study_description, facts.modality, facts.study_date) == ("Schädel", "MR", "20260101")
    attributes = dict(facts.attributes)
    assert attributes["SliceThickness"] == 1.5
    assert attributes["ImageType"] == ["ORIGINAL", "PRIMARY", "M"]
    assert attributes["Rows"] == 16
    assert "PixelData" not in attributes
    assert "RequestAttributesSequence" not in attributes
    assert json.loads(json.dumps(attributes)) == attributes


def _save_big_endian(ds: Dataset, path: Path) -> None:
    ds.PixelData = struct.pack(">256H", *struct.unpack("<256H", ds.PixelData))
    ds.save_as(path, enforce_file_format=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pydicom warns about values in some of these files
def test_every_valid_file_of_the_kit_gives_its_facts(kit: Path) -> None:
    for path in kit_files(kit):
        ds = dcmread(path, stop_before_pixels=True)
        if not ds.get("StudyInstanceUID") or path.name == "MR_truncated.dcm":
            with pytest.raises(CannotUnderstand):
                headers.read(path)
            continue
        facts = headers.read(path)
        assert facts.sop_instance_uid == ds.SOPInstanceUID, path.name
        assert facts.patient_name == str(ds.get("PatientName", "")), path.name
        json.dumps(dict(facts.attributes), allow_nan=False)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.6, 0.9, 0.98])
def test_a_truncated_data_set_is_not_understood(tmp_path: Path, syntax: UID, keep: float) -> None:
    path = tmp_path / "a.dcm"
    ds = write_instance(path)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    original = read_encoded(path)
    with pytest.raises(CannotUnderstand):
        _read_facts(original.with_changes(data_set=original.data_set[: int(len(original.data_set) * keep)]), path)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 4000, b"\xff" * 4000, os.urandom(4000), b"GIF89a" * 500])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_garbage_is_not_understood(tmp_path: Path, garbage: bytes, syntax: UID) -> None:
    with pytest.raises(CannotUnderstand):
        _read_facts(Encoded("1.2.840.10008.5.1.4.1.1.4", "1.2.3", syntax, garbage), tmp_path / "a.dcm")


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("fault", ["absent", "empty", "no UID"])
def test_a_missing_uid_is_named(tmp_path: Path, keyword: str, fault: str) -> None:
    path = tmp_path / "a.dcm"
    write_instance(path, StudyDescription="x")
    original = read_encoded(path)
    ds = dcmread(path)
    value = str(ds[keyword].value)
    padded = value + "\0" * (len(value) % 2)
    tag = struct.pack("<HH", ds[keyword].tag.group, ds[keyword].tag.element)
    element = tag + b"UI" + struct.pack("<H", len(padded)) + padded.encode()
    replacement = {"absent": b"", "empty": tag + b"UI\0\0", "no UID": tag + b"UI\4\0what"}[fault]
    with pytest.raises(CannotUnderstand, match=keyword):
        _read_facts(original.with_changes(data_set=original.data_set.replace(element, replacement)), path)


def test_a_wrong_character_set_does_not_cost_the_instance(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_instance(path, PatientName="Test")
    each = read_encoded(path)
    broken = each.data_set.replace(b"ISO_IR 192", b"NO SUCH IR").replace(b"Test", b"T\xff\xfet")
    assert _read_facts(each.with_changes(data_set=broken), path).patient_name.startswith("T")


def test_values_that_are_no_numbers_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_instance(path, StudyDescription="x")
    each = read_encoded(path)
    element = b"\x18\0\x50\0DS\4\0"
    at = each.data_set.index(b"\x20\0\x0d\0UI")
    extended = each.with_changes(data_set=each.data_set[:at] + element + b"thin" + each.data_set[at:])
    assert dict(_read_facts(extended, path).attributes)["SliceThickness"] == "thin"


def test_sequences_and_encapsulated_pixels_of_undefined_length_are_walked_over(tmp_path: Path) -> None:
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x08\0\x60\0CS\2\0MR" + b"\xfe\xff\x0d\xe0\0\0\0\0"
    sequence = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + item * 2 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    pixels = b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0"
    pixels += b"\xfe\xff\x00\xe0\4\0\0\0abcd" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    path = tmp_path / "bytes"
    path.write_bytes(sequence + pixels)
    with path.open("rb") as file:
        source = Window(OpenFile(file.fileno()), 0, len(sequence + pixels))
        found = [(element.tag, element.vr) for element in walk(source, ExplicitVRLittleEndian)]
    assert found == [(0x00081140, "SQ"), (0x7FE00010, "OB")]


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    level = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(level * 5000)
    with path.open("rb") as file, pytest.raises(CannotUnderstand, match="nested"):
        list(walk(Window(OpenFile(file.fileno()), 0, len(level) * 5000), ExplicitVRLittleEndian))


def test_a_large_object_is_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    write_instance(path, frames_bytes=120_000_000)
    tracemalloc.start()
    try:
        headers.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_bomb_of_zeros_inflates_in_bounded_memory(tmp_path: Path) -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = BytesIO()
    for _ in range(200):
        bomb.write(deflate.compress(bytes(1 << 20)))
    bomb.write(deflate.flush())
    path = tmp_path / "bomb"
    path.write_bytes(bomb.getvalue())
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            source = open_source(OpenFile(file.fileno()), 0, len(bomb.getvalue()), DeflatedExplicitVRLittleEndian)
            assert source.size == 200 << 20
        assert tracemalloc.get_traced_memory()[1] < 120_000_000
    finally:
        tracemalloc.stop()


def test_a_leading_zero_in_a_uid_is_common_and_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_instance(path, study_uid=str(generate_uid()))
    each = read_encoded(path)
    study = dcmread(path).StudyInstanceUID
    odd = study[:-3] + ".01"
    facts = _read_facts(each.with_changes(data_set=each.data_set.replace(study.encode(), odd.encode())), path)
    assert facts.study_uid == odd
