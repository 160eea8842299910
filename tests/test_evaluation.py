"""Evaluations make tables and a model card for the reader; the commands print and write them."""

from __future__ import annotations

import json
import re
import shutil
from datetime import date
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dicomnode import cli
from model_zoo import evaluation, registry, training
from model_zoo.bundle import BundleFacts
from model_zoo.evaluation import Evaluation, Picture, Table, report
from model_zoo.training import bundle, loop, recipe

TABLE = Table("Denoising", ("method", "σ = 0.1"), (("noisy", 20.0), ("this | model", 28.12345)), "Ten slices.")


@pytest.fixture(scope="module")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle after six training steps."""
    folder = tmp_path_factory.mktemp("made")
    found = training.load("mri-prior")
    run = loop.train(
        found, found.configurations["smoke"], folder / "run", sources=recipe.make_simulated_sources(phantom=True)
    )
    bundle.write(found, run, folder / "mri_prior", version="3.2.1", made_on=date(2026, 1, 2), commit="c0ffee")
    return folder / "mri_prior"


@pytest.fixture
def result() -> Evaluation:
    picture = Picture("worst-case", "The slice with the least gain.", Figure(figsize=(1, 1)))
    return Evaluation((TABLE,), (picture,), {"psnr_db": 28.1}, "It fails on flow voids.", "It is slow.")


@pytest.mark.slow
def test_a_card_says_what_it_is_how_good_where_it_fails_and_that_it_was_trained_on_simulation(
    trained_bundle: Path, result: Evaluation, tmp_path: Path
) -> None:
    facts = registry.read_facts(trained_bundle)
    report.write_report(result, facts, tmp_path)
    card = (tmp_path / "README.md").read_text()
    for expected in (
        "# mri_prior 3.2.1",
        "These weights were trained on simulation only.",
        "Research use only, not for diagnosis.",
        "| this \\| model | 28.12 |",
        "It fails on flow voids.",
        "It is slow.",
        "![The slice with the least gain.](worst-case.png)",
        "dicomnode evaluate mri_prior",
        "c0ffee",
        facts.digest,
    ):
        assert expected in card
    assert (tmp_path / "worst-case.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"psnr_db": 28.1}


@pytest.mark.slow
def test_a_site_s_own_weights_are_not_said_to_be_simulated(trained_bundle: Path, result: Evaluation) -> None:
    facts = registry.read_facts(trained_bundle)
    own = {**facts.metadata, "trained_on": "a user's data set (cohort abc)"}
    card = report.make_card(result, BundleFacts(facts.path, facts.name, facts.version, facts.digest, own))
    assert "trained on a user's data set" in card
    assert "simulation only" not in card


def test_an_evaluation_put_into_a_bundle_leaves_it_whole(
    trained_bundle: Path, result: Evaluation, tmp_path: Path
) -> None:
    shutil.copytree(trained_bundle, tmp_path / "mri_prior")
    facts = registry.read_facts(tmp_path / "mri_prior")
    report.write_into_bundle(result, facts)
    again = registry.find("mri_prior", root=tmp_path)
    registry.verify(again)
    assert again.metadata["evaluation"] == {"psnr_db": 28.1}
    assert "It fails on flow voids." in (again.path / "docs" / "README.md").read_text()
    assert (again.path / "docs" / "worst-case.png").is_file()


def test_a_table_with_a_row_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        Table("t", ("a", "b"), (("only one",),))


def test_a_bundle_that_nobody_evaluates_is_named() -> None:
    for name in ("other", "report", "no.such", ""):
        with pytest.raises(LookupError, match="there is no evaluation of"):
            evaluation.find_evaluator(name)


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_the_card(
    trained_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(trained_bundle), "--quick", "--out", str(tmp_path / "card")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| total variation \| \d+\.\d \| \d+\.\d \|", printed)
    assert "Subgroups" in printed
    card = (tmp_path / "card" / "README.md").read_text()
    assert all(line in card for line in printed.splitlines() if line.startswith("| this model"))


@pytest.mark.slow
def test_the_same_evaluation_again_prints_the_same(trained_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        assert cli.main(["evaluate", str(trained_bundle), "--quick"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_quick_evaluation_is_not_put_into_a_bundle(trained_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained_bundle / "docs" / "README.md").read_bytes()
    assert cli.main(["evaluate", str(trained_bundle), "--quick", "--write"]) == 1
    assert capsys.readouterr().err.startswith("dicomnode: a quick evaluation")
    assert (trained_bundle / "docs" / "README.md").read_bytes() == before


def test_a_folder_around_a_bundle_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "metadata.json").write_text("{}")
    assert cli.main(["evaluate", str(tmp_path), "--quick"]) == 1
    assert capsys.readouterr().err.endswith(
        f"the folder {tmp_path} is no bundle, it has no configs/metadata.json; there is {tmp_path / 'bundle'}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate", "nothing"], 1, "no bundle nothing; installed: "),
        (["evaluate", "mri_prior@99"], 1, "no bundle mri_prior@99"),
        (["train", "nothing"], 2, "no recipe 'nothing'"),
        (["train", "mri-prior", "--configuration", "huge"], 2, "no configuration 'huge'"),
        (["train", "mri-prior", "--device", "toaster"], 1, "torch knows no such device"),
        (["train", "mri-prior", "--manifest", "missing.csv"], 1, "--manifest missing.csv: there is no such file"),
        (["models", "show", "nothing"], 1, "no bundle nothing"),
        (["models", "verify", "nothing"], 1, "no bundle nothing"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "out")] if arguments[0] == "train" else []
    assert cli.main(arguments + out) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    if code == 1:
        assert errors.count("\n") == 1


def test_a_manifest_s_problems_are_told_one_by_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("subject,split,image\ns1,train,missing.nii\ns2,nowhere,missing.nii\n")
    assert cli.main(["train", "mri-prior", "--manifest", str(table), "--out", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(
        "line 2, column image: " + str(tmp_path / "missing.nii") + ": there is no such file or folder"
    )
    assert "line 3, column split: 'nowhere' is none of train, validation, test" in lines[1]
    assert lines[-1].startswith("dicomnode: ")
    assert "3 thing(s) to put right" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_models_are_listed_shown_and_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    (prior,) = (each for each in listed if each["name"] == "mri_prior")
    assert prior["licence"] == "Apache-2.0"
    assert "simulation only" in prior["trained_on"]
    assert cli.main(["models", "show", "mri_prior", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights_sha256"] == prior["digest"]
    assert cli.main(["models", "verify", "--json"]) == 0
    assert {each["state"] for each in json.loads(capsys.readouterr().out)} == {"ok"}
