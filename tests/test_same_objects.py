"""The same object in another encoding is the same object; with one value that differs it is another."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import gdcm  # type: ignore[import-untyped]
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from db.models import Quarantine
from dicomnode.datasets import sameness
from tests.peers.files import write_instance
from tests.peers.process import installed
from tests.receivers import Receiver, an_instance, instances, receiver, start
from tests.sending import Encoded, encoded, sender_to, store_all

__all__ = ["an_instance", "receiver", "start"]  # fixtures

CONFLICT = 0xC111
PIXELS = np.random.default_rng(19).integers(0, 4000, (3, 32, 32), dtype=np.uint16)


def _write(path: Path, **attributes: object) -> Dataset:
    """An object with what encodings differ in: nested and private sequences, numbers of every width, padding."""
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "123", "odd"
    item = Dataset()
    item.ConceptNameCodeSequence = Sequence([inner])
    item.RequestedProcedureID = "A"
    ds = write_instance(
        path,
        RequestAttributesSequence=Sequence([item, Dataset()]),
        ReferencedImageSequence=Sequence([]),
        StudyDescription="odd",
        SmallestImagePixelValue=7,
        FrameIncrementPointer=0x00181063,
        SimpleFrameList=[1, 70000],
        NumberOfFrames=3,
    )
    ds.Rows = ds.Columns = 32
    ds.PixelData = PIXELS.tobytes()
    block = ds.private_block(0x0009, "TEST 1", create=True)
    block.add_new(1, "LO", "private text")
    block.add_new(2, "SQ", [inner])
    block.add_new(3, "FD", 1.25)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return ds


def _saved(path: Path, to: Path, syntax: UID) -> Path:
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(to, enforce_file_format=True)
    return to


def _compressed(path: Path, to: Path, syntax: UID) -> Path:
    ds = dcmread(path)
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(to)
    return to


def _by_dcmtk(program: str, *options: str) -> Callable[[Path, Path], Path]:
    def run(path: Path, to: Path) -> Path:
        subprocess.run([installed(f"/usr/bin/{program}", "dcmtk"), *options, str(path), str(to)], check=True)
        return to

    return run


def _by_gdcm(path: Path, to: Path) -> Path:
    """The file with the pixels that GDCM makes of it in JPEG 2000; its other elements stay."""
    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEG2000Lossless))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(to))
    assert writer.Write()
    ds, made = dcmread(path), dcmread(to)
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds["PixelData"] = made["PixelData"]
    ds.PhotometricInterpretation = made.PhotometricInterpretation
    ds.save_as(to, enforce_file_format=True)
    return to


def _in_jpeg(path: Path, to: Path) -> Path:
    """DCMTK adds a Derivation Description, with which it would be another object."""
    _by_dcmtk("dcmcjpeg", "+e1")(path, to)
    ds = dcmread(to)
    del ds.DerivationDescription
    ds.save_as(to)
    return to


def _padded(path: Path, to: Path) -> Path:
    to.write_bytes(path.read_bytes() + b"\xfc\xff\xfc\xffOB\0\0\x08\0\0\0" + bytes(8))
    return to


_ENCODINGS: dict[str, Callable[[Path, Path], Path]] = {
    "implicit VR": lambda path, to: _saved(path, to, ImplicitVRLittleEndian),
    "deflated": lambda path, to: _saved(path, to, DeflatedExplicitVRLittleEndian),
    "RLE": lambda path, to: _compressed(path, to, RLELossless),
    "JPEG-LS": lambda path, to: _compressed(path, to, JPEGLSLossless),
    "JPEG 2000": _by_gdcm,
    "trailing padding": _padded,
    "undefined lengths": _by_dcmtk("dcmconv", "+te", "-e"),
    "group lengths": _by_dcmtk("dcmconv", "+te", "+g"),
    "implicit VR by DCMTK": _by_dcmtk("dcmconv", "+ti", "-e"),
    "big endian by DCMTK": _by_dcmtk("dcmconv", "+tb"),
    "padding by DCMTK": _by_dcmtk("dcmconv", "+p", "1024", "64"),
    "RLE by DCMTK": _by_dcmtk("dcmcrle"),
    "JPEG-LS by DCMTK": _by_dcmtk("dcmcjpls", "+el"),
    "JPEG by DCMTK": _in_jpeg,
}


@pytest.mark.parametrize("name", _ENCODINGS)
def test_another_encoding_is_the_same_object(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.dcm"
    _write(path)
    other = _ENCODINGS[name](path, tmp_path / "b.dcm")
    assert other.read_bytes() != path.read_bytes()
    for first, second in ((path, other), (other, path)):
        with first.open("rb") as one, second.open("rb") as two:
            assert sameness.is_same(one, two)


_CHANGES: dict[str, Callable[[Dataset], None]] = {
    "a value": lambda ds: setattr(ds, "StudyDescription", "even"),
    "an empty value for none": lambda ds: setattr(ds, "PatientComments", ""),
    "an element less": lambda ds: ds.__delitem__("StudyDescription"),
    "a value in an item": lambda ds: setattr(ds.RequestAttributesSequence[0], "RequestedProcedureID", "B"),
    "an item less": lambda ds: ds.RequestAttributesSequence.pop(),
    "an item's element in the next item": lambda ds: ds.RequestAttributesSequence.reverse(),
    "one pixel": lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2] + b"\0\1"),
    "a private number": lambda ds: setattr(ds[0x00091003], "value", 1.5),
    "the photometric interpretation": lambda ds: setattr(ds, "PhotometricInterpretation", "MONOCHROME1"),
    "a number more": lambda ds: setattr(ds, "SimpleFrameList", [1, 70000, 0]),
}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("name", ["implicit VR", "RLE", "undefined lengths"])
def test_other_content_is_another_object_in_every_encoding(tmp_path: Path, change: str, name: str) -> None:
    path, changed = tmp_path / "a.dcm", tmp_path / "b.dcm"
    ds = _write(path)
    _CHANGES[change](ds)
    ds.save_as(changed, enforce_file_format=True)
    other = _ENCODINGS[name](changed, tmp_path / "c.dcm")
    with path.open("rb") as one, other.open("rb") as two:
        assert not sameness.is_same(one, two)


def test_colours_by_planes_and_by_a_reversible_transform_are_the_same(tmp_path: Path) -> None:
    path, other = tmp_path / "a.dcm", tmp_path / "b.dcm"
    ds = write_instance(path, rows=32)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = PIXELS.astype(np.uint8).tobytes()
    ds.save_as(path, enforce_file_format=True)
    for name in ("RLE", "JPEG 2000", "RLE by DCMTK", "JPEG by DCMTK"):
        _ENCODINGS[name](path, other)
        with path.open("rb") as one, other.open("rb") as two:
            assert sameness.is_same(one, two)


def test_the_same_object_in_another_encoding_is_a_success_and_the_first_bytes_stay(
    receiver: Receiver, tmp_path: Path
) -> None:
    _write(tmp_path / "a.dcm")
    names = ["implicit VR", "deflated", "RLE", "trailing padding", "big endian by DCMTK", "JPEG-LS by DCMTK"]
    first = encoded(tmp_path / "a.dcm")
    others = [encoded(_ENCODINGS[name](tmp_path / "a.dcm", tmp_path / f"{name}.dcm")) for name in names]
    answers = store_all(receiver.port, [first, *others, first], tmp_path / "out")
    assert [answer.Status for answer in answers] == [0] * 8
    (row,) = receiver.rows()
    assert receiver.data_set(row) == first.data_set
    assert receiver.rows(Quarantine) == []
    assert len(receiver.files()) == 1


def _send_at_once(receiver: Receiver, each: Encoded, path: Path, ae_title: str, senders: int) -> list[int]:
    """The statuses of one instance that several associations send at the same moment."""
    statuses: list[int] = []
    together = threading.Barrier(senders)
    each.save(path)

    def send() -> None:
        with sender_to(receiver.port, [each], ae_title=ae_title) as assoc:
            together.wait(30)
            statuses.append(assoc.send_c_store(path).Status)

    threads = [threading.Thread(target=send) for _ in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def test_the_same_object_under_another_title_at_once_is_a_success_each_time(receiver: Receiver, tmp_path: Path) -> None:
    sent = instances(tmp_path / "folder", 8)
    store_all(receiver.port, sent, tmp_path / "out", ae_title="FIRST")
    for number, each in enumerate(sent):
        assert _send_at_once(receiver, each, tmp_path / f"{number}.dcm", "SECOND", 4) == [0] * 4
    assert len(receiver.rows()) == len(receiver.files()) == 8
    assert [receiver.data_set(row) for row in receiver.rows()] == [each.data_set for each in sent]


def test_more_than_can_be_compared_is_another_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.dcm"
    _write(path)
    other = _ENCODINGS["RLE"](path, tmp_path / "b.dcm")
    for bound, least in (("_MOST_TOKENS", 10), ("_MOST_DECODED", 1000)):
        with monkeypatch.context() as bounded, path.open("rb") as one, other.open("rb") as two:
            bounded.setattr(sameness, bound, least)
            assert not sameness.is_same(one, two)
