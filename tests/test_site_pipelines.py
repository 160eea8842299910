"""Site pipelines: found by their entry points where node.toml names them, imported by workers only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode import checks, results
from dicomnode.config import Config, load
from dicomnode.config.node import NodeConfig
from dicomnode.config.pipelines import PipelinesConfig
from dicomnode.deployment import pipeline_names, site
from dicomnode.errors import ConfigError, NotMarked
from dicomnode.execution import processing
from dicomnode.reading import volumes
from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from model_zoo.structures import number
from pipelines.contract import Covariates, Grid, Input, Note, Pipeline, Volume
from tests.bundles import SPACING_MM, phantom, write_anatomy_bundle
from tests.peers import Node, StoreScp, nodes, write_config
from tests.peers.process import require_program
from tests.series import write_slices
from tests.web_node import Web

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "site_pipeline"
NAME = "ventricle_share"


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Loose(BaseModel):
    """Options that accept any key."""


GOOD = Pipeline("mine", "Mine", (Input("image", Volume),), "anatomy", Options, lambda case, model, o, s, p: [])
THREE: Any = lambda case, model, options: []  # noqa: E731
WRONG: dict[str, tuple[Any, str]] = {
    "no pipeline": (Options, "not a pipelines.contract.Pipeline"),
    "another name": (replace(GOOD, name="other"), "calls itself 'other'"),
    "no bundle": (replace(GOOD, bundle=""), "names no bundle"),
    "no inputs": (replace(GOOD, inputs=()), "has no inputs"),
    "covariates first": (replace(GOOD, inputs=(Input("age", Covariates),)), "has covariates as its first input"),
    "an input twice": (replace(GOOD, inputs=GOOD.inputs * 2), "has two inputs named 'image'"),
    "options of any kind": (replace(GOOD, options_type=Loose), "takes unknown keys"),
    "no options": (replace(GOOD, options_type=dict), "is not a pydantic model"),
    "run of three": (replace(GOOD, run=THREE), "does not take"),
}


def install_package(folder: Path, name: str, value: str, text: str = "", *, called: str = "a-package") -> Path:
    """Write the files that 'pip install' leaves: a module with the text, and metadata with one entry point."""
    module = value.partition(":")[0]
    (folder / f"{module}.py").parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{called.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {called}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{site.GROUP}]\n{name} = {value}\n")
    return folder


def make_config(*names: str, folder: Path = Path("nowhere")) -> Config:
    node = NodeConfig(data_dir=folder / "data")
    return Config(node=node, pipelines=PipelinesConfig(site=names), path=folder / "node.toml")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder in which Python looks for packages."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in [each for each in set(sys.modules) - before if each.startswith("site_test_")]:
        del sys.modules[name]


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_pipeline_is_refused_with_what_it_lacks(
    case: str, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, said = WRONG[case]
    install_package(packages, "mine", "site_test_wrong:PIPELINE", "PIPELINE = None\n")
    import site_test_wrong  # type: ignore[import-not-found]  # written a moment ago

    monkeypatch.setattr(site_test_wrong, "PIPELINE", value)
    with pytest.raises(ConfigError, match=f"the site pipeline 'mine'.*{said}"):
        pipeline_names.resolve_pipeline("mine", make_config("mine"))


def test_only_what_node_toml_names_is_looked_at(packages: Path) -> None:
    install_package(packages, "mine", "site_test_loud:PIPELINE", "raise SystemExit('imported')\n")
    with pytest.raises(ConfigError, match=r"no pipeline is named 'mine'; there are: anatomy.*bundle:NAME"):
        pipeline_names.resolve_pipeline("mine", make_config())
    assert "mine" not in pipeline_names.list_pipelines(make_config())
    assert "mine" in pipeline_names.list_pipelines(make_config("mine")), "by its name, without importing it"


def test_what_is_named_and_not_installed_is_said_with_what_is(packages: Path) -> None:
    install_package(packages, "mine", "site_test_some:PIPELINE")
    with pytest.raises(ConfigError, match=r"names 'other'.*no installed package.*\(there: mine\).*pip install"):
        pipeline_names.check_pipeline("other", make_config("other"))


def test_two_packages_that_claim_a_name_are_both_told(packages: Path) -> None:
    install_package(packages, "mine", "site_test_one:PIPELINE", called="group-a")
    install_package(packages, "mine", "site_test_two:PIPELINE", called="group-b")
    with pytest.raises(ConfigError, match=r"several packages claim.*group-a 1\.0.*group-b 1\.0"):
        pipeline_names.check_pipeline("mine", make_config("mine"))


@pytest.mark.parametrize("name", ["anatomy", "bundle:anatomy"])
def test_a_name_of_ours_is_not_taken(name: str, packages: Path) -> None:
    install_package(packages, name.replace(":", "_"), "site_test_shadow:PIPELINE")
    with pytest.raises(ConfigError, match="has the name of one of the node's own"):
        pipeline_names.resolve_pipeline(name, make_config(name))


def test_an_import_that_fails_says_where_and_why(packages: Path) -> None:
    install_package(packages, "mine", "site_test_broken:PIPELINE", "import a_library_that_nobody_has\n")
    with pytest.raises(ConfigError, match=r"site_test_broken:PIPELINE\) cannot be imported: ModuleNotFoundError"):
        pipeline_names.resolve_pipeline("mine", make_config("mine"))
    found = {each.what: each for each in checks.run(make_config("mine", folder=packages.parent))}
    assert found["site pipeline mine"].result == "failed"


@pytest.mark.parametrize("answer", [["a word"], [Dataset()], None, "words"])
def test_what_is_no_finding_stops_the_job(answer: Any) -> None:
    with pytest.raises(ConfigError, match="pipeline mine gave"):
        site.check_findings(GOOD, answer)
    site.check_findings(GOOD, [Note("a", "b")])


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example as docs/site-pipelines.md does, into a folder of its own."""
    folder = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", folder / "packages", source], capture_output=True, text=True)
    if "BackendUnavailable" in done.stderr or "No module named pip" in done.stderr:
        pytest.skip("setuptools or pip is not in this environment")
    assert done.returncode == 0, done.stderr
    return folder / "packages"


