"""The viewer gets a window where a header has none; other clients get what is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage

from dicomnode.web.dicomweb import REVIEW, ROOT, VIEW
from dicomnode.web.missing_windows import EXPLANATION, add_missing_window
from tests.peers.files import write_instance
from tests.series import write_enhanced
from tests.web_node import Web, web
from tests.web_studies import make_grid, make_head, make_series, receive, study_uid

__all__ = ["web"]

WINDOW = ("00281050", "00281051", "00281055")
"""Window Center, Window Width, Window Center & Width Explanation."""


def read_windows(web: Web, root: str, path: str) -> list[tuple[Any, ...]]:
    """Return centre, width and explanation of each instance in the metadata of a root."""
    found = web.get(f"{root}/studies/{path}/metadata").json()
    return [tuple(each.get(tag, {}).get("Value", [None])[0] for tag in WINDOW) for each in found]


def test_only_the_viewer_gets_a_window_of_all_slices(web: Web) -> None:
    slices = make_series("unseen", RescaleSlope="2", RescaleIntercept="-10")
    slices[0].PixelData = bytes(len(slices[0].PixelData))
    receive(web, slices)
    path = study_uid("unseen")
    values = 2 * np.stack([ds.pixel_array for ds in slices]).astype(float) - 10
    low, high = np.percentile(values, [0.5, 99.5])
    for root in (VIEW, REVIEW):
        windows = read_windows(web, root, path)
        assert len(windows) == len(slices)
        assert len(set(windows)) == 1
        assert windows[0] == (pytest.approx((low + high) / 2 + 0.5), pytest.approx(high - low + 1), EXPLANATION)
        one = f"{path}/series/{slices[0].SeriesInstanceUID}/instances/{slices[3].SOPInstanceUID}"
        assert read_windows(web, root, one) == windows[:1]
    assert set(read_windows(web, ROOT, path)) == {(None, None, None)}


@pytest.mark.parametrize(
    "header",
    [
        {"WindowCenter": 400, "WindowWidth": 800},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"VOILUTSequence": [Dataset()]},
    ],
)
def test_a_header_that_says_how_to_show_an_image_stays(web: Web, header: dict[str, Any]) -> None:
    receive(web, make_series("seen", **header))
    path = study_uid("seen")
    assert web.get(f"{VIEW}/studies/{path}/metadata").text.replace(VIEW, ROOT) == (
        web.get(f"{ROOT}/studies/{path}/metadata").text
    )


@pytest.mark.parametrize("has_window", [True, False])
def test_the_window_of_a_frame_counts(web: Web, tmp_path: Path, has_window: bool) -> None:
    def add_window(_: int, group: Dataset) -> None:
        if not has_window:
            return
        item = Dataset()
        item.WindowCenter, item.WindowWidth = "40", "80"
        group.FrameVOILUTSequence = [item]

    order = list(range(make_grid().shape[0]))
    made = make_head().astype(np.uint16)
    path = write_enhanced(tmp_path / "a.dcm", make_grid(), made, order, add_window)
    assert web.store([path]).status_code == 200
    (row,) = web.rows()
    assert row.sop_class_uid == EnhancedMRImageStorage
    study = web.get(f"{VIEW}/studies").json()[0]["0020000D"]["Value"][0]
    ((centre, *_),) = read_windows(web, VIEW, study)
    assert (centre is None) == has_window


@pytest.mark.parametrize(
    "odd",
    [
        {"00281050": {"vr": "LO", "Value": ["40"]}, "00281051": {"vr": "LO", "Value": ["80"]}},
        {"00281050": {"vr": "DS", "Value": [40]}, "00281051": {"vr": "SQ", "Value": [{}]}},
        {"00281050": {"vr": "UN", "InlineBinary": "NDA="}, "00281051": {"vr": "UN", "InlineBinary": "ODA="}},
        {"00289132": {"vr": "LO", "Value": ["40"]}},
        {"52009229": {"vr": "LO", "Value": ["40"]}, "52009230": {"vr": "SQ", "Value": [{"00289132": {"vr": "LO"}}]}},
        {"52009229": {"vr": "SQ", "Value": [{"00289132": {"vr": "LO", "Value": ["40"]}}]}},
    ],
)
def test_a_window_of_an_odd_representation_is_none(odd: dict[str, Any], tmp_path: Path) -> None:
    """The viewer reads numbers: it shows such an image as one without a window."""
    write_instance(tmp_path / "a.dcm")
    image = {"00280004": {"vr": "CS", "Value": ["MONOCHROME2"]}, "7FE00010": {"vr": "OW", "BulkDataURI": "x"}}
    found = json.loads(add_missing_window(json.dumps(image | odd).encode(), [tmp_path / "a.dcm"]))
    assert [found[tag]["vr"] for tag in WINDOW] == ["DS", "DS", "LO"]
    assert found[WINDOW[1]]["Value"][0] > 100


def test_a_file_that_cannot_be_read_leaves_the_window_of_the_others(tmp_path: Path) -> None:
    write_instance(tmp_path / "a.dcm")
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    image = {"00280004": {"vr": "CS", "Value": ["MONOCHROME2"]}, "7FE00010": {"vr": "OW", "BulkDataURI": "x"}}
    encoded = json.dumps(image).encode()
    alone = json.loads(add_missing_window(encoded, [tmp_path / "a.dcm"]))
    both = json.loads(add_missing_window(encoded, [tmp_path / "a.dcm", tmp_path / "broken.dcm"]))
    assert both[WINDOW[1]]["Value"] == alone[WINDOW[1]]["Value"]


def test_a_file_without_pixels_that_can_be_read_gets_no_window(tmp_path: Path) -> None:
    encoded = b'{"00280004":{"vr":"CS","Value":["MONOCHROME2"]},"7FE00010":{"vr":"OW","BulkDataURI":"x"}}'
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    assert add_missing_window(encoded, [tmp_path / "broken.dcm"]) == encoded
