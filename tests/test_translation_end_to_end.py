"""A site's way by the commands of docs/translation.md: a table of ten subjects, a bundle, a route, a result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from db.models import Job
from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from model_zoo.simulate.phantom import make_phantom
from pipelines.contract import Grid
from tests.nifti_files import write_nifti
from tests.peers import Node, StoreScp, wait_for, write_config
from tests.peers.process import require_program
from tests.series import write_slices

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # seconds of work in ten processes

ROOT = Path(__file__).parents[1]
PIPELINE = "translate:t2w_from_t1w"
PLAN = """
name = "t2w_from_t1w"
spacing_mm = 4.0
patch = 16
sources = [{ name = "t1w", modality = "MR", scale = "percentile:99", required = true }]
targets = [{ name = "t2w", modality = "MR", scale = "percentile:99", code = 1 }]
"""
GRID = Grid((24, 28, 24), np.diag([4.0, 4.0, 4.0, 1.0]))
SPLITS = ("train",) * 7 + ("validation",) * 2 + ("test",)
SMALL = ("--configuration", "smoke", "--set", "steps=3", "--set", "bf16=false")


@dataclass(frozen=True)
class Delivered:
    """The node, the series that was sent, and the files that the peer received for it."""

    node: Node
    sent: list[Path]
    received: list[Dataset]
    folder: Path


def run_command(*words: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dicomnode", *words], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_images(subject: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Return T1w and T2w (k, j, i) of one subject of ellipsoids, with noise of its own."""
    tissue = make_phantom(GRID.shape, 8.0).tissue.numpy().astype(np.float32)
    noise = np.random.default_rng(subject).normal(0, 5, tissue.shape).astype(np.float32)
    inside = tissue > 0
    t1w, t2w = 200 + (20 + subject) * tissue, 900 - 40 * tissue
    return {"t1w": np.clip(inside * t1w + noise, 0, None), "t2w": np.clip(inside * t2w + noise, 0, None)}


def write_table(folder: Path) -> Path:
    lines = ["subject,split,t1w,t2w"]
    for subject, split in enumerate(SPLITS):
        paths = [
            write_nifti(folder / f"s{subject}-{name}.nii.gz", values, GRID).name
            for name, values in make_images(subject).items()
        ]
        lines.append(f"s{subject},{split},{','.join(paths)}")
    table = folder / "cohort.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def train(folder: Path) -> Path:
    """Train by the documented command; return the bundle."""
    plan = folder / "plan.toml"
    plan.write_text(PLAN)
    words = ("--manifest", str(folder / "cohort.csv"), "--out", str(folder / "run"), "--version", "1.0.0")
    run_command("train", "translation", "--plan", str(plan), *words, *SMALL)
    return folder / "run" / "bundle"


def copy_as(bundle: Path, version: str) -> Path:
    """Return a copy of the bundle with another version."""
    copy = shutil.copytree(bundle, bundle.parent / version)
    path = copy / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    return copy


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("translation")
    write_table(folder)
    bundle = train(folder)
    with StoreScp(folder / "storescp") as peer:
        route = {"name": "t2w", "pipeline": PIPELINE, "match": {"Modality": "MR"}, "destinations": ["storescp"]}
        never = {"overlap with the source": -1.0, "edges of the source": -1.0}  # of a network of three steps
        path = write_config(folder / "node", peers=[peer.peer], routes=[route], quality={"hold_below": never})
        node = Node(path)
        for each in (bundle, copy_as(bundle, "2.0.0")):
            assert node.command("models", "install", str(each), "--yes").returncode == 0
        deploy(node, "1.0.0")
        deploy(node, "2.0.0", "--shadow")
        with node:
            sent = write_mr(folder / "in")
            send(node, sent)
            job = wait_for(
                lambda: [j for j in node.jobs() if j.state in ("done", "dead", "held")], "a job", within_s=240
            )
            assert job[0].state == "done", job[0].reason
            node.wait_until_delivered()
            yield Delivered(node, sent, [dcmread(path) for path in peer.files()], folder)


def find_ended(node: Node) -> list[Job]:
    """Return the jobs that deliver and have ended."""
    return [job for job in node.jobs() if job.shadow_of_id is None and job.state in ("done", "dead", "held")]


def deploy(node: Node, version: str, *more: str) -> None:
    done = node.command("models", "deploy", f"t2w_from_t1w@{version}", "--pipeline", PIPELINE, *more)
    assert done.returncode == 0, done.stderr


def write_mr(folder: Path) -> list[Path]:
    def as_t1w(_: int, ds: Dataset) -> None:
        ds.EchoTime, ds.BodyPartExamined = 3.0, "HEAD"

    return write_slices(folder, GRID, make_images(9)["t1w"].round().astype(np.uint16), edit=as_t1w)


def send(node: Node, paths: list[Path]) -> None:
    program = require_program("/usr/bin/storescu", "dcmtk")
    command = [program, "-R", "-aec", node.peer.ae_title, "127.0.0.1", str(node.peer.port), *map(str, paths)]
    subprocess.run(command, env={**os.environ, "TCP_NODELAY": "1"}, timeout=120, check=True)


def test_the_peer_gets_marked_images_and_a_report_that_say_what_they_are(delivered: Delivered) -> None:
    source = dcmread(delivered.sent[0], stop_before_pixels=True)
    assert {ds.Modality for ds in delivered.received} >= {"MR", "SR"}
    for ds in delivered.received:
        marking.check_marks(ds)
        assert (ds.StudyInstanceUID, ds.PatientID) == (source.StudyInstanceUID, source.PatientID)
        record = read_record(ds)
        assert (record["pipeline"], record["model"]["version"]) == (PIPELINE, "1.0.0")
    pictures = [ds for ds in delivered.received if "PixelData" in ds and ds.Modality == "MR"]
    assert "1.2.840.10008.5.1.4.1.1.4" not in {ds.SOPClassUID for ds in pictures}, "never the scanner's class"
    (report,) = [ds for ds in delivered.received if ds.Modality == "SR"]
    sentences = " ".join(str(each.value) for each in report.iterall() if each.keyword == "TextValue")
    assert "It is not an acquisition" in sentences
    assert "a user's data set" in str(report.to_json()), "what the model was trained on"


def test_the_shadow_is_compared_and_the_study_replayed(delivered: Delivered) -> None:
    node = delivered.node

    def compared() -> bool:
        rows = json.loads(node.command("models", "compare", PIPELINE, "--json").stdout)
        return [row["state"] for row in rows] == ["done"]

    wait_for(compared, "the shadow was compared", within_s=240)
    uid = str(dcmread(delivered.sent[0], stop_before_pixels=True).StudyInstanceUID)
    rows = json.loads(node.command("studies", "replay", uid, "--json").stdout)
    images = [row for row in rows if row["kind"] == "image"]
    assert images, rows


def test_the_test_rows_are_evaluated_by_the_bundle_s_own_plan(delivered: Delivered) -> None:
    table, bundle = str(delivered.folder / "cohort.csv"), str(delivered.folder / "run" / "bundle")
    printed = run_command("evaluate", bundle, "--manifest", table, "--configuration", "smoke")
    assert "t2w_psnr_db" in printed
