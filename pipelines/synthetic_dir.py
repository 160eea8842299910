"""Double inversion recovery from FLAIR and T1w, with lesions, their uncertainty, and the change since a prior.

Inputs: ``flair``; ``t1w`` (without it the result is weaker and has a contract of its own); ``prior_flair`` and
``prior_t1w`` of a prior examination. Output on the FLAIR's grid: DIR in units of grey matter (white matter and CSF are
nulled: 1 is normal cortex), its standard deviation, lesions by location with their uncertainty, checks of the DIR
against its inputs; on request a DIR of any inversion times, rendered by the signal equation from predicted PD, T1 and
T2; with a prior, the difference and the new lesions, both examinations from the inputs that both have. Where they
cannot be compared, the result is held with the reason.

Model: bundle ``synthetic_dir`` with the bundle ``anatomy`` (``model_zoo.synthetic_dir``; Finck et al., Invest. Radiol.
55, 2020, for the task; Gal & Ghahramani 2016 for dropout as uncertainty).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from model_zoo.physics.sequences import DIR_TE_MS, DIR_TR_MS, Dir
from model_zoo.structures import CORTEX, number
from model_zoo.synthetic_dir import CLIP, render
from pipelines import dir_support, examinations, lesion_segments, lesions, longitudinal
from pipelines.codes import STANDARD_DEVIATION
from pipelines.contract import (
    Case,
    Finding,
    Image,
    Input,
    Note,
    ParametricMap,
    Pipeline,
    Progress,
    Refused,
    Volume,
)
from pipelines.dir_estimate import DirEstimate, DropoutPasses, estimate_dir, resample_map
from pipelines.examinations import Comparison
from pipelines.lesion_options import LesionOptions

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["PIPELINE", "Options", "run"]


class Options(LesionOptions):
    """Options of a route. TI1 is the time from first to second inversion, TI2 from the second to the excitation."""

    passes: int = Field(
        default=20,
        ge=1,
        le=200,
        description="dropout passes through the network, from which the standard deviation comes",
    )
    turned: bool = Field(default=False, description="true: flip the head differently in each pass")
    epistemic: bool = Field(
        default=False,
        description="true: also deliver the standard deviation over the dropout passes alone",
    )
    rendered: bool = Field(default=False, description="true: also deliver the DIR of the predicted tissue maps")
    rendered_ti_ms: tuple[float, float] | None = Field(
        default=None,
        description="TI1 and TI2 of that DIR in ms; none: those that null the subject's white matter and CSF",
    )
    lesion_contrast: float = Field(
        default=0.3,
        ge=0,
        description="smallest contrast of a lesion on DIR, where grey matter is 1",
    )

    @property
    def thresholds(self) -> lesions.Thresholds:
        return replace(super().thresholds, contrast=self.lesion_contrast)


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Estimate DIR, measure its uncertainty, lesions and checks, and compare with the prior where one exists."""
    present = examinations.read_present(case, model, options, PIPELINE.name)
    prior = examinations.read_prior(case, model, options, PIPELINE.name)
    share = 0.4 if prior else 1.0
    passes = DropoutPasses(options.passes, options.turned, seed)
    e = estimate_dir(present.flair, present.t1w, model, passes, lambda done, step: progress(share * done, step))
    lesion_map = lesions.find_lesions(e, options.thresholds)
    thickness_mm = present.flair.slice_thickness_mm or present.flair.grid.spacing_mm[0]
    findings = [
        *_images(e, present.flair, thickness_mm, options),
        lesion_segments.make_segmentation(lesion_map, e, options.thresholds, present.flair.grid, thickness_mm),
        *lesions.measure_lesions(lesion_map, options.thresholds),
        *dir_support.measure_support(e),
        *dir_support.compare_with_flair(e, lesion_map.labels > 0),
        *dir_support.summarise(e, options.passes),
    ]
    if prior is None:
        return findings
    try:
        pair = examinations.find_common_inputs(present, prior, model, options)
        return findings + _compare(pair, e, model, options, passes, lambda done, step: progress(0.4 + 0.6 * done, step))
    except Refused as error:
        return [*findings, Note("change", f"No change is measured. {error}", holds_result=True)]


def _compare(
    pair: Comparison, e: DirEstimate, model: Model, options: Options, passes: DropoutPasses, progress: Progress
) -> list[Finding]:
    """Return the change since the prior examination. Raises Refused where they cannot be compared.

    ``e``: estimate of the present examination; it is made anew where the comparison has fewer inputs.
    """
    now, before = pair.present, pair.prior
    if (now.t1w is None) != (e.t1w is None):
        e = estimate_dir(now.flair, now.t1w, model, passes, lambda done, step: progress(0.5 * done, f"again: {step}"))
    prior = estimate_dir(
        before.flair, before.t1w, model, passes, lambda done, step: progress(0.5 + 0.5 * done, f"prior: {step}")
    )
    t = options.thresholds
    found, found_before = (lesions.find_lesions(each, t) for each in (e, prior))
    change = longitudinal.compare_examinations(e, found, prior, found_before, t, passes.seed)
    thickness_mm = now.flair.slice_thickness_mm or now.flair.grid.spacing_mm[0]
    return [*pair.notes, *longitudinal.report_change(e, change, now.flair.grid, thickness_mm)]


def _images(e: DirEstimate, flair: Volume, thickness_mm: float, options: Options) -> list[Finding]:
    """Return DIR, its standard deviation and the optional images, on the FLAIR's grid."""
    source = "FLAIR and T1w" if e.t1w is not None else "FLAIR alone"

    def deliver(x: NDArray[np.float32]) -> Volume:
        return Volume(resample_map(x, e.grid, flair.grid), flair.grid)

    words = f"Standard deviation of synthetic DIR: {options.passes} passes and the learned error; grey matter is 1"
    findings: list[Finding] = [
        Image("DIR", deliver(e.dir), f"Synthetic DIR from {source}, grey matter is 1", thickness_mm),
        ParametricMap("standard deviation", deliver(e.sd), STANDARD_DEVIATION, words, thickness_mm),
    ]
    if options.epistemic:
        words = f"Standard deviation over {options.passes} dropout passes only; grey matter is 1"
        volume = deliver(e.epistemic)
        findings.append(ParametricMap("epistemic standard deviation", volume, STANDARD_DEVIATION, words, thickness_mm))
    if options.rendered:
        x, sequence = _rendered(e, options)
        words = f"DIR rendered from predicted PD, T1, T2 at TI {sequence.ti1_ms:.0f} and {sequence.ti2_ms:.0f} ms"
        findings.append(Image("rendered DIR", deliver(x), words, thickness_mm))
    return findings


def _rendered(e: DirEstimate, options: Options) -> tuple[NDArray[np.float32], Dir]:
    """Return DIR by its equation on the predicted maps, scaled to a mean of 1 in the cortex, and the sequence."""
    white, grey = e.structure == number("cerebral white matter"), np.isin(e.structure, CORTEX)
    sequence = Dir.nulling(DIR_TR_MS, float(1000 * np.exp(np.median(e.maps[1][white]))), te_ms=DIR_TE_MS)
    if options.rendered_ti_ms:
        sequence = replace(sequence, ti1_ms=options.rendered_ti_ms[0], ti2_ms=options.rendered_ti_ms[1])
    x = render(torch.from_numpy(e.maps), sequence).numpy()
    level = float(x[grey].mean()) if grey.any() else 0.0
    if not level > 0:
        raise Refused("the rendered DIR is dark in all cortex: other inversion times are needed")
    return np.asarray(np.clip(x / level, 0, CLIP) * (e.structure > 0), np.float32), sequence


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
