"""An object in another encoding is the same object; with one value that differs it is another."""

from __future__ import annotations

import io
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import gdcm  # type: ignore[import-untyped]
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
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
from dicomnode import decoding
from dicomnode.datasets import sameness, samples
from dicomnode.decoding.pool import Pool
from dicomnode.errors import InputRefused, NodeBusy
from tests.peers.files import write_instance
from tests.peers.process import require_program
from tests.receivers import Receiver, an_instance, make_instances, receiver, start
from tests.sending import Encoded, associate, read_encoded, store_all

__all__ = ["an_instance", "receiver", "start"]  # fixtures

CONFLICT = 0xC111
PIXELS = np.random.default_rng(19).integers(0, 4000, (3, 32, 32), dtype=np.uint16)


def _write_object(path: Path, **attributes: object) -> Dataset:
    """Return an object with everything that encodings change: nested and private sequences, all widths, padding."""
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


def _save_again(path: Path, to: Path, syntax: UID) -> Path:
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(to, enforce_file_format=True)
    return to


def _compress(path: Path, to: Path, syntax: UID) -> Path:
    ds = dcmread(path)
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(to)
    return to


def _convert_by_dcmtk(program: str, *options: str) -> Callable[[Path, Path], Path]:
    def run(path: Path, to: Path) -> Path:
        subprocess.run([require_program(f"/usr/bin/{program}", "dcmtk"), *options, str(path), str(to)], check=True)
        return to

    return run


def _compress_by_gdcm(path: Path, to: Path) -> Path:
    """Return the file with its pixels compressed to JPEG 2000 by GDCM; its other elements stay."""
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


def _remove_derivation(path: Path, to: Path) -> Path:
    """Remove the Derivation Description that DCMTK adds: with it, the object would be another."""
    _convert_by_dcmtk("dcmcjpeg", "+e1")(path, to)
    ds = dcmread(to)
    del ds.DerivationDescription
    ds.save_as(to)
    return to


def _pad(path: Path, to: Path) -> Path:
    to.write_bytes(path.read_bytes() + b"\xfc\xff\xfc\xffOB\0\0\x08\0\0\0" + bytes(8))
    return to


_ENCODINGS: dict[str, Callable[[Path, Path], Path]] = {
    "implicit VR": lambda path, to: _save_again(path, to, ImplicitVRLittleEndian),
    "deflated": lambda path, to: _save_again(path, to, DeflatedExplicitVRLittleEndian),
    "RLE": lambda path, to: _compress(path, to, RLELossless),
    "JPEG-LS": lambda path, to: _compress(path, to, JPEGLSLossless),
    "JPEG 2000": _compress_by_gdcm,
    "trailing padding": _pad,
    "undefined lengths": _convert_by_dcmtk("dcmconv", "+te", "-e"),
    "group lengths": _convert_by_dcmtk("dcmconv", "+te", "+g"),
    "implicit VR by DCMTK": _convert_by_dcmtk("dcmconv", "+ti", "-e"),
    "big endian by DCMTK": _convert_by_dcmtk("dcmconv", "+tb"),
    "padding by DCMTK": _convert_by_dcmtk("dcmconv", "+p", "1024", "64"),
    "RLE by DCMTK": _convert_by_dcmtk("dcmcrle"),
    "JPEG-LS by DCMTK": _convert_by_dcmtk("dcmcjpls", "+el"),
    "JPEG by DCMTK": _remove_derivation,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _ENCODINGS)
