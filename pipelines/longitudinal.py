"""New and enlarged lesions since a prior examination: both synthetic DIRs by one model, registered and subtracted.

The prior DIR is registered rigidly to the present one by the FLAIRs' brains, without bias fields and in units of white
matter, then scaled linearly to the present one's medians in white matter and cortex. A voxel has changed where the
difference exceeds the combined uncertainty of both examinations and a threshold, and the present DIR shows a lesion: a
new one, or an enlarged one where it touches a lesion of the prior examination.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo.structures import CORTEX, number
from pipelines.contract import (
    Alignment,
    Code,
    Finding,
    Grid,
    Image,
    Measurement,
    Refused,
    Segment,
    Segmentation,
    Volume,
)
from pipelines.dir_estimate import DirEstimate, resample_map
from pipelines.lesions import MORPHOLOGY, LesionMap, Thresholds
from pipelines.registration import PlausibleMotion, Registration, register_rigid

__all__ = ["Change", "compare_examinations", "report_change"]

ANOTHER_VISIT = PlausibleMotion(shift_mm=1500.0, rotation_degrees=60.0)
"""Limits for two visits, whose frames of reference differ: positions tell nothing, rotations a little."""
NEW, ENLARGED = 1, 2
SEGMENTS = (
    Segment(NEW, "New lesions", MORPHOLOGY, Code("NEWLESION", "99DICOMNODE", "New lesion of brain"),
            "Brighter than before where no lesion was", (255, 40, 40)),
    Segment(ENLARGED, "Enlarged lesions", MORPHOLOGY,
            Code("ENLARGEDLESION", "99DICOMNODE", "Enlarged part of a lesion of brain"),
            "Brighter than before beside or in an earlier lesion", (255, 160, 40)),
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Change on the present estimate's grid (k, j, i).

    ``difference``: present less prior, 0 where either is unknown; ``labels``: 1 new, 2 enlarged; ``counts`` of each;
    ``loads_ml``: lesion load of the prior and of the present estimate; ``registration``: of the prior examination.
    """

    difference: NDArray[np.float32]
    labels: NDArray[np.uint8]
    counts: tuple[int, int]
    loads_ml: tuple[float, float]
    registration: Registration


def compare_examinations(
    present: DirEstimate, lesion_map: LesionMap, prior: DirEstimate, prior_lesions: LesionMap, t: Thresholds, seed: int
) -> Change:
    """Compare two examinations. Raises Refused where they cannot be registered."""
    registration = register_rigid(
        _brain_volume(present), _brain_volume(prior), seed, ANOTHER_VISIT, name="the earlier FLAIR"
    )
    grid = registration.apply_correction(prior.grid)
    prior_maps = np.stack([prior.dir, prior.sd, prior_lesions.labels > 0, prior.brain]).astype(np.float32)
    dir_, sd, lesion, prior_brain = resample_map(prior_maps, grid, present.grid)
    both = present.brain & (prior_brain > 0.5)
    difference = np.where(both, present.dir - _match_medians(dir_, present, both), 0).astype(np.float32)
    uncertainty = np.sqrt(present.sd**2 + sd**2)
    changed = (lesion_map.labels > 0) & both & (difference > t.contrast) & (difference > uncertainty)
    labels, counts = _classify_parts(changed, lesion > 0.25, present, t)
    loads_ml = prior_lesions.load_ml, lesion_map.load_ml
    return Change(difference, labels, counts, loads_ml, registration)


def report_change(present: DirEstimate, c: Change, onto: Grid, thickness_mm: float) -> list[Finding]:
    """Return the difference as an image, new and enlarged lesions as a segmentation, and their measurements."""
    share = resample_map(np.stack([c.labels == NEW, c.labels == ENLARGED]).astype(np.float32), present.grid, onto)
    labels = np.where(share.sum(axis=0) >= 0.5, share.argmax(axis=0) + 1, 0).astype(np.uint8)
    difference = Volume(resample_map(c.difference, present.grid, onto), onto)
    volume_ml = [float((c.labels == n).sum()) * present.spacing_mm**3 / 1000 for n in (NEW, ENLARGED)]
    r = c.registration
    moved = f"{r.shift_mm:.1f} mm and {r.rotation_degrees:.1f} degrees, from {r.start}"
    return [
        Image("subtraction", difference, "Synthetic DIR, present less earlier", thickness_mm),
        Segmentation("new lesions", labels, onto, SEGMENTS, "New and enlarged lesions", thickness_mm),
        Measurement("new lesions", float(c.counts[0]), "1", f"Earlier examination moved by {moved}"),
        Measurement("volume of new lesions", volume_ml[0], "ml"),
        Measurement("enlarged lesions", float(c.counts[1]), "1"),
        Measurement("volume of enlargement", volume_ml[1], "ml"),
        Measurement("earlier lesion load", c.loads_ml[0], "ml", "From the inputs that both examinations have"),
        Measurement("lesion load compared", c.loads_ml[1], "ml", "Present load from the same inputs as the earlier"),
        Alignment("prior_flair", r.correction_mm),
    ]


def _brain_volume(e: DirEstimate) -> Volume:
    return Volume((e.flair * e.brain).astype(np.float32), e.grid)


def _match_medians(dir_: NDArray[np.float32], present: DirEstimate, both: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the prior DIR scaled to the present one's medians of white matter and cortex."""
    white = both & (present.structure == number("cerebral white matter"))
    grey = both & np.isin(present.structure, CORTEX)
    if not white.any() or not grey.any():
        raise Refused("the examinations share no white matter and cortex; nothing can be compared")
    low, high = float(np.median(dir_[white])), float(np.median(dir_[grey]))
    target_low, target_high = float(np.median(present.dir[white])), float(np.median(present.dir[grey]))
    if high - low < 0.1 or target_high - target_low < 0.1:
        return np.asarray(dir_ + (target_high - high))
    return np.asarray(target_low + (dir_ - low) * (target_high - target_low) / (high - low))


def _classify_parts(
    changed: NDArray[np.bool_], lesion: NDArray[np.bool_], present: DirEstimate, t: Thresholds
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Label parts that are large enough as new, or as enlarged where they touch a prior lesion."""
    parts, count = ndimage.label(changed, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    touching = set(np.unique(parts[ndimage.binary_dilation(lesion)]).tolist())
    kind = np.zeros(count + 1, np.uint8)
    for n in range(1, count + 1):
        if sizes[n] * present.spacing_mm**3 >= t.decision.smallest_mm3:
            kind[n] = ENLARGED if n in touching else NEW
    return kind[parts], (int((kind == NEW).sum()), int((kind == ENLARGED).sum()))
