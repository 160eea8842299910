"""Facts that the recipe ``translation`` writes into the metadata of its bundles, by the plan."""

from __future__ import annotations

from typing import Any

from model_zoo.translation.plan import Plan

__all__ = ["state_facts"]


def state_facts(plan: Plan) -> dict[str, Any]:
    """Return the plan's part of ``metadata.json``."""
    sources, targets = (", ".join(each.name for each in series) for series in (plan.sources, plan.targets))
    title = plan.title or f"Translation of {sources} to {targets}"
    return {
        "task": title,
        "intended_use": plan.intended_use,
        "network_input": {
            "channels": _describe_window(plan)
            if plan.holes
            else f"{sources}, each 0 where it is missing, then 1 for each that is there",
            "spacing_mm": plan.spacing_mm,
            "orientation": "LPS",
            "scales": {each.name: each.scale for each in (*plan.sources, *plan.targets)},
        },
        "input_contract": {"image": _state_hole_rules(plan)}
        if plan.holes
        else {name: _state_rules(plan, name) for name in ("image", *plan.names)},
        "output_limits": {} if plan.holes else OUTPUT_LIMITS,
        "units": ", ".join(f"{each.name}: {each.unit} ({each.scale})" for each in plan.targets),
        "trained_on": "simulation only (SynthSeg and SynthSR label maps, simulated lesions and signals); "
        "never on patient images",
        "data_licence": "label maps: Apache-2.0; lesion masks: CC BY (Lesjak et al. 2017); no image data",
    }


NO_MAGNITUDES = ("P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY")
"""Image types of MR images that are no magnitude, which no network of a plan was trained on."""
HOLE_VOXELS = (0.5, 1.5)
"""Voxels of a series with missing slices, in voxels of the plan."""
OUTPUT_LIMITS = {"hold_below": {"overlap with the source": 0.85, "edges of the source": 0.2}}
"""Limits of the pipeline's measurements."""
RULES: dict[str, list[dict[str, Any]]] = {
    "flair": [{"fact": "ti_ms", "between": [1400, 3000]}, {"fact": "te_ms", "between": [60, 700], "otherwise": "hold"}],
    "t1w": [{"fact": "te_ms", "between": [0.5, 30]}],
    "t2w": [{"fact": "te_ms", "between": [60, 700]}],
    "pd": [{"fact": "te_ms", "between": [1, 45]}],
}
"""Rules of an MR series by its contrast: what the simulator draws, and what protocols of the clinic have."""


def _state_rules(plan: Plan, name: str) -> list[dict[str, Any]]:
    """Return the input contract of a series; "image" is the one that the route matches, whatever it shows."""
    series = [each for each in (*plan.sources, *plan.targets) if name in ("image", each.name)]
    modalities = sorted({each.modality for each in series})
    rules: list[dict[str, Any]] = [{"fact": "modality", "one_of": modalities}]
    if "MR" in modalities:
        rules.append({"fact": "image_type", "none_of": list(NO_MAGNITUDES)})
    if plan.body_part:
        rules.append({"fact": "body_part", "one_of": list(plan.body_part)})
    if name != "image" and series[0].modality == "MR":
        rules += RULES.get(series[0].kind, [])
    return rules


def _describe_window(plan: Plan) -> str:
    return f"{plan.slices} neighbouring slices, missing ones by cubic interpolation, then 1 for each measured one"


def _state_hole_rules(plan: Plan) -> list[dict[str, Any]]:
    """Return the input contract of a series with missing slices, whose own voxels the network sees."""
    finest, coarsest = (factor * plan.spacing_mm for factor in HOLE_VOXELS)
    return [
        *_state_rules(plan, "image"),
        *RULES.get(plan.sources[0].kind, []),
        {"fact": "finest_spacing_mm", "between": [finest, coarsest]},
        {"fact": "coarsest_spacing_mm", "between": [finest, coarsest]},
    ]
