"""deploy/compose.yaml: its services, users and rights, and the configuration of the node."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicomnode import config

DEPLOY = Path(__file__).parent.parent / "deploy"
IMAGES = dict(re.findall(r"(?m)^(\w+)=(\S+)$", (DEPLOY / "images.env").read_text()))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("node", "worker", "worker-gpu")
EACH = pytest.mark.parametrize("name", SERVICES)


def find_compose() -> list[str]:
    """Return the command of Docker Compose, version 2 or newer; skip the test without it."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and not done.stdout.startswith("1."):
                return command
    pytest.skip("docker compose is not installed (version 2 or newer)")


def test_the_whole_site_is_there() -> None:
    assert set(SERVICES) == {*OURS, "postgres", "orthanc", "prometheus", "grafana"}


@EACH
def test_a_service_may_do_nothing_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    user, _, _ = service["user"].partition(":")
    assert int(user) > 0


@EACH
def test_a_service_is_looked_after_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    assert service["restart"] == "unless-stopped"


@EACH
def test_a_service_writes_to_named_volumes_and_memory_only(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, _, _ = volume.partition(":")
        assert source in COMPOSE["volumes"], f"{name} mounts {source}"


@EACH
def test_a_tmpfs_has_only_options_that_podman_knows_as_well(name: str) -> None:
    for mounted in SERVICES[name].get("tmpfs", []):
        options = mounted.partition(":")[2].split(",")
        assert {option.partition("=")[0] for option in options if option} <= {"mode", "size"}, f"{name}: {mounted}"


@EACH
def test_an_image_is_ours_or_one_whose_version_is_stated(name: str) -> None:
    image = SERVICES[name]["image"]
    if name in OURS:
        assert image == f"dicomnode:{SERVICES[name]['build']['target']}"
        return
    variable = re.fullmatch(r"\$\{(\w+_IMAGE):\?.*\}", image)
    assert variable, f"{name}: {image}"
    assert variable[1] in IMAGES


def test_no_secret_is_a_value() -> None:
    for name, secret in COMPOSE["secrets"].items():
        assert set(secret) == {"file"}, name
        assert secret["file"].startswith("./secrets/"), name
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|KEY", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                assert value.startswith("/run/secrets/"), f"{name}: {variable}"
        sources = [each if isinstance(each, str) else each["source"] for each in service.get("secrets", [])]
        assert set(sources) <= set(COMPOSE["secrets"]), name


def test_the_script_draws_every_secret_that_is_asked_for() -> None:
    secrets = set(re.findall(r"(?m)^keep (\S+)", (DEPLOY / "new-secrets.sh").read_text()))
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} == secrets


def test_only_dicom_is_published_beyond_this_machine() -> None:
    published = {(name, port) for name, service in SERVICES.items() for port in service.get("ports", [])}
    beyond_loopback = {(name, port) for name, port in published if not port.startswith("127.0.0.1:")}
    assert beyond_loopback == {("node", "11112:11112")}


def test_workers_database_and_metrics_reach_nothing_outside() -> None:
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("worker", "worker-gpu", "postgres", "prometheus"):
        assert SERVICES[name]["networks"] == ["inside"], name


def test_gpus_are_asked_for_by_their_profile_only() -> None:
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["worker-gpu"]


def test_every_file_that_is_mounted_exists() -> None:
    for name, each in COMPOSE["configs"].items():
        assert (DEPLOY / each["file"]).is_file(), name
    sources = {each["source"] for service in SERVICES.values() for each in service.get("configs", [])}
    assert sources == set(COMPOSE["configs"])


def test_the_node_is_told_of_what_compose_starts() -> None:
    found = config.load(DEPLOY / "compose" / "node.toml")
    assert found.worker.concurrency == 0
    assert found.database.url.partition("@")[2].partition("/")[0] == "postgres"
    assert str(found.database.password_file) == "/run/secrets/database_password"
    assert str(found.web.token_file) == "/run/secrets/web_token"
    (volume,) = [each for each in SERVICES["worker"]["volumes"] if each.startswith("data:")]
    assert volume == f"data:{found.node.data_dir}"
    assert {volume} <= set(SERVICES["node"]["volumes"])
    assert [peer.host for peer in found.peers] == ["orthanc"]


def test_archive_and_node_know_each_other() -> None:
    found = config.load(DEPLOY / "compose" / "node.toml")
    archive = json.loads((DEPLOY / "compose" / "orthanc.json").read_text())
    (peer,) = found.peers
    assert (archive["DicomAet"], archive["DicomPort"]) == (peer.ae_title, peer.port)
    node = archive["DicomModalities"]["dicomnode"]
    assert (node["AET"], node["Host"], node["Port"]) == (found.node.ae_title, "node", found.node.port)
    assert archive["DicomAet"] in [sender.ae_title for sender in found.senders]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (boards,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/dicomnode.yml").read_text())["providers"]
    mounted = [each["target"] for each in SERVICES["grafana"]["configs"]]
    assert f"{boards['options']['path']}/dicomnode.json" in mounted
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "compose.yml").read_text())["scrape_configs"]
    assert [(job["job_name"], job["static_configs"][0]["targets"]) for job in scraped] == [("dicomnode", ["node:8104"])]


def test_compose_takes_the_file(tmp_path: Path) -> None:
    command = find_compose()
    files = ["--env-file", str(DEPLOY / "images.env"), "--file", str(DEPLOY / "compose.yaml"), "--profile", "gpu"]
    done = subprocess.run(
        [*command, *files, "config", "--format", "json"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    resolved = json.loads(done.stdout)["services"]
    assert set(resolved) == set(SERVICES)
    assert resolved["postgres"]["image"] == IMAGES["POSTGRES_IMAGE"]
    assert resolved["worker-gpu"]["build"]["target"] == "cuda"


def test_compose_refuses_to_start_images_that_nobody_stated(tmp_path: Path) -> None:
    command = find_compose()
    bare = {name: value for name, value in os.environ.items() if not name.endswith("_IMAGE")}
    done = subprocess.run(
        [*command, "--file", str(DEPLOY / "compose.yaml"), "config"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=bare,
    )  # fmt: skip
    assert done.returncode != 0
    assert "images.env" in done.stderr
