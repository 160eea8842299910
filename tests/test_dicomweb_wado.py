"""WADO-RS: instances are returned as stored or as the client accepts them; held results are not returned."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLossless,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
)

from tests.findings import grid, make_findings, write_objects
from tests.peers.files import write_instance, write_result
from tests.peers.process import require_program
from tests.web_node import Web, web

pytestmark = pytest.mark.slow

__all__ = ["web"]

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
ROOT = f"/dicom-web/studies/{STUDY}"
DICOM = 'multipart/related; type="application/dicom"'
OCTETS = 'multipart/related; type="application/octet-stream"'


def store_instance(web: Web, folder: Path, **attributes: Any) -> tuple[Dataset, str]:
    """Store one instance; return it with its address."""
    ds = write_instance(folder / "one.dcm", **attributes)
    assert web.store([folder / "one.dcm"]).status_code == 200
    return ds, f"{ROOT}/series/{SERIES}/instances/{ds.SOPInstanceUID}"


def store_multiframe(web: Web, folder: Path, syntax: str = ExplicitVRLittleEndian) -> tuple[np.ndarray[Any, Any], str]:
    """Store three frames of 5 by 7; return them with their address."""
    values = np.random.default_rng(5).integers(0, 4096, (3, 5, 7)).astype(np.uint16)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    path = folder / "frames.dcm"
    ds = write_instance(
        path, sop_class_uid=MultiFrameGrayscaleWordSecondaryCaptureImageStorage, NumberOfFrames=3, Rows=5, Columns=7,
        PixelData=values.astype(f"{order}u2").tobytes() + b"", transfer_syntax_uid=ExplicitVRLittleEndian,
    )  # fmt: skip
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
        ds.save_as(path, enforce_file_format=True)
    elif syntax == JPEGLossless:
        program = require_program("/usr/bin/dcmcjpeg", "dcmtk")
        subprocess.run([program, "+un", str(path), str(path)], check=True, capture_output=True)
    elif syntax != ExplicitVRLittleEndian:
        ds.file_meta.TransferSyntaxUID = UID(syntax)
        ds.save_as(
            path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=order == "<", enforce_file_format=True
        )
    assert web.store([path]).status_code == 200
    return values, f"{ROOT}/series/{SERIES}/instances/{ds.SOPInstanceUID}"


def split_parts(answer: httpx.Response) -> list[tuple[str, bytes]]:
    """Return Content-Type and content of every part."""
    boundary = answer.headers["content-type"].split("boundary=")[1].encode()
    pieces = answer.content.split(b"--" + boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    found = []
    for piece in pieces[1:-1]:
        head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        kind = next(line for line in head.decode().split("\r\n") if line.lower().startswith("content-type:"))
        found.append((kind.partition(":")[2].strip(), content[:-2]))
    return found


@pytest.mark.parametrize("level", ["", f"/series/{SERIES}"])
def test_a_study_or_series_comes_whole(web: Web, tmp_path: Path, level: str) -> None:
    sent = [write_instance(tmp_path / f"{number}.dcm", InstanceNumber=number) for number in range(4)]
    web.store(sorted(tmp_path.glob("?.dcm")))
    answer = web.get(ROOT + level, DICOM)
    assert answer.status_code == 200
    received = [dcmread(io.BytesIO(content)) for _, content in split_parts(answer)]
    assert {ds.SOPInstanceUID for ds in received} == {ds.SOPInstanceUID for ds in sent}
    assert all(ds.PixelData == sent[0].PixelData for ds in received)


def test_dicomweb_client_reads_what_was_stored(web: Web, tmp_path: Path) -> None:
    ds, _ = store_instance(web, tmp_path)
    client = web.dicomweb
    assert client.retrieve_instance(STUDY, SERIES, ds.SOPInstanceUID) == ds
    assert [each.SOPInstanceUID for each in client.iter_series(STUDY, SERIES)] == [ds.SOPInstanceUID]
    metadata = client.retrieve_instance_metadata(STUDY, SERIES, ds.SOPInstanceUID)
    read = Dataset.from_json(metadata, lambda tag, vr, uri: bytes(client.retrieve_bulkdata(uri)[0]))
    assert read.PixelData == ds.PixelData
    assert read.PatientName == ds.PatientName
    (frame,) = client.retrieve_instance_frames(STUDY, SERIES, ds.SOPInstanceUID, [1])
    assert frame == ds.PixelData


def test_one_instance_comes_without_envelope_where_that_is_asked_for(web: Web, tmp_path: Path) -> None:
    ds, url = store_instance(web, tmp_path)
    answer = web.get(url, "application/dicom")
    assert answer.headers["content-type"].startswith("application/dicom;")
    assert dcmread(io.BytesIO(answer.content)) == ds
    assert web.get(ROOT, "application/dicom").status_code == 200
    write_instance(tmp_path / "second.dcm")
    web.store([tmp_path / "second.dcm"])
    assert web.get(ROOT, "application/dicom").status_code == 406


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLossless])
def test_instances_come_in_explicit_little_endian_unless_told_otherwise(web: Web, tmp_path: Path, syntax: str) -> None:
    values, url = store_multiframe(web, tmp_path, syntax)
    ((kind, content),) = split_parts(web.get(url, DICOM))
    assert kind == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"
    received = dcmread(io.BytesIO(content))
    assert received.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(received.pixel_array, values)
    assert url.endswith(received.SOPInstanceUID)


@pytest.mark.parametrize("accept", ["*", RLELossless])
def test_compressed_instances_come_as_stored_where_that_is_taken(web: Web, tmp_path: Path, accept: str) -> None:
    _, url = store_multiframe(web, tmp_path, RLELossless)
    ((kind, content),) = split_parts(web.get(url, f"{DICOM}; transfer-syntax={accept}"))
    assert kind == f"application/dicom; transfer-syntax={RLELossless}"
    assert content == (web.config.spool_dir / web.rows()[0].relative_path).read_bytes()


@pytest.mark.parametrize(
    "accept",
    [f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.4.90", "image/jpeg", "application/json", f"{DICOM};q=0",
     'multipart/related; type="application/dicom+xml"'],
)  # fmt: skip
def test_what_cannot_be_sent_so_is_406(web: Web, tmp_path: Path, accept: str) -> None:
    _, url = store_instance(web, tmp_path)
    assert web.get(url, accept).status_code == 406


def test_the_query_may_say_what_is_accepted(web: Web, tmp_path: Path) -> None:
    _, url = store_instance(web, tmp_path)
    assert web.get(f"{url}?accept=application/dicom").headers["content-type"].startswith("application/dicom;")


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLossless]
)
def test_frames_come_decoded(web: Web, tmp_path: Path, syntax: str) -> None:
    values, url = store_multiframe(web, tmp_path, syntax)
    received = split_parts(web.get(f"{url}/frames/3,1", OCTETS))
    assert [kind for kind, _ in received] == [f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"] * 2
    assert [content for _, content in received] == [values[2].tobytes(), values[0].tobytes()]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ('multipart/related; type="image/dicom-rle"', "image/dicom-rle"),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", "application/octet-stream"),
        (f'{OCTETS}; transfer-syntax="{RLELossless}"', "application/octet-stream"),
        ('multipart/related; type="image/*"', "image/dicom-rle"),
    ],
)
def test_compressed_frames_come_as_stored_where_that_is_taken(web: Web, tmp_path: Path, accept: str, kind: str) -> None:
    _, url = store_multiframe(web, tmp_path, RLELossless)
    ds = dcmread(tmp_path / "frames.dcm")

    ((received, content),) = split_parts(web.get(f"{url}/frames/2", accept))
    assert received == f"{kind}; transfer-syntax={RLELossless}"
    assert content == get_frame(ds.PixelData, 1, number_of_frames=3)


def test_one_frame_comes_without_envelope_where_that_is_asked_for(web: Web, tmp_path: Path) -> None:
    values, url = store_multiframe(web, tmp_path)
    assert web.get(f"{url}/frames/2", "application/octet-stream").content == values[1].tobytes()
    assert web.get(f"{url}/frames/1,2", "application/octet-stream").status_code == 406


@pytest.mark.parametrize(
    ("frames", "status"),
    [("0", 400), ("4", 404), ("x", 400), ("1,,2", 400), ("-1", 400), ("1,99999999", 400), ("1,4", 404)],
)
def test_frames_that_are_none_are_refused(web: Web, tmp_path: Path, frames: str, status: int) -> None:
    _, url = store_multiframe(web, tmp_path)
    assert web.get(f"{url}/frames/{frames}", OCTETS).status_code == status


def test_compressed_frames_of_another_kind_are_406(web: Web, tmp_path: Path) -> None:
    _, url = store_multiframe(web, tmp_path)
    assert web.get(f"{url}/frames/1", 'multipart/related; type="image/jp2"').status_code == 406


def test_bits_of_a_frame_begin_at_its_first_bit(web: Web, tmp_path: Path) -> None:
    phantom_findings = make_findings(grid("axial", slices=4, rows=7, columns=9))  # 63 bits a frame
    results = write_objects(phantom_findings)
    store_instance(web, tmp_path, StudyInstanceUID=results[0].StudyInstanceUID)
    web.add_results(results)
    seg = next(ds for ds in results if ds.Modality == "SEG")
    for number, mask in enumerate(seg.pixel_array.reshape(-1, 7, 9), 1):
        (frame,) = web.dicomweb.retrieve_instance_frames(
            seg.StudyInstanceUID,
            seg.SeriesInstanceUID,
            seg.SOPInstanceUID,
            [number],
            media_types=("application/octet-stream",),
        )
        bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:63].reshape(7, 9)
        assert np.array_equal(bits, mask)


def test_maps_of_floats_come_as_floats(web: Web, tmp_path: Path) -> None:
    results = write_objects(make_findings(grid("axial", rows=8, columns=8)))
    store_instance(web, tmp_path, StudyInstanceUID=results[0].StudyInstanceUID)
    web.add_results(results)
    pm = next(ds for ds in results if "FloatPixelData" in ds)
    url = f"/dicom-web/studies/{pm.StudyInstanceUID}/series/{pm.SeriesInstanceUID}/instances/{pm.SOPInstanceUID}"
    ((_, content),) = split_parts(web.get(f"{url}/frames/1", OCTETS))
    assert content == pm.FloatPixelData[: 8 * 8 * 4]
    (metadata,) = web.get(f"{url}/metadata").json()
    assert metadata["7FE00008"]["BulkDataURI"].endswith(f"{url}/bulkdata/7FE00008")


def test_metadata_say_everything_but_the_bulk(web: Web, tmp_path: Path) -> None:
    item = Dataset()
    item.CodeValue, item.EncapsulatedDocument = "1", b"\1\2" * 2000
    ds, url = store_instance(
        web, tmp_path, DerivationCodeSequence=[item], ICCProfile=bytes(4000), SmallestImagePixelValue=3,
        SpectroscopyAcquisitionDataColumns=7, PatientWeight="70.5", WindowCenter=["1", "2"],
    )  # fmt: skip
    answer = web.get(f"{url}/metadata", "application/dicom+json")
    assert answer.headers["content-type"] == "application/dicom+json"
    (metadata,) = answer.json()
    assert "00020010" not in metadata
    assert metadata["00282000"]["BulkDataURI"] == f"{web.address}{url}/bulkdata/00282000"
    nested = metadata["00089215"]["Value"][0]
    assert nested["00080100"]["Value"] == ["1"]
    content = split_parts(web.client.get(nested["00420011"]["BulkDataURI"]))[0][1]
    assert content == item.EncapsulatedDocument
    received = Dataset.from_json(
        json.dumps({tag: value for tag, value in metadata.items() if "BulkDataURI" not in value and tag != "00089215"})
    )
    for element in received:
        assert element.value == ds[element.tag].value, element.keyword
    assert len(metadata) == len(ds)


def test_pixels_are_bulk_data_too(web: Web, tmp_path: Path) -> None:
    values, url = store_multiframe(web, tmp_path)
    (metadata,) = web.get(f"{url}/metadata").json()
    ((_, content),) = split_parts(web.client.get(metadata["7FE00010"]["BulkDataURI"]))
    assert content[: values.nbytes] == values.tobytes()
    assert web.dicomweb.retrieve_bulkdata(metadata["7FE00010"]["BulkDataURI"])[0] == content
    assert web.get(f"{url}/bulkdata/7FE00010", "application/octet-stream").content == content


def test_compressed_pixels_are_bulk_by_frame(web: Web, tmp_path: Path) -> None:
    values, url = store_multiframe(web, tmp_path, RLELossless)
    received = split_parts(web.get(f"{url}/bulkdata/7FE00010"))
    assert b"".join(content for _, content in received) == values.tobytes()


@pytest.mark.parametrize(
    "place", ["00100010", "7FE0", "00089215/0/00420011", "00089215/9/00080100", "..%2f..%2fetc/passwd", "x", ""]
)
def test_bulk_that_is_none_is_404(web: Web, tmp_path: Path, place: str) -> None:
    _, url = store_instance(web, tmp_path)
    assert web.get(f"{url}/bulkdata/{place}").status_code == 404


def test_a_broken_value_hides_no_other(web: Web, tmp_path: Path) -> None:
    path = tmp_path / "broken.dcm"
    ds = write_instance(path, PatientWeight="70.5", SliceThickness="3.25", RescaleSlope="1.5")
    content = path.read_bytes().replace(b"70.5", b"abc ").replace(b"3.25", b"nan ")
    path.write_bytes(content)
    assert web.store([path]).status_code == 200
    answer = web.get(f"{ROOT}/metadata")
    (metadata,) = answer.json()
    assert metadata["00101030"] == {"vr": "DS"}
    assert metadata["00180050"] == {"vr": "DS"}
    assert metadata["00281053"]["Value"] == [1.5]
    assert metadata["00080018"]["Value"] == [ds.SOPInstanceUID]


def decode_picture(answer: httpx.Response) -> np.ndarray[Any, Any]:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_a_picture_shows_the_window_that_is_asked_for(web: Web, tmp_path: Path) -> None:
    values, url = store_multiframe(web, tmp_path)
    answer = web.get(f"{url}/frames/2/rendered?window=2048,4096,linear-exact", "image/png")
    assert answer.headers["content-type"] == "image/png"
    assert np.abs(decode_picture(answer) - values[1] / 4096 * 255).max() <= 1
    low = decode_picture(web.get(f"{url}/frames/2/rendered?window=100,2,linear", "image/png"))
    assert np.array_equal(low == 255, values[1] >= 100)
    sigmoid = decode_picture(web.get(f"{url}/frames/2/rendered?window=2048,1000,sigmoid", "image/png"))
    assert np.abs(sigmoid - 255 / (1 + np.exp(-4 * (values[1] - 2048.0) / 1000))).max() <= 1


def test_a_picture_takes_the_window_and_the_slope_of_its_header(web: Web, tmp_path: Path) -> None:
    ds, url = store_instance(
        web, tmp_path, RescaleSlope="2", RescaleIntercept="-10", RescaleType="US", WindowCenter="255",
        WindowWidth="256", VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    expected = np.clip((2.0 * ds.pixel_array - 10 - 255) / 256 + 0.5, 0, 1) * 255
    assert np.abs(decode_picture(web.get(f"{url}/rendered", "image/png")) - expected).max() <= 1


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (7, 255)])
def test_an_image_of_one_value_is_black_where_that_is_nothing(
    web: Web, tmp_path: Path, value: int, expected: int
) -> None:
    """Constant frames occur in empty segmentations, whose picture was once as grey as that of a full one."""
    _, url = store_instance(
        web, tmp_path, BitsAllocated=8, BitsStored=8, HighBit=7, Rows=6, Columns=4, PixelData=bytes([value]) * 24
    )
    assert np.all(decode_picture(web.get(f"{url}/rendered", "image/png")) == expected)


def test_inverted_grey_and_colours_are_drawn_as_meant(web: Web, tmp_path: Path) -> None:
    _, url = store_instance(
        web, tmp_path, PhotometricInterpretation="MONOCHROME1", WindowCenter="128", WindowWidth="256"
    )
    inverted = decode_picture(web.get(f"{url}/rendered", "image/png"))
    assert inverted[0, 0] > inverted[-1, -1]
    rgb = np.random.default_rng(1).integers(0, 255, (6, 4, 3)).astype(np.uint8)
    _, url = store_instance(
        web, tmp_path, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8,
        BitsStored=8, HighBit=7, Rows=6, Columns=4, PixelData=rgb.tobytes(),
    )  # fmt: skip
    assert np.array_equal(decode_picture(web.get(f"{url}/rendered", "image/png")), rgb)


def test_pictures_are_jpeg_unless_told_otherwise_and_of_the_size_asked_for(web: Web, tmp_path: Path) -> None:
    _, url = store_multiframe(web, tmp_path)
    answer = web.get(f"{url}/rendered?viewport=70,500&quality=50")
    assert answer.headers["content-type"] == "image/jpeg"
    assert decode_picture(answer).shape == (50, 70)


@pytest.mark.parametrize(
    "query",
    [
        "window=1",
        "window=1,0",
        "window=1,2,cubic",
        "window=a,b",
        "viewport=0,1",
        "viewport=9999999,1",
        "quality=0",
        "quality=x",
    ],
)
def test_a_picture_that_cannot_be_asked_for_so_is_400(web: Web, tmp_path: Path, query: str) -> None:
    _, url = store_multiframe(web, tmp_path)
    assert web.get(f"{url}/rendered?{query}").status_code == 400


def test_a_study_a_series_and_an_instance_have_a_thumbnail(web: Web, tmp_path: Path) -> None:
    _, url = store_multiframe(web, tmp_path)
    for where in (ROOT, f"{ROOT}/series/{SERIES}", url, f"{url}/frames/1"):
        assert max(decode_picture(web.get(f"{where}/thumbnail")).shape) == 128


def test_what_has_no_pixels_has_no_picture(web: Web, tmp_path: Path) -> None:
    path = tmp_path / "sr.dcm"
    ds = write_instance(path)
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated"):
        del ds[keyword]
    ds.save_as(path, enforce_file_format=True)
    web.store([path])
    url = f"{ROOT}/series/{SERIES}/instances/{ds.SOPInstanceUID}"
    assert web.get(f"{url}/rendered").status_code == 406
    assert web.get(f"{url}/thumbnail").status_code == 404
    assert web.get(f"{url}/frames/1").status_code == 404
    assert web.get(f"{url}/rendered", "application/dicom").status_code == 406


def test_a_document_comes_as_its_pdf(web: Web, tmp_path: Path) -> None:
    content = b"%PDF-1.7 " + bytes(2000)
    _, url = store_instance(
        web,
        tmp_path,
        sop_class_uid=EncapsulatedPDFStorage,
        EncapsulatedDocument=content,
        MIMETypeOfEncapsulatedDocument="application/pdf",
    )
    answer = web.get(f"{url}/rendered", "application/pdf")
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.content.startswith(content)
    assert web.get(f"{url}/bulkdata/00420011?accept=application/pdf").content.startswith(content)


def test_held_results_come_at_the_root_for_reviewing_only(web: Web, tmp_path: Path) -> None:
    results = write_objects(make_findings(grid("axial", rows=8, columns=8)))
    store_instance(web, tmp_path, StudyInstanceUID=results[0].StudyInstanceUID)
    web.add_results(results, held=True)
    path = f"studies/{results[0].StudyInstanceUID}/series/{results[0].SeriesInstanceUID}"
    for resource in ("", "/metadata", "/thumbnail", f"/instances/{results[0].SOPInstanceUID}/frames/1"):
        assert web.get(f"/dicom-web/{path}{resource}").status_code == 404
        assert web.get(f"/review/dicom-web/{path}{resource}").status_code == 200


def test_results_leave_only_with_every_mark(web: Web, tmp_path: Path) -> None:
    marked = write_result(tmp_path / "result.dcm")
    unmarked = write_result(tmp_path / "unmarked.dcm")
    del unmarked.SyntheticData
    store_instance(web, tmp_path)
    web.add_results([marked, unmarked])
    root = f"/dicom-web/studies/{marked.StudyInstanceUID}"
    assert web.get(f"{root}/series/{marked.SeriesInstanceUID}").status_code == 200
    assert web.get(f"{root}/series/{unmarked.SeriesInstanceUID}").status_code == 404
    uids = [dcmread(io.BytesIO(content)).SOPInstanceUID for _, content in split_parts(web.get(root))]
    assert marked.SOPInstanceUID in uids
    assert unmarked.SOPInstanceUID not in uids


@pytest.mark.parametrize("path", [
    "/studies/1.2.3", "/studies/1.2.3/metadata", f"/studies/{STUDY}/series/1.2",
    f"/studies/{STUDY}/series/{SERIES}/instances/1.2",
    f"/studies/{STUDY}/series/{SERIES}/instances/1.2/frames/1", "/studies/*", "/studies/%2e%2e", "/studies/'%20or%201",
    f"/studies/{STUDY}%5c1.2", f"/studies/{'1' * 65}", "/studies/1.2.3/rendered", "/studies/1.2/thumbnail",
])  # fmt: skip
def test_what_is_not_held_is_404(web: Web, tmp_path: Path, path: str) -> None:
    store_instance(web, tmp_path)
    answer = web.get(f"/dicom-web{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_file_that_is_gone_is_said_without_a_name(web: Web, tmp_path: Path) -> None:
    _, url = store_instance(web, tmp_path)
    (web.config.spool_dir / web.rows()[0].relative_path).unlink()
    answer = web.get(url)
    assert answer.status_code == 500
    assert "missing from the spool" in answer.text
    assert "Traceback" not in answer.text
