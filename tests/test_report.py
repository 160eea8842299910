"""The report page: its content, the letters of the patient's sides, no overlaps, and the command."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures
from pydicom import dcmread
from pydicom.uid import EncapsulatedPDFStorage, SecondaryCaptureImageStorage

from db.models import Job
from dicomnode.cli import main
from dicomnode.config import Peer
from dicomnode.execution import stored
from dicomnode.report import content, drawing, layout, planes, text
from dicomnode.results import label, marking
from dicomnode.results.page import Page
from pipelines.contract import (
    Case,
    Finding,
    Grid,
    Image,
    Interval,
    Measurement,
    Note,
    ParametricMap,
    Segmentation,
    Volume,
)
from pipelines.quality import Outcome, Verdict
from tests.findings import LOW_CONFIDENCE, NOW, PROVENANCE, STANDARD_DEVIATION, source
from tests.peers import Node, StoreScp, make_route, write_config
from tests.peers.kspaces import raw_data
from tests.scanner import make_grid
from tests.test_node import put

pytestmark = pytest.mark.slow

FAST = {"steps": 2, "mean_steps": 2, "samples": 2}
LONG = "a reason that is longer than any line of the page and says many things about many regions " * 6


def make_block(orientation: str = "axial", spacing: tuple[float, float, float] = (2.0, 1.0, 1.5)) -> Volume:
    """Return a volume that is bright towards the patient's left, front and head."""
    grid = make_grid(orientation, (32, 60, 48), spacing, (-30.0, -20.0, 10.0))
    k, j, i = np.indices(grid.shape)
    places = np.stack([i, j, k, np.ones_like(i)], -1) @ grid.affine_mm.T
    offset = places[..., :3] - places[..., :3].reshape(-1, 3).mean(axis=0)
    data = 100.0 + offset @ np.array([1.0, -0.5, 0.25])
    return Volume(data.astype(np.float32), grid, "Bq/ml")


def compose_example(
    verdict: Verdict = Verdict(), *, modality: str = "PT", regions: int = 5, identify: bool = False
) -> content.ReportPage:
    """Compose a page with every kind of content."""
    volume = make_block()
    sd = Volume(np.full(volume.grid.shape, 4.0, np.float32), volume.grid, "Bq/ml")
    labels = (volume.data > 130).astype(np.uint8)
    segment = replace(LOW_CONFIDENCE, label="A segment with a rather long name of its own")
    findings: list[Finding] = [
        Image("standard dose", volume, "Standard-dose PET", 2.0, modality=modality),
        ParametricMap("standard deviation", sd, STANDARD_DEVIATION, "Standard deviation", 2.0),
        Segmentation("lesions", labels, volume.grid, (segment,), "Lesions", 2.0),
        Measurement("total activity ratio", 0.9951, "1"),
        Measurement("broken", float("nan"), "1"),
        *(
            Measurement(f"SUVmean of region {n}", 1.234 * n, "g/ml{SUVbw}", group=f"region {n}",
                        intervals=(Interval(0.5, n, 1.3 * n), Interval(0.95, 0.9 * n, 1.5 * n)))
            for n in range(1, regions)
        ),
        Note("dose fraction", LONG),
    ]  # fmt: skip
    low = Volume((volume.data * 0.8).astype(np.float32), volume.grid, "Bq/ml")
    return content.compose_page(
        findings, Case({"pet": low}), [source("mr")], PROVENANCE, NOW, verdict, identify=identify
    )


def test_the_page_says_what_it_must() -> None:
    made = compose_example(Verdict(Outcome.HOLD, ("the mean standard deviation is 0.4, above 0.3",)))
    assert "HELD" in made.verdict
    assert "The mean standard deviation is 0.4, above 0.3." in made.verdict
    titles = [panel.title for panel in made.rows[0].panels]
    assert titles == ["Input: PET", "Result (synthetic)", "Uncertainty: 1 sd", "Difference: result - input"]
    assert [row.title.split(": ")[1].split(",")[0] for row in made.rows] == ["axial", "coronal"]
    assert made.sentence.startswith("Total activity ratio 0.995")
    lines = {number.name: number for number in made.numbers}
    assert lines["total activity ratio"].value == "0.995"
    assert lines["broken"].value == "not a number"
    assert made.regions.columns == ("SUVmean (g/ml SUVbw), 95 %",)
    assert (made.regions.rows[1].name, made.regions.rows[1].cells) == ("region 2", ("2.47 (1.8 to 3)",))
    assert any("ab" * 32 in line for line in made.provenance)
    assert "research use only" in made.fine_print


