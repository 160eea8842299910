"""Small pictures of results and of k-space: masks on their source, the report's first page, the zero-filled image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from db.models import JobInput, Output
from dicomnode import mrd
from dicomnode.results.page import Page
from dicomnode.web import kspace_pictures
from tests.peers.kspaces import acquisitions
from tests.web_node import Web, web
from tests.web_readings import make_reading
from tests.web_studies import claim_job, finish_job, make_results, make_series, receive, route_study, study_uid

__all__ = ["web"]


def get_picture(web: Web, address: str) -> NDArray[np.int64]:
    answer = web.get(address)
    assert answer.headers["content-type"] == "image/jpeg", address
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"), np.int64)


def test_a_segmentation_is_small_on_its_source(web: Web) -> None:
    make_reading(web, with_prior=False)
    uid = next(row.series_uid for row in web.rows(Output) if row.kind == "segmentation")
    pixels = get_picture(web, f"/studies/{study_uid('reading')}/series/{uid}/thumbnail")
    assert pixels.shape[1] == 120
    assert np.ptp(pixels, axis=2).max() > 25, "the lesion in its colour"
    grey = pixels[np.ptp(pixels, axis=2) < 12]
    assert grey.max() > 150, "on the head"


def test_a_report_in_pdf_is_shown_by_its_page(web: Web) -> None:
    page = np.full((300, 200, 3), 255, np.uint8)
    page[:40] = (176, 0, 32)
    images = make_series("page")
    job = route_study(web, receive(web, images))
    assert claim_job(web) == job
    finish_job(web, job, make_results(images, Page(page, b"%PDF-1.4")))
    text = web.get(f"/studies/{study_uid('page')}").text
    assert 'alt="FLAIR 3D in the viewer"' in text, "the picture is the only content of its link"
    for kind in ("report page", "report page (PDF)"):
        uid = next(row.series_uid for row in web.rows(Output) if row.kind == kind)
        address = f"/studies/{study_uid('page')}/series/{uid}/thumbnail"
        assert address in text
        pixels = get_picture(web, address)
        assert (pixels[5] - [176, 0, 32] < 12).all()
        assert (pixels[-5] > 240).all()


def test_k_space_is_shown_zero_filled_at_the_slice_of_the_result(web: Web, tmp_path: Path) -> None:
    raw = acquisitions(tmp_path / "raw")["axial"]
    ds = dcmread(raw.path)
    job = route_study(web, receive(web, [ds]), pipeline="mri_reconstruction")
    assert web.rows(JobInput)
    address = f"/jobs/{job}/pictures/{ds.SeriesInstanceUID}"
    pixels = get_picture(web, address)[..., 0]
    expected = raw.magnitude[raw.grid.shape[0] // 2]
    rows_mm, columns_mm = (n * s for n, s in zip(raw.grid.shape[1:], raw.grid.spacing_mm[1:], strict=True))
    assert pixels.shape == (round(384 * rows_mm / columns_mm), 384)
    small = np.asarray(Image.fromarray(pixels.astype(np.uint8)).resize(expected.shape[::-1]), float)
    assert np.corrcoef(small.ravel(), np.clip(expected, 0, np.percentile(expected, 99.5)).ravel())[0, 1] > 0.98


@pytest.mark.parametrize("plane", ["axial", "oblique"])
def test_the_zero_filled_picture_lies_as_the_reconstruction(tmp_path: Path, plane: str) -> None:
    raw = acquisitions(tmp_path)[plane]
    kspace, _ = mrd.to_images(mrd.read(mrd.unwrap(dcmread(raw.path))))[0]
    for index in range(raw.grid.shape[0]):
        found = kspace_pictures.reconstruct_slice(kspace, index)
        assert found.shape == raw.magnitude[index].shape
        assert np.corrcoef(found.ravel(), raw.magnitude[index].ravel())[0, 1] > 0.999


def test_an_image_that_is_no_k_space_has_no_picture_of_it(web: Web) -> None:
    images = make_series("plain")
    job = route_study(web, receive(web, images))
    assert web.get(f"/jobs/{job}/pictures/{images[0].SeriesInstanceUID}").status_code == 200
    assert web.get(f"/jobs/{job}/pictures/1.2.3").status_code == 404