def test_another_encoding_is_the_same_object(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.dcm"
    _write_object(path)
    other = _ENCODINGS[name](path, tmp_path / "b.dcm")
    assert other.read_bytes() != path.read_bytes()
    for first, second in ((path, other), (other, path)):
        assert sameness.is_same(first, second)


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
    ds = _write_object(path)
    _CHANGES[change](ds)
    ds.save_as(changed, enforce_file_format=True)
    other = _ENCODINGS[name](changed, tmp_path / "c.dcm")
    assert not sameness.is_same(path, other)


def test_colours_by_planes_and_by_a_reversible_transform_are_the_same(tmp_path: Path) -> None:
    path, other = tmp_path / "a.dcm", tmp_path / "b.dcm"
    ds = write_instance(path, rows=32)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = PIXELS.astype(np.uint8).tobytes()
    ds.save_as(path, enforce_file_format=True)
    for name in ("RLE", "JPEG 2000", "RLE by DCMTK", "JPEG by DCMTK"):
        _ENCODINGS[name](path, other)
        assert sameness.is_same(path, other)


@pytest.mark.slow
def test_the_same_object_in_another_encoding_is_a_success_and_the_first_bytes_stay(
    receiver: Receiver, tmp_path: Path
) -> None:
    _write_object(tmp_path / "a.dcm")
    names = ["implicit VR", "deflated", "RLE", "trailing padding", "big endian by DCMTK", "JPEG-LS by DCMTK"]
    first = read_encoded(tmp_path / "a.dcm")
    others = [read_encoded(_ENCODINGS[name](tmp_path / "a.dcm", tmp_path / f"{name}.dcm")) for name in names]
    answers = store_all(receiver.port, [first, *others, first], tmp_path / "out")
    assert [answer.Status for answer in answers] == [0] * 8
    (row,) = receiver.rows()
    assert receiver.data_set(row) == first.data_set
    assert receiver.rows(Quarantine) == []
    assert len(receiver.files()) == 1


def _send_at_once(receiver: Receiver, each: Encoded, path: Path, ae_title: str, senders: int) -> list[int]:
    """Return the statuses of one instance that several associations send at the same moment."""
    statuses: list[int] = []
    together = threading.Barrier(senders)
    each.save(path)

    def send() -> None:
        with associate(receiver.port, [each], ae_title=ae_title) as assoc:
            together.wait(30)
            statuses.append(assoc.send_c_store(path).Status)

    threads = [threading.Thread(target=send) for _ in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


@pytest.mark.slow
def test_the_same_object_under_another_title_at_once_is_a_success_each_time(receiver: Receiver, tmp_path: Path) -> None:
    sent = make_instances(tmp_path / "folder", 8)
    store_all(receiver.port, sent, tmp_path / "out", ae_title="FIRST")
    for number, each in enumerate(sent):
        assert _send_at_once(receiver, each, tmp_path / f"{number}.dcm", "SECOND", 4) == [0] * 4
    assert len(receiver.rows()) == len(receiver.files()) == 8
    assert [receiver.data_set(row) for row in receiver.rows()] == [each.data_set for each in sent]


def test_more_than_can_be_compared_is_another_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.dcm"
    _write_object(path)
    other = _ENCODINGS["RLE"](path, tmp_path / "b.dcm")
    for module, bound, least in ((sameness, "_MOST_TOKENS", 10), (samples, "_MOST_DECODED", 1000)):
        with monkeypatch.context() as bounded:
            bounded.setattr(module, bound, least)
            assert not sameness.is_same(path, other)


def _replace_pixels(path: Path, to: Path, stored: np.ndarray, more: bytes = b"") -> Path:
    ds = dcmread(path)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes() + more
    ds.save_as(to)
    return to


@pytest.mark.parametrize("name", ["RLE", "JPEG-LS", "JPEG-LS by DCMTK"])
def test_bits_beside_the_samples_and_pixels_of_no_frame_are_content(tmp_path: Path, name: str) -> None:
    _write_object(tmp_path / "a.dcm")
    plain = _replace_pixels(tmp_path / "a.dcm", tmp_path / "plain.dcm", PIXELS)
    overlaid = _replace_pixels(tmp_path / "a.dcm", tmp_path / "overlaid.dcm", PIXELS | 0x8000)
    longer = _replace_pixels(tmp_path / "a.dcm", tmp_path / "longer.dcm", PIXELS, PIXELS[0].tobytes())
    compressed = _ENCODINGS[name](plain, tmp_path / "compressed.dcm")
    assert sameness.is_same(compressed, plain)
    assert not sameness.is_same(compressed, overlaid)
    assert not sameness.is_same(compressed, longer)


@pytest.mark.parametrize("name", ["RLE", "JPEG-LS", "JPEG-LS by DCMTK", "JPEG 2000"])
def test_signed_samples_are_the_same_whoever_compressed_them(tmp_path: Path, name: str) -> None:
    _write_object(tmp_path / "a.dcm")
    signed = _replace_pixels(tmp_path / "a.dcm", tmp_path / "signed.dcm", PIXELS.astype(np.int16) - 2000)
    assert sameness.is_same(_ENCODINGS[name](signed, tmp_path / "b.dcm"), signed)


@pytest.mark.slow
def test_a_codestream_larger_than_its_header_is_not_decoded_to_compare_it(tmp_path: Path) -> None:
    _write_object(tmp_path / "a.dcm", NumberOfFrames=1, PixelData=PIXELS[0].tobytes())
    content = io.BytesIO()
    Image.new("L", (16_000, 16_000)).save(content, "JPEG2000", no_jp2=True)
    ds = dcmread(tmp_path / "a.dcm")
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([content.getvalue()])
    ds.save_as(tmp_path / "b.dcm")
    assert not sameness.is_same(tmp_path / "a.dcm", tmp_path / "b.dcm")
    with pytest.raises(InputRefused, match="is 16000 x 16000 x 1, its header announces 32 x 32 x 1"):
        samples.compare_samples(str(tmp_path / "a.dcm"), str(tmp_path / "b.dcm"))


def test_those_who_look_at_pictures_keep_no_sender_waiting(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_object(tmp_path / "a.dcm")
    sent = [read_encoded(tmp_path / "a.dcm"), read_encoded(_ENCODINGS["RLE"](tmp_path / "a.dcm", tmp_path / "b.dcm"))]
    monkeypatch.setattr(decoding, "general_pool", Pool(children=0, wait_s=0.05))
    answers = store_all(receiver.port, sent, tmp_path / "out")
    assert [answer.Status for answer in answers] == [0, 0]


def test_what_cannot_be_compared_now_leaves_nothing_and_can_be_sent_again(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_object(tmp_path / "a.dcm")
    first = read_encoded(tmp_path / "a.dcm")
    other = read_encoded(_ENCODINGS["RLE"](tmp_path / "a.dcm", tmp_path / "b.dcm"))

    def refuse(*_: object) -> bytes:
        raise NodeBusy("the node decodes as much as it may; ask again in a while")

    with monkeypatch.context() as busy:
        busy.setattr(decoding, "run_for_reception", refuse)
        answers = store_all(receiver.port, [first, other], tmp_path / "out")
    assert [answer.Status for answer in answers] == [0, NodeBusy.dicom_status]
    assert len(receiver.files()) == 1
    assert receiver.rows(Quarantine) == []
    (again,) = store_all(receiver.port, [other], tmp_path / "out")
    assert again.Status == 0
