"""The command line: exit codes, one line for an error, JSON on every listing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import jobs, studies
from db.models import Job
from db.states import JobState
from dicomnode import cli, config, node
from tests import databases
from tests.peers import Node, make_route, write_config
from tests.peers.kspaces import raw_data
from tests.prior_bundle import write_prior_bundle
from tests.rows import add_job, make_arrival

pytestmark = pytest.mark.slow


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    route = {"name": "flair", "pipeline": "mri_reconstruction", "match": {"SeriesDescription": "~FLAIR"}}
    path = write_config(tmp_path, routes=[route])
    databases.prepare(config.load(path))
    return path


@pytest.fixture
def node_sessions(config_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = engines.connect(config.load(config_path).database_url)
    yield engines.sessions(engine)
    engine.dispose()


@pytest.fixture
def job_id(node_sessions: sessionmaker[Session]) -> int:
    with node_sessions.begin() as session:
        return add_job(session, datetime.now(UTC)).id


def run(path: Path, *arguments: str) -> int:
    return cli.main(["--config", str(path), *arguments])


def list_heavy_modules(code: str) -> set[str]:
    """Return the heavy packages that a fresh interpreter has loaded after the code."""
    heavy = ("torch", "highdicom", "pydicom", "pynetdicom", "numpy", "sqlalchemy", "scipy.stats", "h5py")
    code = f"import sys; {code}; print('loaded:', *[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_help_names_every_command_and_loads_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    help_text = capsys.readouterr().out
    assert all(f" {name} " in help_text for name in cli.COMMANDS)
    assert list_heavy_modules("from dicomnode import cli; cli.main(['--help'])") == set()


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dicomnode {version('dicomnode')}\n"


def test_serving_needs_no_torch() -> None:
    assert not {"torch", "highdicom"} & list_heavy_modules("import dicomnode.node, dicomnode.cli.serve")


@pytest.mark.slow
def test_check_loads_nothing_that_it_does_not_check(tmp_path: Path) -> None:
    """Statistics, writers of DICOM and k-space cost more than a second: what reads them is loaded by jobs only."""
    path = write_config(
        tmp_path,
        routes=[
            make_route(),
            *({**make_route(), "name": name, "pipeline": name} for name in ("synthetic_dir", "pet_synthesis")),
        ],
    )
    loaded = list_heavy_modules(f"from dicomnode import cli; cli.main(['--config', {str(path)!r}, 'check'])")
    assert "torch" in loaded, "the routes were checked"
    assert not {"scipy.stats", "highdicom", "h5py"} & loaded


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nonsense"]) == 2
    assert cli.main(["jobs", "show", "not-a-number"]) == 2
    assert cli.main([]) == 2


def test_failure_is_1_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.toml", "status") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "does not exist: run 'dicomnode init'" in captured.err


def test_unforeseen_error_is_one_line_without_its_words(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with engines.connect(config.load(config_path).database_url).begin() as connection:
        connection.exec_driver_sql("DROP TABLE deliveries")
    assert run(config_path, "status") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_init_writes_a_configuration_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", str(tmp_path / "new")]) == 0
    assert config.load(tmp_path / "new" / "node.toml").spool_dir.is_dir()
    assert cli.main(["init", str(tmp_path / "new")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_check_reports_what_is_wrong_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    route = {"name": "r", "pipeline": "no_such", "match": {"Modality": "MR"}}
    path = write_config(tmp_path, routes=[route])
    assert run(path, "check", "--json") == 1
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["route r"]["result"] == "failed"
    assert "no pipeline is named 'no_such'" in checks["route r"]["detail"]
    assert checks["senders"]["result"] == "warning"
    assert checks["spool"]["result"] == "ok"


def test_check_names_the_version_that_each_pipeline_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, routes=[make_route()])
    node = config.load(path)
    write_prior_bundle(node.models_dir / "mri_prior" / "10.0.0", "10.0.0")

    def check() -> dict[str, str]:
        run(path, "check", "--json")
        rows = json.loads(capsys.readouterr().out)
        return {row["what"]: row["detail"] for row in rows if "model" in row["what"]}

    current = "current model of mri_reconstruction"
    assert check()[current] == "mri_prior@1.0.0, the default version, nothing is deployed, digest verified"
    deploy = ("models", "deploy", "mri_prior@10.0.0", "--pipeline", "mri_reconstruction", "--who", "Ada")
    assert run(path, *deploy, "--shadow") == 0
    assert run(path, *deploy, "--share", "10") == 0
    assert "as a shadow of the current version: it never ran as one" in capsys.readouterr().out
    found = check()
    assert found[current].startswith("mri_prior@1.0.0, the default version")
    assert found["shadow model of mri_reconstruction"] == "mri_prior@10.0.0, deployed by Ada, digest verified"
    assert "deployed by Ada for 10 % of the studies" in found["share model of mri_reconstruction"]
    assert run(path, "models", "end-shadow", "mri_reconstruction") == 0
    assert "mri_prior@10.0.0 is no shadow version any more" in capsys.readouterr().out
    assert "shadow model of mri_reconstruction" not in check()


def test_check_says_where_the_results_of_a_route_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = {"name": "pacs", "ae_title": "PACS", "port": 1}
    routes = [make_route() | {"name": "kept"}, make_route("pacs") | {"name": "sent"}]
    run(write_config(tmp_path, peers=[peer], routes=routes), "check", "--json")
    details = {row["what"]: row["detail"] for row in json.loads(capsys.readouterr().out)}
    assert details["route kept"].endswith("results go to no destination: they stay on this node")
    assert details["route sent"].endswith("results go to pacs")


def test_check_names_the_port_that_another_program_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        path = write_config(tmp_path, node={"port": port})
        assert run(path, "check", "--json") == 1
        checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)}
        assert checks["DICOM port"]["result"] == "failed"
        assert f"DICOMNODE at 127.0.0.1:{port}: Address already in use" in checks["DICOM port"]["detail"]
        assert run(path, "serve", "--workers", "0") == 1
        assert f"port = {port} (DICOM): Address already in use; set another" in capsys.readouterr().err


def test_check_sees_a_running_node(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = write_config(tmp_path, node={"port": port}, senders=[{"ae_title": "MR1"}])
    with Node(path, "serve", "--workers", "0") as running:
        checks = {check["what"]: check for check in json.loads(running.command("check", "--json").stdout)}
    assert checks["DICOM port"] == {
        "what": "DICOM port", "result": "ok", "detail": f"DICOMNODE at 127.0.0.1:{port}, where a node answers C-ECHO",
    }  # fmt: skip


def test_check_reads_the_trusted_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_config(tmp_path, models={"trusted_keys": ["none.pem"]}), "check", "--json") == 1
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["trusted keys"]["result"] == "failed"
    assert f"{tmp_path / 'none.pem'}: No such file or directory" in checks["trusted keys"]["detail"]


def test_a_spool_elsewhere_needs_no_data_folder_beforehand(tmp_path: Path) -> None:
    path = write_config(tmp_path, spool={"dir": "elsewhere"})
    node.prepare(config.load(path))
    assert (tmp_path / "data" / "node.sqlite").is_file()


def test_status_counts(config_path: Path, job_id: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config_path, "status", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["studies"] == {"receiving": 1}
    assert found["jobs"] == {"ready": 1}
    assert found["oldest_waiting_s"]["job"] >= 0
    assert run(config_path, "status") == 0


def test_listings_take_json(config_path: Path, job_id: int, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, key in ((["studies", "list"], "study_uid"), (["jobs", "list"], "id")):
        assert run(config_path, *arguments, "--json") == 0
        assert key in json.loads(capsys.readouterr().out)[0]
        assert run(config_path, *arguments) == 0
        capsys.readouterr()
    assert run(config_path, "jobs", "show", str(job_id), "--json") == 0
    assert json.loads(capsys.readouterr().out)["inputs"][0]["name"] == "match"
    assert run(config_path, "studies", "show", "1.2.1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["series"][0]["instances"] == 1
    assert run(config_path, "jobs", "list", "--state", "nonsense") == 2


def test_job_is_cancelled_retried_and_not_released(
    config_path: Path, job_id: int, node_sessions: sessionmaker[Session], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config_path, "jobs", "cancel", str(job_id)) == 0
    assert run(config_path, "jobs", "release", str(job_id)) == 1
    assert "only held results" in capsys.readouterr().err
    assert run(config_path, "jobs", "retry", str(job_id)) == 0
    with node_sessions() as session:
        assert session.get_one(Job, job_id).state is JobState.READY
    assert run(config_path, "jobs", "show", "999") == 1


def test_held_job_is_discarded(
    config_path: Path, job_id: int, node_sessions: sessionmaker[Session], now: datetime
) -> None:
    with node_sessions.begin() as session:
        jobs.claim(session, worker="w", lease_s=1, now=datetime.now(UTC))
        jobs.finish(session, job_id=job_id, worker="w", outputs=[], report={}, held_because="bad", now=now)
    assert run(config_path, "jobs", "discard", str(job_id)) == 0


def test_explain_a_study_and_a_file(
    config_path: Path, tmp_path: Path, job_id: int, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config_path, "studies", "explain", "1.2.1", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["matched"] == ["1.2.1.1"]
    path = raw_data(tmp_path / "raw.dcm", now)
    assert run(config_path, "studies", "explain", str(path), "--json") == 0
    verdict = json.loads(capsys.readouterr().out)[0]
    assert verdict["matched"] == []
    assert "nearest failed on SeriesDescription" in verdict["why"]
    assert run(config_path, "studies", "explain", "9.9") == 1


def test_study_is_closed_by_hand_once(
    config_path: Path, node_sessions: sessionmaker[Session], now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    with node_sessions.begin() as session:
        studies.register_instances(session, [make_arrival()], now=now)
    assert run(config_path, "studies", "close", "1.2.1") == 0
    assert run(config_path, "studies", "close", "1.2.1") == 1
    assert "complete already" in capsys.readouterr().err


def test_run_makes_results_from_a_folder(tmp_path: Path, now: datetime, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    raw_data(source / "raw.dcm", now)
    options = [argument for pair in ("steps=2", "mean_steps=2", "samples=2") for argument in ("--option", pair)]
    path = write_config(tmp_path)
    assert run(path, "run", "mri_reconstruction", str(source), str(tmp_path / "out"), *options, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in rows} == {"image", "labelled image", "parametric map", "segmentation", "report"}
    assert all(Path(row["file"]).is_file() for row in rows)
    assert run(path, "run", "mri_reconstruction", str(source), str(tmp_path / "out"), "--option", "steps=x") == 1
    assert "options of mri_reconstruction: steps" in capsys.readouterr().err