def test_the_sentence_and_the_change_stand_first() -> None:
    """A load that falls without treatment is remarked; the earlier examination's date is on the page."""
    numbers = {"lesions": 7.0, "lesion load": 3.28, "new lesions": 3.0, "enlarged lesions": 4.0,
               "earlier lesion load": 4.77, "lesion load compared": 3.28}  # fmt: skip
    findings = [Measurement(name, value, "1" if "lesions" in name else "ml") for name, value in numbers.items()]
    prior = source()
    prior.StudyDate = "20090412"
    made_by = replace(PROVENANCE, pipeline="synthetic_dir")
    made = content.compose_page(findings, Case({}), [source()], made_by, NOW, Verdict(), priors=[prior])
    assert made.sentence == "3 new and 4 enlarged lesions since 2009-04-12; total load 3.28 ml, was 4.77."
    assert made.remarks[0].startswith("The load fell by 31 %")
    assert "compared with 2009-04-12" in made.subtitle
    drawn = [text.get_text() for text in layout.build_figure(made).texts]
    order = [next(at for at, line in enumerate(drawn) if word in line) for word in ("3 new", "Check:", "Technical")]
    assert order == sorted(order)


def test_rows_of_many_lesions_are_not_counted_but_named() -> None:
    """What finds no room is named in a line, never a number of lines."""
    findings: list[Finding] = [
        Measurement(name, 1.0, "1", "Deep lesion" if n % 2 else "Cortical lesion", f"lesion {n}")
        for n in range(1, 300)
        for name in ("volume", "mean lesion probability", "mean standard deviation", "probability of contrast")
    ]
    made = content.compose_page(findings, Case({}), [source()], PROVENANCE, NOW, Verdict())
    drawn = [text.get_text() for text in layout.build_figure(made).texts]
    assert "Lesion 1" in drawn
    assert any(line.startswith("In the structured report: further rows") for line in drawn)
    assert not any("lesion 3: probability" in line or "more lines" in line for line in drawn)


def test_the_patient_is_named_on_demand_only() -> None:
    assert "Müller" not in repr(compose_example())
    assert "4711" not in repr(compose_example())
    assert "Müller Jörg, ID 4711" in compose_example(identify=True).subtitle


