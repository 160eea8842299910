"""The input contract and the output gate: rules in a bundle, a refusal in words, a verdict with its reasons."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicomnode.execution import reference
from model_zoo import registry, training
from pipelines import quality
from pipelines.contract import Case, Grid, Measurement, Refused, Volume
from pipelines.measurement_meanings import MEANINGS, find_meaning
from pipelines.quality import Outcome, OutputLimits

ROOT = Path(__file__).parent.parent

FLAIR = {"modality": "MR", "ti_ms": 2100.0, "te_ms": 120.0, "image_type": ("ORIGINAL", "PRIMARY")}


def case(spacing_mm: float = 1.0, **facts: Any) -> Case:
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    volume = Volume(np.zeros((10, 20, 30), np.float32), Grid((10, 20, 30), affine))
    return Case({"flair": volume}, FLAIR | facts)


def bundle(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"name": "synthetic_dir", "version": "1.0.0", "input_contract": {"flair": list(rules)}}


def test_what_keeps_every_rule_is_admitted_without_doubt() -> None:
    rules: list[dict[str, Any]] = [
        {"fact": "modality", "one_of": ["MR"]},
        {"fact": "ti_ms", "between": [1500, 3000]},
        {"fact": "image_type", "none_of": ["PHASE"]},
        {"fact": "coverage_mm", "between": [10, 400]},
    ]
    assert quality.check_input(case(), bundle(*rules), "flair") == ()


def test_a_refusal_names_the_value_the_range_and_the_tag() -> None:
    with pytest.raises(Refused) as refused:
        quality.check_input(case(ti_ms=900.0), bundle({"fact": "ti_ms", "between": [1500, 3000]}), "flair")
    assert str(refused.value) == (
        "flair: Inversion Time (0018,0082) is 900 ms; synthetic_dir 1.0.0 takes 1500 to 3000 ms"
    )


def test_every_broken_rule_is_told_not_only_the_first() -> None:
    rules: list[dict[str, Any]] = [{"fact": "ti_ms", "between": [1500, 3000]}, {"fact": "modality", "one_of": ["MR"]}]
    with pytest.raises(Refused, match=r"0018,0082.*0008,0060"):
        quality.check_input(case(ti_ms=900.0, modality="CT"), bundle(*rules), "flair")


def test_a_rule_may_hold_instead_of_refusing() -> None:
    doubts = quality.check_input(case(), bundle({"fact": "te_ms", "between": [200, 300], "otherwise": "hold"}), "flair")
    assert len(doubts) == 1
    assert "Echo Time (0018,0081) is 120 ms" in doubts[0]


@pytest.mark.parametrize("needed", [True, False])
def test_a_fact_that_is_not_stated_breaks_only_a_rule_that_needs_it(needed: bool) -> None:
    rule = {"fact": "field_strength_t", "between": [1, 3], "needed": needed}
    if needed:
        with pytest.raises(Refused, match=r"Magnetic Field Strength \(0018,0087\) is not stated"):
            quality.check_input(case(), bundle(rule), "flair")
    else:
        assert quality.check_input(case(), bundle(rule), "flair") == ()


def test_the_grid_is_a_fact_too() -> None:
    with pytest.raises(Refused, match=r"smallest extent .* is 5 mm"):
        quality.check_input(case(0.5), bundle({"fact": "coverage_mm", "between": [100, 400]}), "flair")


def test_words_are_found_inside_of_what_the_header_says_whatever_their_case() -> None:
    rule = {"fact": "manufacturer", "one_of": ["siemens"]}
    assert quality.check_input(case(manufacturer="SIEMENS Healthineers"), bundle(rule), "flair") == ()


@pytest.mark.parametrize(
    "rule",
    [
        {"fact": "colour", "one_of": ["red"]},
        {"fact": "ti_ms"},
        {"fact": "ti_ms", "between": [1, 2], "one_of": ["3"]},
        {"fact": "ti_ms", "betwixt": [1, 2]},
    ],
)
def test_a_contract_that_cannot_be_applied_admits_nothing(rule: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="input contract of synthetic_dir"):
        quality.check_input(case(), bundle(rule), "flair")


@pytest.mark.parametrize(
    ("value", "outcome"),
    [(1.0, Outcome.ACCEPT), (3.0, Outcome.HOLD), (9.0, Outcome.REFUSE), (math.nan, Outcome.REFUSE)],
)
def test_the_gate_accepts_holds_or_refuses(value: float, outcome: Outcome) -> None:
    limits = OutputLimits(hold_above={"chi-square": 2.0}, refuse_above={"chi-square": 5.0})
    verdict = quality.judge_result([Measurement("chi-square", value, "1")], limits)
    assert verdict.outcome is outcome
    assert bool(verdict.reason) is (outcome is not Outcome.ACCEPT)


def test_a_value_may_be_too_small() -> None:
    verdict = quality.judge_result([Measurement("coverage", 0.2, "1")], OutputLimits(hold_below={"coverage": 0.9}))
    assert verdict.reasons == ("coverage is 0.2, below the limit of 0.9",)


def test_a_reason_states_value_limit_and_unit_and_says_what_to_look_at() -> None:
    limits = OutputLimits(hold_above={"volume bright without support": 2.0, "chi-square": 4.0, "ventricle share": 5.0})
    measured = [
        Measurement("volume bright without support", 6.8341, "ml"),
        Measurement("chi-square", 5.0, "1"),
        Measurement("ventricle share", 7.0, "%", "Lateral ventricles in the intracranial volume"),
    ]
    spots, fit, own = quality.judge_result(measured, limits).reasons
    assert spots.startswith("volume bright without support is 6.834 ml, above the limit of 2 ml: the volume that is")
    assert "Look at these places on the DIR beside the FLAIR" in spots
    assert fit.startswith("chi-square is 5 times the noise variance, above the limit of 4 times the noise variance: ")
    assert own == "ventricle share is 7 %, above the limit of 5 %: Lateral ventricles in the intracranial volume"


def list_measurement_names(path: Path) -> list[str]:
    """Return the names of a module's measurements of the whole result; ``*`` for what a name takes from a variable."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Measurement"
    ]
    whole = [each for each in calls if len(each.args) < 5 and not any(key.arg == "group" for key in each.keywords)]
    return ["".join(part_of_name(part) for part in parts_of_name(each.args[0])) for each in whole]


