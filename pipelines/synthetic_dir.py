"""FLAIR and T1w to double inversion recovery, with lesions, what is uncertain, and what is new since a prior.

Inputs: ``flair``; ``t1w`` (without it a weaker result under a contract of its own); ``prior_flair`` and ``prior_t1w``
of an earlier examination. Output on the FLAIR's grid: DIR in units of grey matter (white matter and CSF are nulled:
1 is normal cortex), its standard deviation, lesions by location with their uncertainty, checks of what DIR shows
against what was seen; on request a DIR of any inversion times, rendered by the signal equation from predicted PD, T1
and T2; with a prior, the difference and the new lesions.

Model: bundle ``synthetic_dir`` with the bundle ``anatomy`` (``model_zoo.synthetic_dir``; Finck et al., Invest. Radiol.
55, 2020, for the task; Gal & Ghahramani 2016 for dropout as uncertainty).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model_zoo.lesion_decision import Decision
from model_zoo.physics.sequences import DIR_TE_MS, DIR_TR_MS, Dir
from model_zoo.structures import CORTEX, number
from model_zoo.synthetic_dir import CLIP, rendered
from pipelines import anatomy, dir_support, lesion_segments, lesions, longitudinal, quality
from pipelines.codes import STANDARD_DEVIATION
from pipelines.contract import (
    Case,
    Finding,
    Image,
    Input,
    Measurement,
    Note,
    ParametricMap,
    Pipeline,
    Progress,
    Refused,
    Volume,
)
from pipelines.dir_estimate import DirEstimate, DropoutPasses, estimate_dir, resample_map

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["PIPELINE", "Options", "run"]

ALONE = ({"fact": "coarsest_spacing_mm", "between": [0.4, 3.5]},)
"""The contract of a FLAIR without T1w, where the bundle has none of its own (``input_contract_without_t1w``)."""


class Options(BaseModel):
    """What a route may set. ``rendered``: also the DIR of the predicted maps; ``rendered_ti_ms``: its TI1 (first to
    second inversion) and TI2 (second inversion to excitation), None: those that null the subject's white matter and
    CSF."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passes: int = Field(default=20, ge=1, le=200)
    turned: bool = False
    epistemic: bool = False
    rendered: bool = False
    rendered_ti_ms: tuple[float, float] | None = None
    lesion_probability: float = Field(default=0.5, gt=0, lt=1)
    smallest_lesion_mm3: float = Field(default=15.0, ge=1)
    lesion_sure: float = Field(default=0.85, ge=0, le=1)
    lesion_flair: float = Field(default=2.5, ge=0)
    lesion_contrast: float = Field(default=0.3, ge=0)
    lesions_told: int = Field(default=40, ge=0, le=200)

    @property
    def thresholds(self) -> lesions.Thresholds:
        decision = Decision(self.lesion_probability, self.smallest_lesion_mm3, self.lesion_sure, self.lesion_flair)
        return lesions.Thresholds(decision, self.lesion_contrast, self.lesions_told)


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """DIR, its uncertainty, lesions, checks; the change since the prior where there is one."""
    flair, t1w = _examination(case, "", case.facts, model, options)
    prior = _prior(case, model, options)
    share = 0.5 if prior else 1.0
    passes = DropoutPasses(options.passes, options.turned, seed)
    e = estimate_dir(flair, t1w, model, passes, lambda done, step: progress(share * done, step))
    found = lesions.find_lesions(e, options.thresholds)
    thickness_mm = flair.slice_thickness_mm or flair.grid.spacing_mm[0]
    results = [
        *_images(e, flair, thickness_mm, options),
        lesion_segments.make_segmentation(found, e, options.thresholds, flair.grid, thickness_mm),
        *lesions.measure_lesions(found, options.thresholds),
        *dir_support.measure_support(e),
        *_told(e, options),
    ]
    if prior:
        before = estimate_dir(*prior, model, passes, lambda done, step: progress(0.5 + 0.5 * done, f"prior: {step}"))
        is_prior = lesions.find_lesions(before, options.thresholds)
        changed = longitudinal.compare_examinations(e, found, before, is_prior, options.thresholds, seed)
        results += longitudinal.report_change(e, changed, flair.grid, thickness_mm)
    return results


def _examination(
    case: Case, prefix: str, facts: Mapping[str, Any], model: Model, options: Options
) -> tuple[Volume, Volume | None]:
    """FLAIR and T1w of the present or the earlier examination. Raises Refused for what the model cannot take."""
    flair, t1w = _volume(case, f"{prefix}flair"), _volume(case, f"{prefix}t1w")
    if flair is None:
        raise Refused("synthetic_dir needs a FLAIR; a T1w alone does not say what DIR shows")
    anatomy.check_head(flair, dict(facts))
    if t1w is not None:
        anatomy.check_head(t1w, facts.get(f"{prefix}t1w"))
    else:
        rules = model.metadata.get("input_contract_without_t1w", ALONE)
        alone = {**model.metadata, "input_contract": {"flair": list(rules)}}
        try:
            quality.check_input(Case({"flair": flair}, facts), alone, "flair", options)
        except Refused as error:
            raise Refused(f"FLAIR without T1w: {error}") from error
    return flair, t1w


