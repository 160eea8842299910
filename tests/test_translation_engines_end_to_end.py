"""A site's way with the engines latent and syndiff: a table with pairs, one without any, two bundles, two results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from tests.nifti_files import write_nifti
from tests.peers import Node, StoreScp, wait_for, write_config
from tests.test_translation_end_to_end import GRID, SPLITS, make_images, run_command, send, write_mr, write_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # two trainings and a node

PLAN = """
name = "t2w_{engine}"
engine = "{engine}"
pairing = "{pairing}"
space = "2d"
spacing_mm = 4.0
patch = 16
sources = [{{ name = "t1w", modality = "MR", scale = "percentile:99", required = true }}]
targets = [{{ name = "t2w", modality = "MR", scale = "percentile:99", code = 1 }}]
"""
PAIRING = {"latent": "paired", "syndiff": "unpaired"}
SETTINGS = {"latent": ("--set", "restarts=[2]"), "syndiff": ("--set", "opponent_channels=4")}
SMALL = ("--configuration", "smoke", "--set", "steps=4", "--set", "bf16=false", "--set", "validate_every=100")


def write_unpaired_table(folder: Path) -> Path:
    """Write a table of subjects of whom each has a T1w or a T2w, and return its path."""
    lines = ["subject,split,t1w,t2w"]
    for subject, split in enumerate((*SPLITS, "validation")):
        name = ("t1w", "t2w")[subject % 2]
        path = write_nifti(folder / f"u{subject}-{name}.nii.gz", make_images(subject)[name], GRID).name
        lines.append(f"u{subject},{split},{path if name == 't1w' else ''},{path if name == 't2w' else ''}")
    table = folder / "unpaired.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def train(folder: Path, engine: str, table: Path) -> Path:
    """Train by the documented command; return the bundle."""
    plan = folder / f"{engine}.toml"
    plan.write_text(PLAN.format(engine=engine, pairing=PAIRING[engine]))
    words = ("--manifest", str(table), "--out", str(folder / engine), "--version", "1.0.0", *SETTINGS[engine])
    run_command("train", "translation", "--plan", str(plan), *words, *SMALL)
    return folder / engine / "bundle"


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Dataset]]:
    """Yield what the peer received for one T1w."""
    folder = tmp_path_factory.mktemp("engines")
    tables = {"latent": write_table(folder), "syndiff": write_unpaired_table(folder)}
    bundles = [train(folder, engine, table) for engine, table in tables.items()]
    with StoreScp(folder / "storescp") as peer:
        match = {"Modality": "MR"}
        routes = [
            {"name": engine, "pipeline": f"translate:t2w_{engine}", "match": match, "destinations": ["storescp"],
             "options": {"samples": 2}}
            for engine in tables
        ]  # fmt: skip
        never = {"overlap with the source": -1.0, "edges of the source": -1.0}  # of networks of four steps
        node = Node(write_config(folder / "node", peers=[peer.peer], routes=routes, quality={"hold_below": never}))
        for bundle in bundles:
            assert node.command("models", "install", str(bundle), "--yes").returncode == 0
        for engine in tables:
            deployed = node.command("models", "deploy", f"t2w_{engine}@1.0.0", "--pipeline", f"translate:t2w_{engine}")
            assert deployed.returncode == 0, deployed.stderr
        with node:
            send(node, write_mr(folder / "in"))

            def ended() -> bool:
                return sum(job.state in ("done", "dead", "held") for job in node.jobs()) == 2

            wait_for(ended, "two jobs", within_s=300)
            assert [job.state for job in node.jobs()] == ["done", "done"], [job.reason for job in node.jobs()]
            node.wait_until_delivered()
            yield [dcmread(path) for path in peer.files()]


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ("latent", "PSNR of true images after its autoencoder alone: "),
        ("latent", "whose detail may be invented where t1w does not determine it"),
        ("syndiff", "Trained without pairs, by images of other patients"),
    ],
)
def test_the_peer_gets_marked_images_and_a_report_that_says_how_they_came_about(
    received: list[Dataset], engine: str, sentence: str
) -> None:
    own = [ds for ds in received if read_record(ds)["pipeline"] == f"translate:t2w_{engine}"]
    assert {ds.Modality for ds in own} >= {"MR", "SR"}
    for ds in own:
        marking.check_marks(ds)
    assert any("PixelData" in ds for ds in own)
    (report,) = [ds for ds in own if ds.Modality == "SR"]
    assert sentence in " ".join(str(each.value) for each in report.iterall() if each.keyword == "TextValue")