def parts_of_name(name: ast.expr) -> list[ast.expr]:
    return name.values if isinstance(name, ast.JoinedStr) else [name]


def part_of_name(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "*"


def test_every_measurement_that_can_hold_a_result_has_its_words() -> None:
    modules = sorted((ROOT / "pipelines").glob("*.py"))
    made = {name for path in modules for name in list_measurement_names(path)}
    assert len(made) > 60
    limited = set(reference.HOLD_BELOW)
    for facts in registry.list_bundles():
        limits = quality.read_output_limits(facts.metadata)
        limited |= {name for key in OutputLimits.model_fields for name in getattr(limits, key)}
    assert made - set(MEANINGS) == set()
    assert {name for name in limited if find_meaning(name) is None} == set()
    unused = set(MEANINGS) - made - set(reference.HOLD_BELOW)
    assert unused == set(), "words of measurements that nothing makes"


def test_a_limit_speaks_of_the_whole_result_not_of_one_region() -> None:
    limits = OutputLimits(hold_above={"SUVR": 1.0})
    assert (
        quality.judge_result([Measurement("SUVR", 2.0, "{SUVr}", group="precuneus")], limits).outcome is Outcome.ACCEPT
    )


def test_doubts_about_the_input_hold_the_result() -> None:
    assert quality.judge_result([], OutputLimits(), ["te_ms is odd"]).outcome is Outcome.HOLD


def test_the_nodes_limits_replace_those_of_the_bundle() -> None:
    both = OutputLimits(hold_above={"a": 1.0, "b": 2.0}).with_overrides(OutputLimits(hold_above={"a": 5.0}))
    assert both.hold_above == {"a": 5.0, "b": 2.0}


def test_every_shipped_bundle_has_a_contract_that_can_be_applied() -> None:
    found = registry.list_bundles()
    assert found
    for facts in found:
        assert quality.read_input_rules(facts.metadata), facts.name
        quality.read_output_limits(facts.metadata)


def test_shipped_bundles_state_the_contract_and_limits_of_their_recipes() -> None:
    for facts in registry.list_bundles():
        recipe_facts = json.loads(json.dumps(dict(training.load(facts.metadata["recipe"]).facts)))
        for key in ("input_contract", "output_limits"):
            assert facts.metadata.get(key) == recipe_facts.get(key), f"{facts.name}: {key}"


@pytest.mark.parametrize("fact", ["modality", "deep_learning_reconstruction"])
def test_a_rule_on_a_text_has_no_range(fact: str) -> None:
    with pytest.raises(ValueError, match="is text: its rule needs one_of or none_of"):
        quality.InputRule(fact=fact, between=(0, 1))
