"""Multiple sclerosis lesions from FLAIR and T1w, without a DIR image.

Inputs: ``flair``; ``t1w`` (without it the result is weaker and has a contract of its own). Output on the FLAIR's grid:
lesions by location as a segmentation, the probability of lesion of each voxel, and their number, volumes and mean
probability. The checks of the DIR behind it are measured as in ``synthetic_dir``, so that the same limits hold.

Model: the lesion channel of the bundle ``synthetic_dir`` with the bundle ``anatomy``; lesions are decided as in
``pipelines.synthetic_dir``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pipelines import dir_support, examinations, lesion_segments, lesions
from pipelines.codes import PROBABILITY
from pipelines.contract import Case, Finding, Input, ParametricMap, Pipeline, Progress, Volume
from pipelines.dir_estimate import DirEstimate, DropoutPasses, estimate_dir, resample_map
from pipelines.lesion_options import LesionOptions

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["PIPELINE", "Options", "run"]


class Options(LesionOptions):
    """Options of a route.

    The lesion probability hardly depends on dropout, so that one pass without dropout is enough. All other defaults are
    those of ``synthetic_dir``.
    """

    passes: int = Field(default=1, ge=1, le=200, description="dropout passes through the network; 1: without dropout")


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Find the lesions and measure them."""
    examination = examinations.read_present(case, model, options, PIPELINE.name)
    flair, source = examination.flair, "FLAIR and T1w" if examination.t1w else "FLAIR alone"
    e = estimate_dir(flair, examination.t1w, model, DropoutPasses(options.passes, False, seed), progress)
    thickness_mm = flair.slice_thickness_mm or flair.grid.spacing_mm[0]
    lesion_map = lesions.find_lesions(e, options.thresholds)
    return [
        lesion_segments.make_segmentation(lesion_map, e, options.thresholds, flair.grid, thickness_mm, source),
        _make_probability_map(e, flair, thickness_mm, source),
        *lesions.measure_lesions(lesion_map, options.thresholds, on_dir=False),
        *dir_support.measure_support(e),
        *dir_support.summarise(e, options.passes),
    ]


def _make_probability_map(e: DirEstimate, flair: Volume, thickness_mm: float, source: str) -> ParametricMap:
    volume = Volume(np.clip(resample_map(e.lesion, e.grid, flair.grid), 0, 1), flair.grid)
    return ParametricMap(
        "lesion probability", volume, PROBABILITY, f"Probability of lesion, from {source}", thickness_mm
    )


PIPELINE = Pipeline(
    name="ms_lesions",
    title="Multiple sclerosis lesions from FLAIR and T1w",
    inputs=(Input("flair", Volume), Input("t1w", Volume, required=False)),
    bundle="synthetic_dir",
    options_type=Options,
    run=run,
    helpers=("anatomy", "mri_prior"),
)
