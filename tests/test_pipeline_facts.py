"""``dicomnode pipelines``: inputs, options, contract and the model in force, as the code and the bundles state them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

import pipelines
from db import deployments
from db.states import DeploymentMode
from dicomnode import cli
from dicomnode.config import Config
from dicomnode.deployment import pipeline_facts, pipeline_names
from dicomnode.errors import ConfigError
from model_zoo import registry
from pipelines import quality
from pipelines.contract import Pipeline
from tests.ct_bundle import write_ct_bundle

pytestmark = pytest.mark.slow


def describe(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert cli.main(["pipelines", "show", name, "--json"]) == 0
    shown: dict[str, object] = json.loads(capsys.readouterr().out)
    return shown


def test_the_list_names_every_pipeline_with_its_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pipelines", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(pipelines.MODULES) <= set(rows)
    assert rows["ms_lesions"]["inputs"] == "flair [t1w]"
    assert rows["ms_lesions"]["model"].startswith("synthetic_dir@")
    assert rows["ct_reconstruction"]["model"] == "ct_prior: not installed"


@pytest.mark.parametrize("name", sorted(pipelines.MODULES))
def test_every_option_says_what_it_means(name: str, tmp_path: Path) -> None:
    if name == "ct_reconstruction":  # whose bundle is not shipped
        write_ct_bundle(tmp_path / "models")
    config = Config.model_validate({"node": {"data_dir": str(tmp_path)}})
    options = pipeline_facts.describe_pipeline(name, config)["options"]
    assert options
    assert [option["name"] for option in options if not option["meaning"] or not option["values"]] == []


def test_options_have_defaults_and_allowed_values() -> None:
    options = {each["name"]: each for each in pipeline_facts.describe_pipeline("pet_synthesis", Config())["options"]}
    assert (options["samples"]["default"], options["samples"]["values"]) == (8, "integer, 2 to 64")
    assert options["steps"]["values"] == "1 | 4 | 15"
    assert options["what_if_mmse"]["values"] == "list of integer"
    assert options["abstain_between"]["values"] == "2 x number"
    dose = {each["name"]: each for each in pipeline_facts.describe_pipeline("standard_dose_pet", Config())["options"]}
    assert dose["dose_fraction"]["values"] == "number, > 0, <= 1"


def test_the_contract_is_that_of_the_bundle() -> None:
    shown = pipeline_facts.describe_pipeline("synthetic_dir", Config())
    facts = registry.find("synthetic_dir")
    rules = [rule for each in quality.read_input_rules(facts.metadata).values() for rule in each]
    alone = [row for row in shown["contract"] if row["input"] == "without t1w"]
    assert len(shown["contract"]) - len(alone) == len(rules)
    assert shown["digest"] == facts.digest
    ti = next(row for row in shown["contract"] if row["fact"] == "ti_ms")
    assert (ti["input"], ti["accepted"], ti["otherwise"]) == ("flair", "1400 to 3000 ms", "refuse")
    assert {"measurement": "mean standard deviation", "verdict": "hold", "when": "above 0.5"} in shown["limits"]


def test_a_rule_set_for_fewer_inputs_is_shown_as_such(tmp_path: Path) -> None:
    shown = pipeline_facts.describe_contract(
        {"input_contract": {}, "input_contract_without_t1w": [{"fact": "te_ms", "between": [1, 2], "needed": True}]}
    )
    assert [(row["input"], row["accepted"], row["needed"]) for row in shown] == [("without t1w", "1 to 2 ms", True)]


def test_the_page_fits_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["pipelines", "show", "mri_reconstruction"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:2] == ["kspace", "k-space"] for line in lines)


def test_a_limit_above_and_one_below_are_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pipelines", "show", "synthetic_dir"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("cortex on DIR")]
    assert row.split()[3:] == ["above", "1.5", "or", "below", "0.5", "hold"]


def test_the_list_imports_no_pipeline_and_says_what_the_pipelines_say() -> None:
    loaded = {name: pipelines.load(name) for name in pipelines.MODULES}
    assert {name: each.title for name, each in loaded.items()} == dict(pipelines.TITLES)
    assert {name: pipelines.format_inputs(each) for name, each in loaded.items()} == dict(pipelines.INPUTS)
    code = "import sys; from dicomnode import cli; cli.main(['pipelines', 'list']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "synthetic_dir@" in done.stdout


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pipelines", "show", "nonsense"]) == 1
    assert "there are: anatomy" in capsys.readouterr().err


def test_a_pipeline_whose_bundle_is_not_installed_is_listed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, config: Config, model: str = "") -> Pipeline:
        raise ConfigError(f"the module of {name} cannot be imported")

    names = pipeline_names.list_pipelines(Config())
    monkeypatch.setattr(pipelines, "BUNDLES", {**pipelines.BUNDLES, "anatomy": "nowhere"})
    monkeypatch.setattr(pipeline_names, "list_pipelines", lambda config: [*names, "own"])
    monkeypatch.setattr(pipeline_names, "resolve_pipeline", refuse)
    rows = {row["name"]: row for row in pipeline_facts.list_facts(Config())}
    assert rows["anatomy"]["model"] == "nowhere: not installed"
    assert "cannot be imported" in rows["own"]["title"]
    assert rows["mri_reconstruction"]["model"].startswith("mri_prior@")


def test_a_deployed_version_is_the_one_described(sessions: sessionmaker[Session]) -> None:
    facts = registry.find("anatomy")
    config = Config()
    with sessions.begin() as session:
        assert pipeline_facts.describe_pipeline("anatomy", config, session)["model"] == f"anatomy@{facts.version}"
        deployments.deploy(
            session, pipeline="anatomy", name="mri_prior", version=registry.find("mri_prior").version,
            digest="d", mode=DeploymentMode.CURRENT, who="me", now=datetime.now(UTC),
        )  # fmt: skip
    with sessions() as session:
        assert pipeline_facts.describe_pipeline("anatomy", config, session)["model"].startswith("mri_prior@")
