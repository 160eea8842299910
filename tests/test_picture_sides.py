"""The letters of the patient's sides on the pictures of the pages, read back from the pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dicomnode.web import pictures
from dicomnode.web.sides import NO_SIDES, Sides, draw_sides, name_sides
from tests.web_node import Web
from tests.web_readings import make_lesion_results
from tests.web_studies import PEERS, ROUTES, claim_job, finish_job, make_series, receive, route_study

_SIZE = 256
_EDGES = {"left": (slice(113, 143), slice(0, 30)), "right": (slice(113, 143), slice(226, 256)),
          "top": (slice(0, 18), slice(113, 143)), "bottom": (slice(238, 256), slice(113, 143))}  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ((1, 0, 0, 0, 1, 0), ("R", "L", "A", "P")),
        ((1, 0, 0, 0, -1, 0), ("R", "L", "P", "A")),
        ((-1, 0, 0, 0, 1, 0), ("L", "R", "A", "P")),
        ((0, 1, 0, 0, 0, -1), ("A", "P", "H", "F")),
        ((1, 0, 0, 0, 0.8, -0.6), ("R", "L", "AH", "PF")),
        ((0, 0, 0, 0, 0, 0), NO_SIDES),
    ],
)
def test_sides_are_named_by_the_direction_cosines(axes: tuple[float, ...], expected: Sides) -> None:
    assert name_sides(np.array(axes[:3], float), np.array(axes[3:], float)) == expected


@pytest.mark.parametrize(
    ("axes", "expected"),
    [([1, 0, 0, 0, 1, 0], ("R", "L", "A", "P")), ([1, 0, 0, 0, -1, 0], ("R", "L", "P", "A")),
     ([-1, 0, 0, 0, 1, 0], ("L", "R", "A", "P"))],
)  # fmt: skip
def test_a_picture_shows_the_sides_of_its_own_file(tmp_path: Path, axes: list[float], expected: Sides) -> None:
    path = tmp_path / "slice.dcm"
    make_series("sides", ImageOrientationPatient=axes)[4].save_as(path, enforce_file_format=True)
    (plane,) = pictures.list_planes((path,))
    assert plane.sides == expected
    drawings = {"frame": pictures.draw_frame(plane, _SIZE), "map": pictures.draw_map(plane, _SIZE)}
    for kind, content in drawings.items():
        assert _read_sides(content) == expected, kind


def test_every_picture_of_a_result_has_letters_and_none_stands_on_the_marking(tmp_path: Path) -> None:
    images = make_series("reading", PatientID="P-471")
    with Web(tmp_path, sections={"routes": ROUTES, "peers": PEERS}) as web:
        job = route_study(web, receive(web, images))
        assert claim_job(web) == job
        written = make_lesion_results(images)
        finish_job(web, job, written)
        for uid in {str(ds.SeriesInstanceUID) for ds in [*images, *written] if "Rows" in ds}:
            answer = web.get(f"/jobs/{job}/pictures/{uid}?at=6&size={_SIZE}")
            assert answer.status_code == 200
            height = Image.open(io.BytesIO(answer.content)).height
            found = _read_sides(answer.content)
            if height == _SIZE:
                assert found == ("R", "L", "A", "P")
            else:
                assert found[2] == "A"


def _read_sides(content: bytes) -> tuple[str, ...]:
    """Return the letter at each edge of a picture: that which the pixels resemble most."""
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("L"), float)
    return tuple(_read_letter(picture, at, where) for at, where in enumerate(_EDGES.values()))


def _read_letter(picture: NDArray[np.float64], at: int, where: tuple[slice, slice]) -> str:
    likeness = {}
    for letter in "RLAPSI":
        sides = [""] * 4
        sides[at] = letter
        drawn = draw_sides(Image.new("L", (_SIZE, _SIZE)), (sides[0], sides[1], sides[2], sides[3]))
        likeness[letter] = float(np.corrcoef(np.asarray(drawn, float)[where].ravel(), picture[where].ravel())[0, 1])
    best = max(likeness, key=lambda letter: likeness[letter])
    return best if likeness[best] > 0.8 else ""