@pytest.fixture
def with_example(example: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the example on the path of this process and of those that it starts."""
    monkeypatch.syspath_prepend(example)
    monkeypatch.setitem(nodes.ENVIRONMENT, "PYTHONPATH", f"{example}{os.pathsep}{ROOT}")
    yield example
    sys.modules.pop(NAME, None)


def test_the_example_goes_from_the_scanner_to_the_archive_and_the_receiver_never_imports_it(
    with_example: Path, storescp: StoreScp, tmp_path: Path
) -> None:
    sent = _write_phantom(tmp_path / "in")
    with Node(_write_config(tmp_path / "node", storescp)) as node:
        _send(node, sent)
        job = node.wait_for_job("done", "held", "dead")
        assert job.state == "done", job.reason
        node.wait_until_delivered()
        loaded = {pid: "libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in node.children}
        assert "libtorch" not in Path(f"/proc/{node.program.pid}/maps").read_text(), "the receiver"
        assert any(loaded.values()), "the worker"
        uid = str(dcmread(sent[0], stop_before_pixels=True).StudyInstanceUID)
        explained = json.loads(node.command("studies", "explain", uid, "--json").stdout)
        assert (explained[0]["route"], explained[0]["pipeline"]) == ("heads", NAME)
    _check_delivered(storescp, sent)


def test_run_check_and_the_pages_know_the_example(with_example: Path, storescp: StoreScp, tmp_path: Path) -> None:
    path = _write_config(tmp_path / "node", storescp)
    config = load(path)
    found = {each.what: each for each in checks.run(config)}
    assert found[f"site pipeline {NAME}"].result == "ok", found[f"site pipeline {NAME}"].detail
    assert "ventricle-share 0.1.0" in found[f"site pipeline {NAME}"].detail
    assert found["route heads"].detail.startswith(f"{NAME} with anatomy@0.0.1")
    with Web(tmp_path / "web", sections={"pipelines": config.pipelines}) as web:
        write_anatomy_bundle(web.config.models_dir)
        assert f'<option value="{NAME}">' in web.get("/models/anatomy@0.0.1", "text/html").text
    node = Node(path, "check")
    _write_phantom(tmp_path / "in")
    done = node.command("run", NAME, str(tmp_path / "in"), str(tmp_path / "out"), "--model", "anatomy@0.0.1", "--json")
    assert {row["kind"] for row in json.loads(done.stdout)} >= {"segmentation", "report"}, done.stderr


def test_an_object_that_lost_its_marks_does_not_leave_the_job(
    with_example: Path, storescp: StoreScp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is the same as for built-in pipelines, between the writer and the spool; delivery/gate.py comes next."""
    config = load(_write_config(tmp_path / "node", storescp))
    write = results.write

    def write_unmarked(*arguments: Any, **options: Any) -> list[Dataset]:
        written = write(*arguments, **options)
        del written[0].SyntheticData
        return written

    monkeypatch.setattr(results, "write", write_unmarked)
    task = processing.Task(
        key="k", pipeline=NAME, model="anatomy@0.0.1", options={}, seed=1,
        inputs={"match": _write_phantom(tmp_path / "in")},
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    with pytest.raises(NotMarked, match="SyntheticData"):
        processing.run_task(task, config, progress=lambda done, step: None)


def _check_delivered(storescp: StoreScp, sent: list[Path]) -> None:
    got = storescp.datasets()
    assert {ds.Modality for ds in got} == {"SEG", "SR"}
    for ds in got:
        marking.check_marks(ds)
        parameters = read_record(ds)["parameters"]
        assert parameters["site pipeline"].startswith("ventricle-share 0.1.0, ventricle_share.py SHA-256 ")
        assert read_record(ds)["model"]["name"] == "anatomy"
    (mask,) = [path for path in storescp.files() if dcmread(path).Modality == "SEG"]
    source = volumes.read(sent).volume
    read = hd.seg.segread(str(mask)).get_volume(combine_segments=True, allow_missing_positions=True)
    _, structure = phantom()
    assert read.array.sum() == pytest.approx((structure == number("lateral ventricles")).sum(), rel=0.2)
    axes = np.linalg.solve(source.grid.affine_mm, read.affine)[:3, :3]
    assert np.allclose(np.abs(axes).sum(axis=0), 1, atol=1e-3), "on the voxels of the source"


def _write_phantom(folder: Path) -> list[Path]:
    data, _ = phantom()
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    return write_slices(folder, Grid(data.shape, affine), np.round(data * 2300).astype(np.uint16))


def _write_config(folder: Path, storescp: StoreScp) -> Path:
    write_anatomy_bundle(folder / "data" / "models")
    route = {"name": "heads", "pipeline": NAME, "match": {"Modality": "MR"}, "destinations": ["storescp"]}
    route["model"] = "anatomy@0.0.1"
    return write_config(folder, pipelines={"site": [NAME]}, peers=[storescp.peer], routes=[route])


def _send(node: Node, paths: list[Path]) -> None:
    program = require_program("/usr/bin/storescu", "dcmtk")
    command = [program, "-R", "-aec", node.peer.ae_title, "127.0.0.1", str(node.peer.port), *map(str, paths)]
    subprocess.run(command, env={**os.environ, "TCP_NODELAY": "1"}, timeout=120, check=True)