def test_result_and_input_share_a_scale_only_where_they_show_the_same_quantity() -> None:
    same, other = compose_example(), compose_example(modality="")
    before, result = same.rows[0].panels[:2]
    assert (before.low, before.high) == (result.low, result.high)
    difference = same.rows[0].panels[3]
    assert np.allclose(difference.pixels, result.pixels - before.pixels, atol=1e-3)
    assert difference.low == -difference.high
    assert [panel.title for panel in other.rows[0].panels][3] == "Found: lesions"


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "coronal", "axial, left-handed"])
def test_every_plane_is_seen_as_radiologists_see_it(orientation: str) -> None:
    volume = make_block(orientation, (2.0, 1.0, 1.5))
    weight = np.ones(volume.grid.shape, np.float32)
    identified = {plane.name: plane for plane in planes.choose_planes(volume.grid, weight, 3)}
    assert {name: "".join(plane.letters) for name, plane in identified.items()} == {
        "axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}  # fmt: skip
    brighter = {"axial": (1, -1), "coronal": (1, -1), "sagittal": (-1, -1)}  # to the right, downwards
    for name, plane in identified.items():
        pixels = planes.sample_on_plane(volume.data, volume.grid, plane)
        right, down = np.diff(pixels, axis=1).mean(), np.diff(pixels, axis=0).mean()
        assert (np.sign(right), np.sign(down)) == brighter[name]
        assert np.ptp(pixels) > 0


def test_pixels_keep_the_ratio_of_their_sides(tmp_path: Path) -> None:
    volume = make_block("axial", (2.0, 1.0, 1.5))
    (axial,) = planes.choose_planes(volume.grid, np.ones(volume.grid.shape, np.float32), 1)
    assert axial.spacing_mm == (1.0, 1.5)
    assert axial.extent_mm == pytest.approx((48 * 1.5, 60 * 1.0))
    figure = layout.build_figure(compose_example())
    pictures = [axes for axes in figure.axes if axes.get_images()]
    panels = [panel for row in compose_example().rows for panel in row.panels]
    for axes, panel in zip(pictures, panels, strict=True):
        box = axes.get_position()
        ratio = (box.height * drawing.HEIGHT_MM) / (box.width * drawing.WIDTH_MM)
        width_mm, height_mm = panel.plane.extent_mm
        assert ratio == pytest.approx(height_mm / width_mm, rel=1e-3)


def test_thick_slices_are_shown_as_they_were_taken() -> None:
    grid = make_grid("oblique", (20, 64, 64), (6.0, 0.9, 0.9), (0, 0, 0))
    found = planes.choose_planes(grid, np.ones(grid.shape, np.float32), 2)
    assert [plane.axis for plane in found] == [0, 0]
    assert found[0].index != found[1].index
    assert all(len(letter) >= 2 for letter in found[0].letters), "an oblique side has more than one name"


def test_a_volume_of_another_grid_is_sampled_where_it_lies() -> None:
    volume = make_block("oblique")
    other = make_grid("coronal", (20, 40, 40), (3.0, 2.0, 2.0), (0, 0, 0))
    middle = volume.grid.affine_mm @ [24, 30, 16, 1] - other.affine_mm @ [20, 20, 10, 0]
    other = Grid(other.shape, other.affine_mm + np.outer(middle - other.affine_mm[:, 3], [0, 0, 0, 1]))
    plane = planes.choose_planes(other, np.ones(other.shape, np.float32), 1)[0]
    pixels = planes.sample_on_plane(volume.data, volume.grid, plane)
    inside = pixels > 0
    row, column = (size // 2 for size in pixels.shape)
    index = np.linalg.solve(volume.grid.affine_mm, np.append(plane.places_mm[row, column], 1.0))
    exact = volume.data[tuple(np.round(index[2::-1]).astype(int))]
    assert inside.mean() > 0.5
    assert pixels[row, column] == pytest.approx(exact, abs=2.0)


@pytest.mark.parametrize("regions", [1, 5, 200])
@pytest.mark.parametrize("reasons", [(), ("short",), (LONG, LONG)])
def test_nothing_on_the_page_overlaps_or_leaves_it(regions: int, reasons: tuple[str, ...]) -> None:
    outcome = Outcome.HOLD if reasons else Outcome.ACCEPT
    figure = layout.build_figure(compose_example(Verdict(outcome, reasons), regions=regions))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = figure.bbox.width, figure.bbox.height
    boxes = [text.get_window_extent() for text in figure.texts]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    pictures = [axes.get_window_extent() for axes in figure.axes]
    for box in boxes:
        assert not [other for other in pictures if box.overlaps(other) and _measure_overlap(box, other) > 0.5]
    for number, box in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert _measure_overlap(box, other) < 0.25 * min(box.width * box.height, other.width * other.height)
    for one, other in pairwise(sorted(pictures, key=lambda box: (round(box.y0), box.x0))):
        assert _measure_overlap(one, other) < 1.0


def _measure_overlap(one: object, other: object) -> float:
    """Return the area, in pixels, that two boxes have in common."""
    from matplotlib.transforms import Bbox

    both = Bbox.intersection(one, other)  # type: ignore[arg-type]
    return float(both.width * both.height) if both is not None else 0.0


def test_long_words_are_broken_to_the_width() -> None:
    lines = text.wrap(f"{LONG} {'x' * 400}", 100.0, 8.0, False)
    assert "".join(lines).replace(" ", "") == f"{LONG}{'x' * 400}".replace(" ", "")
    assert max(map(len, lines)) < 90
    assert text.shorten("short", 100.0, 8.0) == "short"
    assert text.shorten(LONG, 30.0, 8.0).endswith("…")


def test_the_same_job_draws_the_same_page() -> None:
    one, again = (layout.draw_page(compose_example(), NOW) for _ in range(2))
    assert np.array_equal(one.pixels, again.pixels)
    assert one.pdf == again.pdf


def test_the_banner_is_on_the_page_and_in_the_files_own_titles() -> None:
    page = layout.draw_page(compose_example(), NOW)
    red = (page.pixels.astype(int) == (0xB0, 0x00, 0x20)).all(axis=2)
    assert red[5].mean() > 0.9
    assert red[-5].mean() > 0.9
    assert label.TEXT.encode() in page.pdf
    with Pictures.open(io.BytesIO(layout.encode_page(page, "png"))) as picture:
        assert picture.info["Title"] == label.TEXT
        assert picture.size == (1240, 1753)


def test_a_job_without_images_or_input_still_has_a_page() -> None:
    findings: list[Finding] = [Measurement("number", 1.0, "1"), Note("why", "nothing to see")]
    made = content.compose_page(findings, Case({}), [source()], PROVENANCE, NOW, Verdict())
    page: Page = layout.draw_page(made, NOW)
    assert page.pixels.shape == (1753, 1240, 3)
    assert made.rows == ()


def finish_job(folder: Path, now: datetime, destination: Peer) -> tuple[Node, str, int]:
    """Run one small job; return the node, the study's UID and the job's number."""
    running = Node(write_config(folder, peers=[destination], routes=[make_route(destination.name, **FAST)]))
    put(running, raw_data(folder / "raw.dcm", now, PatientName="Secret^Name", PatientID="4712"), now)
    assert main(["--config", str(folder / "node.toml"), "work", "--once"]) == 0
    (job,) = running.jobs()
    assert job.state == "done", job.reason
    with running.sessions() as session:
        return running, session.get_one(Job, job.id).study.study_uid, job.id


def run_report_command(folder: Path, study: str, out: Path, *more: str) -> int:
    return main(["--config", str(folder / "node.toml"), "studies", "report", study, "--out", str(out), *more])


def test_the_command_writes_the_page_that_the_destination_got(
    tmp_path: Path, now: datetime, storescp: StoreScp, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = storescp.peer.model_copy(update={"report_page": ("sc", "pdf")})
    running, study, number = finish_job(tmp_path, now, expected)
    with running.sessions() as session:
        rows = session.get_one(Job, number).outputs
        files = {row.sop_class_uid: running.config.spool_dir / row.relative_path for row in rows}
    sent = dcmread(files[EncapsulatedPDFStorage])
    marking.check_marks(sent)
    assert run_report_command(tmp_path, study, tmp_path / "page.pdf", "--job", str(number)) == 0
    assert run_report_command(tmp_path, study, tmp_path / "page.png") == 0
    assert (tmp_path / "page.pdf").read_bytes() == sent.EncapsulatedDocument[: sent.EncapsulatedDocumentLength]
    with Pictures.open(tmp_path / "page.png") as picture:
        assert np.array_equal(np.asarray(picture), dcmread(files[SecondaryCaptureImageStorage]).pixel_array)
    capsys.readouterr()
    assert run_report_command(tmp_path, study, tmp_path / "page.jpg") == 2
    assert run_report_command(tmp_path, study, tmp_path / "page.pdf", "--job", "99") == 1
    assert "no result of job 99" in capsys.readouterr().err


def test_a_page_that_nobody_wanted_is_drawn_from_what_is_stored(
    tmp_path: Path, now: datetime, storescp: StoreScp
) -> None:
    running, study, number = finish_job(tmp_path, now, storescp.peer)
    with running.sessions() as session:
        metadata = stored.read_result(session.get_one(Job, number), running.config)
    made = content.compose_page(
        metadata.findings,
        metadata.case,
        metadata.sources,
        metadata.made_by,
        metadata.now,
        metadata.verdict,
        identify=True,
    )
    assert "Secret Name, ID 4712" in made.subtitle
    assert [panel.title for panel in made.rows[0].panels] == [
        "Input: zero-filled", "Result (synthetic)", "Uncertainty: 1 sd", "Difference: result - input"]  # fmt: skip
    assert {"chi-square", "acceleration"} <= {line.name for line in made.numbers}
    assert run_report_command(tmp_path, study, tmp_path / "page.png", "--identify") == 0
    assert run_report_command(tmp_path, study, tmp_path / "page.pdf") == 0
    assert b"Secret" not in (tmp_path / "page.pdf").read_bytes()
