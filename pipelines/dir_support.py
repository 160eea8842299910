"""Consistency of a synthetic DIR with its inputs: bright spots without support in them, spots that it misses, and
whether it separates the lesions better than FLAIR.

Bright without support: DIR above its structure's median by ``BRIGHT``, where neither FLAIR is brighter nor T1w darker
than ``SUPPORT`` in that structure. Shown: the bright spots of white matter on FLAIR that are bright on DIR too. Numbers
are in units of grey matter (DIR) and of each structure's robust spread (FLAIR, T1w).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo.lesion_decision import robust_deviation, structure_statistics
from model_zoo.structures import CORTEX, TISSUE_GROUPS, number
from pipelines.contract import Finding, Measurement, Note
from pipelines.dir_estimate import DirEstimate

__all__ = ["compare_with_flair", "find_bright_flair", "find_unsupported", "measure_support", "summarise"]

BRIGHT = 0.5
SUPPORT = 1.0
"""Least departure from the structure's median, in robust standard deviations, that counts as support."""
FLAIR_BRIGHT = 4.0
SPOT_MM3 = 15.0
NEAR_MM = 5.0
LEAST_VOXELS = 20
WHITE = ("cerebral white matter", "cerebellar white matter", "brain stem")


def measure_support(e: DirEstimate) -> list[Finding]:
    """Return volume and number of bright spots without support, and the share of FLAIR's bright spots shown, if any."""
    volume_mm3 = e.spacing_mm**3
    unsupported = find_unsupported(e)
    spots, count = _label_spots(unsupported, e)
    description = f"DIR {BRIGHT:g} above its structure where neither FLAIR is bright nor T1w dark"
    measurements: list[Finding] = [
        Measurement("bright without support", float(count), "1", f"{description}: parts of {SPOT_MM3:g} mm3 or more"),
        Measurement("volume bright without support", float((spots > 0).sum()) * volume_mm3 / 1000, "ml", description),
    ]
    bright, count = _label_spots(find_bright_flair(e), e)
    if count:
        excess = ndimage.mean(_excess(e.dir, e), bright, range(1, count + 1))
        shown_share = float((np.asarray(excess) > BRIGHT / 2).mean())
        description = "Of the bright spots of white matter on FLAIR, those that are bright on DIR"
        measurements += [
            Measurement("bright spots on FLAIR", float(count), "1", f"In white matter, {SPOT_MM3:g} mm3 or more"),
            Measurement("share of FLAIR's bright spots shown", shown_share, "1", description),
        ]
    return measurements


def find_unsupported(e: DirEstimate) -> NDArray[np.bool_]:
    """Return the mask of voxels where DIR is bright and no input supports it."""
    supported = robust_deviation(e.flair, e.structure) > SUPPORT
    if e.t1w is not None:
        supported |= robust_deviation(e.t1w, e.structure) < -SUPPORT
    return e.brain & (_excess(e.dir, e) > BRIGHT) & ~supported


def find_bright_flair(e: DirEstimate) -> NDArray[np.bool_]:
    """Return the mask of white matter, a voxel away from all else, that is far brighter on FLAIR than usual."""
    white = np.isin(e.structure, [number(name) for name in WHITE])
    return np.asarray(ndimage.binary_erosion(white), np.bool_) & (robust_deviation(e.flair, e.structure) > FLAIR_BRIGHT)


def compare_with_flair(e: DirEstimate, lesions: NDArray[np.bool_]) -> list[Finding]:
    """Return how well DIR and FLAIR separate ``lesions`` (k, j, i) from all tissue near them.

    Separation is the area under the ROC curve (Mann-Whitney): 1 where every voxel of a lesion is brighter than every
    voxel of the brain without fluid more than one voxel and at most ``NEAR_MM`` away from all lesions, 0.5 for no
    difference. One network made the DIR and found the lesions, which favours the DIR: a note says where it is no better
    even so, none where it is. Returns nothing where either holds fewer than ``LEAST_VOXELS`` voxels.
    """
    distance_mm = ndimage.distance_transform_edt(~lesions) * e.spacing_mm if lesions.any() else np.zeros(lesions.shape)
    fluid = np.isin(e.structure, TISSUE_GROUPS["csf"])
    near = e.brain & ~fluid & (distance_mm > 1.5 * e.spacing_mm) & (distance_mm <= NEAR_MM)
    if min(lesions.sum(), near.sum()) < LEAST_VOXELS:
        return []
    on_dir, on_flair = (_separation(x[lesions], x[near]) for x in (e.dir, e.flair))
    description = f"ROC area: lesions found against all tissue within {NEAR_MM:g} mm. One model made both: favours DIR"
    findings: list[Finding] = [
        Measurement("separation of lesions on DIR", on_dir, "1", description),
        Measurement("separation of lesions on FLAIR", on_flair, "1", description),
    ]
    if on_dir <= on_flair:
        text = (
            "The synthetic DIR adds nothing to FLAIR here: it separates the lesions found from the tissue around them "
            f"no better (ROC area {on_dir:.2f}, FLAIR {on_flair:.2f})"
        )
        findings.append(Note("DIR and FLAIR", text))
    return findings


def _separation(lesions: NDArray[np.float32], near: NDArray[np.float32]) -> float:
    from scipy import stats  # half a second of import, which 'dicomnode check' does not need

    return float(stats.mannwhitneyu(lesions, near).statistic / (lesions.size * near.size))


def _label_spots(mask: NDArray[np.bool_], e: DirEstimate) -> tuple[NDArray[np.int32], int]:
    """Return the connected parts that are large enough, numbered from 1, and their number."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    new_number = np.zeros(count + 1, np.int32)
    large = [n for n in range(1, count + 1) if sizes[n] * e.spacing_mm**3 >= SPOT_MM3]
    new_number[large] = np.arange(1, len(large) + 1)
    return new_number[labels], len(large)


def _excess(x: NDArray[np.float32], e: DirEstimate) -> NDArray[np.float32]:
    """Return the excess over the median of the voxel's own structure."""
    return np.asarray(x - structure_statistics(x, e.structure)[0][e.structure])


def summarise(e: DirEstimate, passes: int) -> list[Finding]:
    """Return the overall uncertainty and the facts of the processing."""
    brain, cortex = e.brain, np.isin(e.structure, CORTEX)
    findings: list[Finding] = [
        *e.out_of_distribution,
        Measurement("mean standard deviation", float(e.sd[brain].mean()), "1", "In the brain, in units of grey matter"),
        Measurement("mean epistemic standard deviation", float(e.epistemic[brain].mean()), "1"),
        Measurement("cortex on DIR", float(np.median(e.dir[cortex])) if cortex.any() else 0.0, "1", "Expected: 1"),
        Measurement("dropout passes", float(passes), "1"),
    ]
    if r := e.registration:
        findings.append(Measurement("T1w shifted", r.shift_mm, "mm", f"Onto the FLAIR, from {r.start}"))
        findings.append(
            Measurement("T1w turned", r.rotation_degrees, "deg", f"Mutual information {r.mutual_information:.2f}")
        )
    else:
        text = "No T1w: made from FLAIR alone, which tells lesions from artefacts and grey from white matter less well"
        findings.append(Note("inputs", text))
    return findings
