"""Model versions by study: current, shadow, share and rollback."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from db import audit, deployments, jobs
from db import engine as engines
from db.models import Deployment, Event, Job, Output
from db.states import DeploymentMode, InvalidTransition, JobState
from dicomnode import cli, uids
from dicomnode.config import load
from dicomnode.deployment import models, pipeline_names
from dicomnode.dimse import peers
from dicomnode.execution import reference
from dicomnode.results import provenance
from model_zoo import installing, registry
from model_zoo.bundle import BundleError, weights_digest
from model_zoo.installing import Policy
from model_zoo.registry import WEIGHTS
from pipelines.codes import LOW_CONFIDENCE, SPATIAL
from pipelines.contract import Code, Finding, Image, Segment, Segmentation, Volume
from tests import databases, scanner
from tests.peers import Node, StoreScp, make_route, wait_for, write_config
from tests.peers.kspaces import raw_data
from tests.prior_bundle import write_prior_bundle
from tests.rows import add_job
from tests.test_node import put

PIPELINE = "mri_reconstruction"
OBJECTS = 5  # clean image, labelled image, standard deviation, low-confidence region, report
CURRENT, SHADOW, SHARE = DeploymentMode.CURRENT, DeploymentMode.SHADOW, DeploymentMode.SHARE


def deploy(
    session: Session, version: str, now: datetime, mode: DeploymentMode = CURRENT, percent: float | None = None
) -> Deployment:
    return deployments.deploy(
        session, pipeline=PIPELINE, name="m", version=version, digest=version * 64, mode=mode, percent=percent,
        who="Ada", now=now,
    )  # fmt: skip


def rollback(session: Session, now: datetime) -> str:
    row = deployments.rollback(session, pipeline=PIPELINE, who="Ada", now=now)
    return row.version if row else ""


def choose(session: Session, study_uid: str = "1.2.3") -> tuple[str, str]:
    """Return the version that processes a study, and its shadow."""
    found = deployments.choose(session, PIPELINE, study_uid)
    if found is None:
        return "", ""
    return found.version.model, found.shadow.model if found.shadow else ""


def test_without_a_deployment_nothing_is_chosen(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        assert choose(session) == ("", "")


def test_the_newest_current_version_is_used_and_ends_trials(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        deploy(session, "1", now)
        deploy(session, "2", now, SHADOW)
        assert choose(session) == ("m@1", "m@2")
        deploy(session, "3", now, SHADOW)
        assert choose(session) == ("m@1", "m@3")
        deploy(session, "2", now)
        assert choose(session) == ("m@2", "")


def test_trials_work_beside_the_default_version(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        deploy(session, "2", now, SHADOW)
        assert choose(session) == ("", "m@2")
        deploy(session, "3", now, SHARE, 50)
        studies = [uids.derive("study", str(number)) for number in range(100)]
        assert {choose(session, uid) for uid in studies} == {("", "m@2"), ("m@3", "m@2")}
        assert rollback(session, now) == ""
        assert choose(session) == ("", "")


def test_a_shadow_is_ended_with_its_waiting_jobs_and_nothing_else(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    with sessions.begin() as session:
        with pytest.raises(InvalidTransition, match="no shadow version runs"):
            deployments.end_shadow(session, pipeline=PIPELINE, who="Ada", now=now)
        deploy(session, "2", now, SHADOW)
        deploy(session, "3", now, SHARE, 50)
        job = add_job(session, now, pipeline=PIPELINE, model="")
        shadow = add_job(session, now, pipeline=PIPELINE, model="m@2", shadow_of=job, destinations=[])
        ended = deployments.end_shadow(session, pipeline=PIPELINE, who="Ada", now=now)
        assert (ended.version, ended.ended_by) == ("2", "ended by Ada")
        assert (shadow.state, job.state) == (JobState.CANCELLED, JobState.READY)
        assert set(deployments.find_in_force(session, PIPELINE)) == {SHARE}


def test_the_end_of_a_shadow_leaves_the_share_of_the_same_version(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    facts: dict[str, Any] = {"pipeline": PIPELINE, "model": "m@2", "model_digest": "2" * 64}
    with sessions.begin() as session:
        deploy(session, "2", now, SHADOW)
        deploy(session, "2", now, SHARE, 50)
        shared = add_job(session, now, **facts)
        primary = add_job(session, now, study="1.2", pipeline=PIPELINE)
        shadow = add_job(session, now, study="1.2", shadow_of=primary, destinations=[], **facts)
        deployments.end_shadow(session, pipeline=PIPELINE, who="Ada", now=now)
        assert (shared.state, shared.model) == (JobState.READY, "m@2")
        assert shadow.state is JobState.CANCELLED


def test_a_default_that_is_not_shipped_is_pinned_when_the_job_is_made(tmp_path: Path) -> None:
    config = load(write_config(tmp_path))
    bundle = write_prior_bundle(config.models_dir / "own" / "1.0.0", "1.0.0", name="own")
    digest = weights_digest(bundle / WEIGHTS)
    pin = pipeline_names.pin_default
    assert pin("bundle:own", "", config) == deployments.Version("own@1.0.0", digest)
    assert pin(PIPELINE, "own", config) == deployments.Version("own@1.0.0", ""), "the route's own model"
    assert pin(PIPELINE, "own@1.0.0", config) == deployments.Version("own@1.0.0", "")
    assert pin(PIPELINE, "", config) == deployments.DEFAULT, "the shipped version comes with the program"
    assert pin("bundle:nothing", "", config) == deployments.DEFAULT


@pytest.mark.parametrize("route", [{"model": "own"}, {"pipeline": "bundle:own"}])
def test_a_version_that_a_route_uses_by_default_is_not_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], route: dict[str, Any]
) -> None:
    path = write_config(tmp_path, routes=[make_route() | route])
    for version in ("1.0.0", "2.0.0"):
        source = write_prior_bundle(tmp_path / version, version, name="own")
        with installing.stage_bundle(source, load(path).models_dir, Policy()) as staged:
            staged.commit()
    databases.prepare(load(path))
    assert cli.main(["--config", str(path), "models", "remove", "own@1.0.0"]) == 1
    assert "own@1.0.0 is the version that route kspace uses by default" in capsys.readouterr().err
    assert cli.main(["--config", str(path), "models", "remove", "own@2.0.0"]) == 0


def test_a_job_of_a_share_is_compared_with_the_current_version(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        deploy(session, "2", now, SHARE, 50)
        facts: dict[str, Any] = {"pipeline": PIPELINE, "model": "m@2", "model_digest": "2" * 64}
        shared, other = add_job(session, now, **facts), add_job(session, now, study="1.2", pipeline=PIPELINE)
        assert deployments.find_reference(session, shared) == deployments.DEFAULT
        assert deployments.find_reference(session, other) is None
        deploy(session, "3", now + timedelta(hours=1))
        expected = deployments.Version("m@3", "3" * 64)
        assert deployments.find_reference(session, shared) == expected, "its share has ended since"
        deploy(session, "2", now + timedelta(hours=2))
        assert deployments.find_reference(session, shared) is None, "it is the current version now"
        deploy(session, "3", now + timedelta(hours=3))
        later = add_job(session, now + timedelta(hours=4), study="1.3", **facts)
        assert deployments.find_reference(session, later) is None, "it was never of a share"


def test_a_trial_is_of_another_version_than_the_current_one(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        deploy(session, "1", now)
        with pytest.raises(InvalidTransition, match=r"m@1 is the current version"):
            deploy(session, "1", now, SHARE, 50)


def test_a_share_takes_its_percentage_of_studies_and_always_the_same_ones() -> None:
    studies = [uids.derive("study", str(number)) for number in range(4000)]
    shares = {percent: {uid for uid in studies if deployments.is_in_share("p", uid, percent)} for percent in (10, 50)}
    assert 0.08 < len(shares[10]) / len(studies) < 0.12
    assert 0.47 < len(shares[50]) / len(studies) < 0.53
    assert shares[10] < shares[50], "a larger share keeps the studies of the smaller one"
    other = {uid for uid in studies if deployments.is_in_share("q", uid, 50)}
    assert 0.4 < len(other & shares[50]) / len(other) < 0.6, "of another pipeline they are others"


def test_rollback_goes_back_step_by_step_and_no_further(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        with pytest.raises(InvalidTransition, match="nothing to go back to"):
            rollback(session, now)
        for version in "123":
            deploy(session, version, now)
        deploy(session, "3", now)
        deploy(session, "4", now, SHARE, 50)
        assert rollback(session, now) == "3", "the share was the last step"
        assert SHARE not in deployments.find_in_force(session, PIPELINE)
        assert rollback(session, now) == "2"
        assert rollback(session, now) == "1"
        assert rollback(session, now) == "", "before it was the default version"
        with pytest.raises(InvalidTransition, match="nothing to go back to"):
            rollback(session, now)


def test_history_says_who_and_when_and_so_does_the_audit_trail(sessions: sessionmaker[Session], now: datetime) -> None:
    later = now + timedelta(hours=1)
    with sessions.begin() as session:
        deploy(session, "1", now)
        deploy(session, "2", later)
    with sessions.begin() as session:
        newest, oldest = deployments.list_history(session, PIPELINE)
        assert (newest.version, newest.who, newest.started_at, newest.ended_at) == ("2", "Ada", later, None)
        assert (oldest.ended_at, oldest.ended_by) == (later, "m@2 deployed as current")
        events = session.query(Event).filter_by(subject="deployments").order_by(Event.seq).all()
        assert [each.event for each in events] == ["deployed", "ended", "deployed"]
        assert events[-1].detail["digest"] == "2" * 64
        assert audit.verify(session) is None


def test_the_history_on_a_terminal_says_who_ended_a_version_and_why(
    tmp_path: Path, now: datetime, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path)
    databases.prepare(load(path))
    with engines.sessions(engines.connect(load(path).database_url)).begin() as session:
        deploy(session, "1", now)
        deployments.rollback(session, pipeline=PIPELINE, who="Grace", why="ring", now=now + timedelta(hours=1))
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--config", str(path), "models", "history"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("Ada", "ended", "rolled", "Grace:", "ring"):
        assert word in shown


def test_the_database_keeps_one_version_of_a_mode_in_force(engine: Engine, now: datetime) -> None:
    with sessionmaker(engine)() as session:
        for version in "12":
            session.add(
                Deployment(
                    pipeline=PIPELINE,
                    name="m",
                    version=version,
                    digest="",
                    mode=CURRENT,
                    who="",
                    why="",
                    started_at=now,
                )
            )
        with pytest.raises(IntegrityError):
            session.flush()


def test_what_is_needed_is_named(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        for version in "123":
            deploy(session, version, now)
        assert deployments.list_uses(session, "m", "3") == [f"the current version of {PIPELINE}"]
        assert deployments.list_uses(session, "m", "2") == [f"what a rollback goes back to of {PIPELINE}"]
        assert deployments.list_uses(session, "m", "1") == []
        add_job(session, now, model="m@1")
        assert deployments.list_uses(session, "m", "1") == ["1 jobs that have not ended"]


def test_rollback_takes_waiting_jobs_along_and_leaves_running_ones(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    facts: dict[str, Any] = {"pipeline": PIPELINE, "model": "m@2", "model_digest": "2" * 64}
    with sessions.begin() as session:
        deploy(session, "1", now)
        deploy(session, "2", now)
        running = add_job(session, now, study="1.1", **facts)
        assert jobs.claim(session, worker="w", lease_s=9, now=now) is running
        waiting = add_job(session, now, study="1.2", **facts)
        key, by_route = waiting.key, add_job(session, now, study="1.3", pipeline=PIPELINE, model="m@2")
        assert rollback(session, now) == "1"
        assert (running.state, running.model) == (JobState.RUNNING, "m@2")
        assert (waiting.state, waiting.model, waiting.model_digest) == (JobState.READY, "m@1", "1" * 64)
        assert waiting.key != key
        assert by_route.model == "m@2", "its route names that version"


def test_a_waiting_job_is_not_done_twice_after_a_rollback(sessions: sessionmaker[Session], now: datetime) -> None:
    facts: dict[str, Any] = {"pipeline": PIPELINE, "study": "1.1"}
    with sessions.begin() as session:
        deploy(session, "1", now)
        deploy(session, "2", now)
        first = add_job(session, now, model="m@1", model_digest="1" * 64, **facts)
        jobs.claim(session, worker="w", lease_s=9, now=now)
        second = add_job(session, now, model="m@2", model_digest="2" * 64, **facts)
        rollback(session, now)
        assert second.state is JobState.CANCELLED
        assert f"job {first.id} has done the same" in second.reason


@pytest.mark.parametrize("mode", [CURRENT, SHARE])
def test_a_job_of_a_route_with_its_own_model_is_not_of_a_deployment_of_the_same_version(
    sessions: sessionmaker[Session], tmp_path: Path, now: datetime, mode: DeploymentMode
) -> None:
    config = load(write_config(tmp_path))
    bundle = write_prior_bundle(config.models_dir / "own" / "1.0.0", "1.0.0", name="own")
    pinned = pipeline_names.pin_default(PIPELINE, "own", config)
    facts: dict[str, Any] = {"name": "own", "version": "1.0.0", "digest": weights_digest(bundle / WEIGHTS)}
    with sessions.begin() as session:
        deployments.deploy(
            session, pipeline=PIPELINE, mode=mode, percent=50 if mode is SHARE else None, who="Ada", now=now, **facts
        )
        job = add_job(session, now, pipeline=PIPELINE, model=pinned.model, model_digest=pinned.digest)
        assert deployments.find_reference(session, job) is None, "no share has chosen it"
        rollback(session, now)
        assert (job.state, job.model) == (JobState.READY, "own@1.0.0"), "the rollback is of the deployment"


def test_a_job_of_the_version_that_is_in_force_after_a_rollback_waits_on(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    pinned = deployments.Version("m@1", "1" * 64)
    with sessions.begin() as session:
        job = add_job(session, now, pipeline=PIPELINE, model=pinned.model, model_digest=pinned.digest)
        deploy(session, "1", now)
        deployments.rollback(session, pipeline=PIPELINE, who="Ada", default=pinned, now=now)
        assert (job.state, job.model) == (JobState.READY, "m@1")


def make_pair(session: Session, now: datetime) -> tuple[Job, Job]:
    """Create a job and its shadow job."""
    job = add_job(session, now, pipeline=PIPELINE, model="m@1")
    shadow = add_job(session, now, pipeline=PIPELINE, model="m@2", shadow_of=job, destinations=[], priority=99)
    return job, shadow


def test_a_shadow_waits_until_the_job_beside_it_has_ended(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        job, shadow = make_pair(session, now)
        assert job.state is JobState.READY, "it was not superseded"
        assert jobs.claim(session, worker="w", lease_s=9, now=now) is job
        assert jobs.claim(session, worker="x", lease_s=9, now=now) is None
        jobs.finish(session, job_id=job.id, worker="w", outputs=[], report={}, now=now)
        assert jobs.claim(session, worker="x", lease_s=9, now=now) is shadow


def test_a_shadow_goes_with_the_job_beside_it_and_with_its_version(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    with sessions.begin() as session:
        job, shadow = make_pair(session, now)
        jobs.cancel(session, job, reason="not wanted", now=now)
        assert (shadow.state, shadow.reason) == (JobState.CANCELLED, f"job {job.id} was cancelled")
        jobs.retry(session, shadow, reason="again", now=now)
        deploy(session, "0", now)
        deploy(session, "1", now)
        deploy(session, "2", now, SHADOW)
        rollback(session, now)
        assert shadow.state is JobState.CANCELLED


def test_helpers_follow_what_is_deployed_and_weights_must_be_those_that_were(
    sessions: sessionmaker[Session], tmp_path: Path, now: datetime
) -> None:
    with sessions.begin() as session:
        for version in "21":
            deploy(session, version, now)
        assert deployments.find_current_by_bundle(session) == {"m": "m@1"}
    config = load(write_config(tmp_path))
    for version in ("10.0.0", "11.0.0"):
        write_prior_bundle(config.models_dir / "mri_prior" / version, version)
    pinned = {"mri_prior": "mri_prior@10.0.0"}
    model = models.load("mri_prior", ("mri_prior",), config, pinned=pinned)
    assert (model.version, model.helpers["mri_prior"].version) == ("1.0.0", "10.0.0")
    with pytest.raises(BundleError, match=r"mri_prior@10\.0\.0 was deployed with the weights 1111"):
        models.load("mri_prior@10.0.0", (), config, digest="1" * 64)


def test_without_a_deployment_the_shipped_version_is_used_or_the_one_installed_first(tmp_path: Path) -> None:
    config = load(write_config(tmp_path))
    shipped = models.find_bundle("mri_prior", config)
    assert registry.BUNDLES in shipped.path.parents
    for version in ("10.0.0", "9.0.0"):
        write_prior_bundle(config.models_dir / "mri_prior" / version, version)
        source = write_prior_bundle(tmp_path / version, version, name="own_prior")
        with installing.stage_bundle(source, config.models_dir, Policy()) as staged:
            staged.commit()
    assert models.find_bundle("mri_prior", config) == shipped, "installing changes nothing"
    assert models.find_bundle("own_prior", config).version == "10.0.0"
    assert models.find_bundle("own_prior@9.0.0", config).version == "9.0.0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deployed", "limit_db", "state"),
    [
        (("--share", "99.9"), 60.0, JobState.HELD),
        (("--share", "99.9"), 5.0, JobState.DONE),
        ((), 60.0, JobState.DONE),
    ],
    ids=["share, far", "share, near", "current"],
)
def test_a_result_of_a_share_far_from_the_current_version_is_held(
    tmp_path: Path, now: datetime, deployed: tuple[str, ...], limit_db: float, state: JobState
) -> None:
    quality = {"hold_below": {reference.PSNR_MEASURED: limit_db}}
    route = make_route(steps=2, mean_steps=2, samples=2)
    running = Node(write_config(tmp_path, routes=[route], quality=quality))
    write_prior_bundle(running.config.models_dir / "mri_prior" / "10.0.0", "10.0.0", seed=3)
    words = ["models", "deploy", "mri_prior@10.0.0", "--pipeline", PIPELINE, *deployed]
    assert cli.main(["--config", str(running.config.path), *words]) == 0
    put(running, raw_data(tmp_path / "raw.dcm", now), datetime.now(UTC))  # after the deployment
    assert cli.main(["--config", str(running.config.path), "work", "--once"]) == 0
    (job,) = running.jobs()
    assert (job.state, job.report["model"]) == (state, "mri_prior@10.0.0")
    measured = job.report.get("reference", {}).get(reference.PSNR_MEASURED)
    assert (measured is not None) == bool(deployed)
    held = (
        f"{reference.PSNR_MEASURED} is {measured:.4g} dB, below the limit of 60 dB: "
        if state is JobState.HELD
        else "finished"
    )
    assert job.reason.startswith(held)


def test_the_worst_image_and_the_overlap_of_all_labels_are_compared() -> None:
    def image(name: str, *values: float) -> Image:
        data = np.array(values, np.float32).reshape(1, 1, -1)
        return Image(name, Volume(data, scanner.make_grid("axial", data.shape, (1, 1, 1), (0, 0, 0))), "", 1.0)

    def labels(name: str, *values: int, type: Code = SPATIAL) -> Segmentation:
        data = np.array(values, np.uint8).reshape(1, 1, -1)
        grid = scanner.make_grid("axial", data.shape, (1, 1, 1), (0, 0, 0))
        return Segmentation(name, data, grid, (Segment(1, "one", SPATIAL, type),), "", 1.0)

    def compare(before: list[Finding], after: list[Finding]) -> dict[str, float]:
        return {each.name: round(each.value, 3) for each in reference.compare_findings(before, after)}

    assert compare([image("a", 1, 0), image("b", 1, 1)], [image("a", 1, 0), image("b", 1, 0.9)]) == {
        reference.PSNR_MADE: round(20 * math.log10(1 / math.sqrt(0.005)), 3)
    }
    assert compare([image("a", 1)], []) == {reference.PSNR_MADE: 0.0}
    restored = replace(image("a", 1), modality="PT")
    assert compare([restored], [restored]) == {reference.PSNR_MEASURED: 100.0}
    assert compare([labels("a", 1, 1, 0, 0), labels("b", 2)], [labels("a", 1, 0, 1, 0), labels("b", 2)]) == {
        reference.OVERLAP: round(2 * 2 / 6, 3)
    }
    assert compare([labels("a", 1)], [labels("a", 2)]) == {reference.OVERLAP: 0.0}
    assert compare([labels("a", 1, type=LOW_CONFIDENCE)], [labels("a", 0, type=LOW_CONFIDENCE)]) == {}


CONTRACT = {"kspace": [{"fact": "acceleration", "between": [1, 1.2]}]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "state", "verdict"),
    [
        ({"input_contract": CONTRACT}, JobState.REFUSED, "refuse"),
        ({"output_limits": {"hold_above": {"acceleration": 1.0}}}, JobState.DONE, "hold"),
    ],
)
def test_a_shadow_that_would_refuse_or_hold_is_told_and_touches_nothing(
    tmp_path: Path, now: datetime, facts: dict[str, Any], state: JobState, verdict: str
) -> None:
    running = Node(
        write_config(tmp_path, routes=[make_route(steps=2, mean_steps=2, samples=2) | {"refusal_note": True}])
    )
    write_prior_bundle(running.config.models_dir / "mri_prior" / "10.0.0", "10.0.0")
    write_prior_bundle(running.config.models_dir / "mri_prior" / "11.0.0", "11.0.0", **facts)
    for version, *how in (("10.0.0",), ("11.0.0", "--shadow")):
        words = ["models", "deploy", f"mri_prior@{version}", "--pipeline", PIPELINE, *how]
        assert cli.main(["--config", str(running.config.path), *words]) == 0
    put(running, raw_data(tmp_path / "raw.dcm", now), now)
    assert cli.main(["--config", str(running.config.path), "work", "--once"]) == 0
    job, shadow = running.jobs()
    assert (job.state, shadow.state) == (JobState.DONE, state)
    compared = shadow.report["comparison"]
    assert (compared["before"]["verdict"], compared["after"]["verdict"]) == ("accept", verdict)
    assert shadow.report["seed"] == job.report["seed"] if state is JobState.DONE else compared["after"]["reason"]
    with running.sessions() as session:
        assert {output.job_id for output in session.query(Output)} == {job.id}, "neither results nor a note"


# Deployments of a site over the network


@dataclass
class Site:
    """Running node, an archive, and two versions of a model to install."""

    node: Node
    archive: StoreScp
    folder: Path
    now: datetime
    digests: dict[str, str]
    sent: list[str] = field(default_factory=list)

    def send(self, count: int) -> list[str]:
        """Send studies by C-STORE; return their UIDs."""
        new: list[str] = [uids.derive("a study of the story", str(len(self.sent) + number)) for number in range(count)]
        for uid in new:
            path = raw_data(self.folder / f"{uid}.dcm", self.now, StudyInstanceUID=uid, PatientID=uid[-8:])
            (result,) = peers.store(self.node.peer, [path], calling_aet="SCANNER")
            assert result.status == 0x0000, "nothing stops meanwhile"
        self.sent += new
        return new

    def delivered_versions(self, studies: list[str]) -> dict[str, str]:
        """Wait for all deliveries; return by study the model version of its delivered results, found by digest."""
        versions = {digest: version for version, digest in self.digests.items()}
        expected = ["delivered"] * OBJECTS * len(self.sent)
        wait_for(lambda: [row.state for row in self.node.deliveries()] == expected, "delivery", within_s=200)
        found: dict[str, set[str]] = {}
        for ds in (ds for ds in self.archive.datasets() if ds.StudyInstanceUID in studies):
            found.setdefault(ds.StudyInstanceUID, set()).add(versions[provenance.read_record(ds)["model"]["sha256"]])
        assert all(len(names) == 1 for names in found.values()), "all of a study's results are of one version"
        return {uid: names.pop() for uid, names in found.items()}

    def run_models(self, *words: str) -> str:
        """Run ``dicomnode models`` and return its output."""
        done = self.node.command("models", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run_refused(self, *words: str) -> str:
        """Run ``dicomnode models``, which fails, and return its one line of error."""
        done = self.node.command("models", *words)
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        return line


@pytest.fixture
def site(tmp_path: Path, now: datetime, storescp: StoreScp) -> Iterator[Site]:
    versions = {"10.0.0": 1, "11.0.0": 2}
    bundles = {name: write_prior_bundle(tmp_path / name, name, seed=seed) for name, seed in versions.items()}
    digests = {name: weights_digest(path / WEIGHTS) for name, path in bundles.items()}
    route = make_route("storescp", steps=2, mean_steps=2, samples=2)
    quality = {"hold_below": {reference.PSNR_MEASURED: 1.0}}  # the two versions are unlike: untrained networks
    with Node(write_config(tmp_path / "node", peers=[storescp.peer], routes=[route], quality=quality)) as running:
        yield Site(running, storescp, tmp_path, now, digests)


def test_a_new_version_comes_beside_for_a_share_for_all_and_is_taken_back(site: Site) -> None:
    old, new = "10.0.0", "11.0.0"
    site.run_models("install", str(site.folder / old), "--yes")
    site.run_models("deploy", f"mri_prior@{old}", "--pipeline", PIPELINE, "--who", "Ada")
    first = site.send(2)
    assert site.delivered_versions(first) == dict.fromkeys(first, old)

    broken = write_prior_bundle(site.folder / "broken", "12.0.0")
    (broken / WEIGHTS).write_bytes(b"\x80\x04.")
    assert "pickle in disguise" in site.run_refused("install", str(broken), "--yes")
    site.run_models("install", str(site.folder / new), "--yes")
    site.run_models("deploy", f"mri_prior@{new}", "--pipeline", PIPELINE, "--shadow", "--who", "Ada")
    shadowed = site.send(2)
    assert site.delivered_versions(shadowed) == dict.fromkeys(shadowed, old), "the new version delivers nothing"
    compared = _wait_for_comparisons(site, 2)
    assert {row["study_uid"] for row in compared} == set(shadowed)
    for row in compared:
        assert (row["before_digest"], row["after_digest"]) == (site.digests[old], site.digests[new])
        assert row["psnr_db"] is not None
        assert row["numbers"]
        assert row["before_s"] > 0 < row["after_s"]

    site.run_models("deploy", f"mri_prior@{new}", "--pipeline", PIPELINE, "--share", "50", "--who", "Ada")
    shared = site.send(2)
    expected = {uid: new if deployments.is_in_share(PIPELINE, uid, 50) else old for uid in shared}
    assert set(expected.values()) == {old, new}
    assert site.delivered_versions(shared) == expected

    site.run_models("deploy", f"mri_prior@{new}", "--pipeline", PIPELINE, "--who", "Ada")
    after = site.send(1)
    assert site.delivered_versions(after) == dict.fromkeys(after, new)
    weights = site.node.config.models_dir / "mri_prior" / new / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert "SHA-256" in site.run_refused("deploy", f"mri_prior@{new}", "--pipeline", PIPELINE)
    assert "what a rollback goes back to" in site.run_refused("remove", f"mri_prior@{old}")
    site.run_models("rollback", PIPELINE, "--who", "Grace", "--why", "worse")
    last = site.send(1)
    assert site.delivered_versions(last) == dict.fromkeys(last, old)
    _check_end(site)


def _wait_for_comparisons(site: Site, count: int) -> list[dict[str, Any]]:
    def rows() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(site.run_models("compare", PIPELINE, "--json"))
        return found if [row["state"] for row in found] == ["done"] * count else []

    return wait_for(rows, "every study was compared", within_s=120)


def _check_end(site: Site) -> None:
    history = json.loads(site.run_models("history", PIPELINE, "--json"))
    assert [(row["mode"], row["who"]) for row in history] == [
        ("current", "Grace"), ("current", "Ada"), ("share", "Ada"), ("shadow", "Ada"), ("current", "Ada")
    ]  # fmt: skip
    assert history[0]["why"] == "worse"
    states = {(job.state, job.shadow_of_id is None) for job in site.node.jobs()}
    assert states <= {(JobState.DONE, True), (JobState.DONE, False)}
    own_jobs = [job for job in site.node.jobs() if job.shadow_of_id is None]
    assert len(own_jobs) == len(site.sent), "every study was worked on once"
    replayed = site.node.command("studies", "replay", site.sent[0], "--model", "mri_prior@1.0.0", "--json")
    rows = json.loads(replayed.stdout)
    assert {"image", "measurement", "seconds", "digest"} <= {row["kind"] for row in rows}
    (digest,) = [row for row in rows if row["kind"] == "digest"]
    assert digest["before"] == site.digests["10.0.0"]
