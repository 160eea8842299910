"""What is new since an earlier examination: both synthetic DIRs by the same model, laid on each other and subtracted.

The earlier DIR is laid on the present one rigidly by the FLAIRs' brains, without bias fields and in units of white
matter, then brought by a straight line to the present one's medians in white matter and cortex. Change is where the
difference exceeds both examinations' uncertainty together and a threshold, and the present one shows a lesion: a new
one, or a larger one where it touches a lesion of the earlier examination.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo.structures import CORTEX, number
from pipelines.contract import (
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
"""Another visit has another frame of reference: where the head lies says nothing, how it is turned a little."""
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
    """On the present estimate's grid (k, j, i): ``difference`` present less earlier, 0 where either is not known;
    ``labels`` 1 new, 2 enlarged; ``counts`` of each; ``registered``: of the earlier examination."""

    difference: NDArray[np.float32]
    labels: NDArray[np.uint8]
    counts: tuple[int, int]
    registered: Registration


def compare_examinations(
    present: DirEstimate, found: LesionMap, earlier: DirEstimate, earlier_found: LesionMap, t: Thresholds, seed: int
) -> Change:
    """Raises Refused where the examinations cannot be laid on each other."""
    registered = register_rigid(_brain(present), _brain(earlier), seed, ANOTHER_VISIT, name="the earlier FLAIR")
    grid = registered.apply_correction(earlier.grid)
    before = np.stack([earlier.dir, earlier.sd, earlier_found.labels > 0, earlier.brain]).astype(np.float32)
    dir_, sd, lesion, known = resample_map(before, grid, present.grid)
    both = present.brain & (known > 0.5)
    difference = np.where(both, present.dir - _alike(dir_, present, both), 0).astype(np.float32)
    doubt = np.sqrt(present.sd**2 + sd**2)
    grown = (found.labels > 0) & both & (difference > t.contrast) & (difference > doubt)
    labels, counts = _classified(grown, lesion > 0.25, present, t)
    return Change(difference, labels, counts, registered)


def report_change(present: DirEstimate, c: Change, onto: Grid, thickness_mm: float) -> list[Finding]:
    """The difference as an image, what is new as a segmentation, and their numbers."""
    share = resample_map(np.stack([c.labels == NEW, c.labels == ENLARGED]).astype(np.float32), present.grid, onto)
    labels = np.where(share.sum(axis=0) >= 0.5, share.argmax(axis=0) + 1, 0).astype(np.uint8)
    difference = Volume(resample_map(c.difference, present.grid, onto), onto)
    volume_ml = [float((c.labels == n).sum()) * present.spacing_mm**3 / 1000 for n in (NEW, ENLARGED)]
    moved = f"{c.registered.shift_mm:.1f} mm and {c.registered.rotation_degrees:.1f} degrees, from {c.registered.start}"
    return [
        Image("subtraction", difference, "Synthetic DIR, present less earlier", thickness_mm),
        Segmentation("new lesions", labels, onto, SEGMENTS, "New and enlarged lesions since the earlier", thickness_mm),
        Measurement("new lesions", float(c.counts[0]), "1", f"Earlier examination moved by {moved}"),
        Measurement("volume of new lesions", volume_ml[0], "ml"),
        Measurement("enlarged lesions", float(c.counts[1]), "1"),
        Measurement("volume of enlargement", volume_ml[1], "ml"),
    ]


def _brain(e: DirEstimate) -> Volume:
    return Volume((e.flair * e.brain).astype(np.float32), e.grid)


def _alike(dir_: NDArray[np.float32], present: DirEstimate, both: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The earlier DIR with the present one's medians of white matter and cortex."""
    white = both & (present.structure == number("cerebral white matter"))
    grey = both & np.isin(present.structure, CORTEX)
    if not white.any() or not grey.any():
        raise Refused("the examinations share no white matter and cortex; nothing can be compared")
    low, high = float(np.median(dir_[white])), float(np.median(dir_[grey]))
    target_low, target_high = float(np.median(present.dir[white])), float(np.median(present.dir[grey]))
    if high - low < 0.1 or target_high - target_low < 0.1:
        return np.asarray(dir_ + (target_high - high))
    return np.asarray(target_low + (dir_ - low) * (target_high - target_low) / (high - low))


def _classified(
    grown: NDArray[np.bool_], lesion: NDArray[np.bool_], present: DirEstimate, t: Thresholds
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Parts that are large enough: new, or enlarged where they touch an earlier lesion."""
    parts, count = ndimage.label(grown, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    touching = set(np.unique(parts[ndimage.binary_dilation(lesion)]).tolist())
    kind = np.zeros(count + 1, np.uint8)
    for n in range(1, count + 1):
        if sizes[n] * present.spacing_mm**3 >= t.decision.smallest_mm3:
            kind[n] = ENLARGED if n in touching else NEW
    return kind[parts], (int((kind == NEW).sum()), int((kind == ENLARGED).sum()))