def _prior(case: Case, model: Model, options: Options) -> tuple[Volume, Volume | None] | None:
    """The earlier examination, admitted by the contract of the present one; None where there is none."""
    prior = _volume(case, "prior_flair")
    if prior is None:
        return None
    facts = dict(case.facts.get("prior_flair", {}))
    try:
        inputs = {"flair": prior} | ({"t1w": t1w} if (t1w := _volume(case, "prior_t1w")) else {})
        quality.check_input(
            Case(inputs, facts | {"t1w": case.facts.get("prior_t1w", {})}), model.metadata, "flair", options
        )
        return _examination(case, "prior_", facts | {"prior_t1w": case.facts.get("prior_t1w", {})}, model, options)
    except Refused as error:
        raise Refused(f"the earlier examination: {error}") from error


def _volume(case: Case, name: str) -> Volume | None:
    found = case.inputs.get(name)
    if found is not None and not isinstance(found, Volume):
        raise Refused(f"synthetic_dir takes images; {name} is none")
    return found


def _images(e: DirEstimate, flair: Volume, thickness_mm: float, options: Options) -> list[Finding]:
    """DIR, its standard deviation and what else was asked for, on the FLAIR's grid."""
    source = "FLAIR and T1w" if e.t1w is not None else "FLAIR alone"

    def brought(x: NDArray[np.float32]) -> Volume:
        return Volume(resample_map(x, e.grid, flair.grid), flair.grid)

    words = f"Standard deviation of synthetic DIR: {options.passes} passes and the learned error; grey matter is 1"
    found: list[Finding] = [
        Image("DIR", brought(e.dir), f"Synthetic DIR from {source}, grey matter is 1", thickness_mm),
        ParametricMap("standard deviation", brought(e.sd), STANDARD_DEVIATION, words, thickness_mm),
    ]
    if options.epistemic:
        words = f"Standard deviation over {options.passes} dropout passes only; grey matter is 1"
        own = brought(e.epistemic)
        found.append(ParametricMap("epistemic standard deviation", own, STANDARD_DEVIATION, words, thickness_mm))
    if options.rendered:
        x, sequence = _rendered(e, options)
        words = f"DIR rendered from predicted PD, T1, T2 at TI {sequence.ti1_ms:.0f} and {sequence.ti2_ms:.0f} ms"
        found.append(Image("rendered DIR", brought(x), words, thickness_mm))
    return found


def _rendered(e: DirEstimate, options: Options) -> tuple[NDArray[np.float32], Dir]:
    """DIR by its equation on the predicted maps, the mean of their cortex being 1; the sequence."""
    white, grey = e.structure == number("cerebral white matter"), np.isin(e.structure, CORTEX)
    sequence = Dir.nulling(DIR_TR_MS, float(1000 * np.exp(np.median(e.maps[1][white]))), te_ms=DIR_TE_MS)
    if options.rendered_ti_ms:
        sequence = replace(sequence, ti1_ms=options.rendered_ti_ms[0], ti2_ms=options.rendered_ti_ms[1])
    x = rendered(torch.from_numpy(e.maps), sequence).numpy()
    level = float(x[grey].mean()) if grey.any() else 0.0
    if not level > 0:
        raise Refused("the rendered DIR is dark in all cortex: other inversion times are needed")
    return np.asarray(np.clip(x / level, 0, CLIP) * (e.structure > 0), np.float32), sequence


def _told(e: DirEstimate, options: Options) -> list[Finding]:
    """How sure the result is as a whole, and what was done."""
    brain, cortex = e.brain, np.isin(e.structure, CORTEX)
    found: list[Finding] = [
        *e.unusual,
        Measurement("mean standard deviation", float(e.sd[brain].mean()), "1", "In the brain, in units of grey matter"),
        Measurement("mean epistemic standard deviation", float(e.epistemic[brain].mean()), "1"),
        Measurement("cortex on DIR", float(np.median(e.dir[cortex])) if cortex.any() else 0.0, "1", "Expected: 1"),
        Measurement("dropout passes", float(options.passes), "1"),
    ]
    if r := e.registered:
        found.append(Measurement("T1w shifted", r.shift_mm, "mm", f"Onto the FLAIR, from {r.start}"))
        found.append(
            Measurement("T1w turned", r.rotation_degrees, "deg", f"Mutual information {r.mutual_information:.2f}")
        )
    else:
        words = "No T1w: made from FLAIR alone, which tells lesions from artefacts and grey from white matter less well"
        found.append(Note("inputs", words))
    return found


PIPELINE = Pipeline(
    name="synthetic_dir",
    title="Double inversion recovery from FLAIR and T1w, with lesions",
    inputs=(
        Input("flair", Volume),
        Input("t1w", Volume, required=False),
        Input("prior_flair", Volume, required=False, is_prior=True),
        Input("prior_t1w", Volume, required=False, is_prior=True),
    ),
    bundle="synthetic_dir",
    options_type=Options,
    run=run,
    helpers=("anatomy", "mri_prior"),
)
