"""Lesions of an estimate: each with its place, its volume and how sure it is; what of them viewers and reports get.

What is a lesion ``model_zoo.lesion_decision`` says; what is none is counted as unsure or without support. Its contrast
is its mean
DIR less that of the tissue 2 to 5 mm around it; the probability that the contrast exceeds tau takes the lesion's mean
standard deviation for the error of the whole lesion, for errors within a lesion go together.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo import lesion_locations
from model_zoo.lesion_decision import Decision
from model_zoo.structures import number
from pipelines.codes import BRAIN, CEREBRAL_CORTEX, MEAN, NUMBER_OF_LESIONS, PROBABILITY, VOLUME
from pipelines.contract import Code, Finding, Grid, Measurement, Note
from pipelines.dir_estimate import DirEstimate
from pipelines.laterality import Midplane, find_midplane

__all__ = [
    "LESION_OF_BRAIN",
    "MORPHOLOGY",
    "PLACES",
    "Lesion",
    "LesionMap",
    "Place",
    "Thresholds",
    "find_lesions",
    "measure_lesions",
    "surrounding_dir",
]

MORPHOLOGY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LESION_OF_BRAIN = Code("301766008", "SCT", "Lesion of Brain")
LEAST_SURROUNDINGS = 20
DECISION = Decision()


@dataclass(frozen=True)
class Place:
    """A class of locations: its segment's number, name, what counts as such, code and colour."""

    number: int
    name: str
    locations: tuple[str, ...]
    site: Code
    color: tuple[int, int, int]


def _white_matter(where: Code) -> Code:
    return Code("68523003", "SCT", "Cerebral White Matter", (where,))


def _brain(where: Code) -> Code:
    return Code(BRAIN.value, BRAIN.scheme, BRAIN.meaning, (where,))


_SITES = MappingProxyType({
    "juxtacortical": _white_matter(Code("JUXTACORTICAL", "99DICOMNODE", "Juxtacortical")),
    "cortical": CEREBRAL_CORTEX,
    "periventricular": _white_matter(Code("PERIVENTRICULAR", "99DICOMNODE", "Periventricular")),
    "infratentorial": _brain(Code("INFRATENTORIAL", "99DICOMNODE", "Infratentorial")),
    "deep": _white_matter(Code("795002", "SCT", "Deep")),
})  # fmt: skip
"""Finding site of a lesion by its location: a structure of the standard's and, as modifier, the part of it."""

PLACES = (
    Place(1, "juxtacortical", ("juxtacortical", "cortical"),
          _brain(Code("JUXTAORCORTICAL", "99DICOMNODE", "Juxtacortical or cortical")), (230, 159, 0)),
    Place(2, "periventricular", ("periventricular",), _SITES["periventricular"], (86, 180, 233)),
    Place(3, "infratentorial", ("infratentorial",), _SITES["infratentorial"], (204, 121, 167)),
    Place(4, "deep", ("deep",), _SITES["deep"], (0, 158, 115)),
)  # fmt: skip
"""Those by which multiple sclerosis is diagnosed; cortical lesions count with the juxtacortical ones, as in the
McDonald criteria 2017."""
_PLACE_OF = MappingProxyType({location: place for place in PLACES for location in place.locations})


@dataclass(frozen=True)
class Thresholds:
    """What a lesion is, what contrast on DIR is asked for (grey matter is 1), how many lesions are told one by one."""

    decision: Decision = DECISION
    contrast: float = 0.3
    told: int = 40


@dataclass(frozen=True)
class Lesion:
    """``number``: in the label map, the largest being 1; ``site``: with its side where that is certain; ``peak``: its
    likeliest voxel (k, j, i); ``centre_mm``: its voxel nearest to its centre of mass, LPS; sd, contrast and the
    probability that it exceeds the threshold; None where nothing is around it."""

    number: int
    place: Place
    site: Code
    volume_mm3: float
    peak: tuple[int, int, int]
    centre_mm: tuple[float, float, float]
    probability: float
    mean_sd: float
    contrast: float | None
    exceeds: float | None


@dataclass(frozen=True)
class LesionMap:
    """Lesions by descending volume; ``labels`` int32 (k, j, i): their numbers; how many parts were ``unsure`` and how
    many of the others had no support."""

    labels: NDArray[np.int32]
    lesions: tuple[Lesion, ...]
    unsure: int = 0
    dropped: int = 0


def find_lesions(e: DirEstimate, t: Thresholds) -> LesionMap:
    """The lesions of an estimate."""
    decided = t.decision.decide(e.lesion, e.flair, e.structure, e.spacing_mm)
    order = sorted(decided.lesions, key=lambda lesion: (-lesion.volume_mm3, lesion.label))
    renumbered = np.zeros(int(decided.labels.max()) + 1, np.int32)
    for n, lesion in enumerate(order, start=1):
        renumbered[lesion.label] = n
    labels = renumbered[decided.labels]
    boxes = ndimage.find_objects(labels, max_label=len(order))
    plane = find_midplane(e.structure, e.grid)
    lesions = tuple(_lesion(n, lesion, labels, boxes[n - 1], e, t, plane) for n, lesion in enumerate(order, start=1))
    return LesionMap(labels, lesions, decided.unsure, decided.unsupported)


def _lesion(
    n: int,
    lesion: lesion_locations.Lesion,
    labels: NDArray[np.int32],
    box: tuple[slice, ...],
    e: DirEstimate,
    t: Thresholds,
    plane: Midplane | None,
) -> Lesion:
    inside = labels[box] == n
    p = np.where(inside, e.lesion[box], -1)
    peak = [int(at) + s.start for at, s in zip(np.unravel_index(p.argmax(), p.shape), box, strict=True)]
    sd = float(e.sd[box][inside].mean())
    near = surrounding_dir(labels, n, box, e)
    contrast = float(e.dir[box][inside].mean() - near.mean()) if len(near) >= LEAST_SURROUNDINGS else None
    exceeds = None if contrast is None else _normal((contrast - t.contrast) / max(sd, 1e-3))
    points_mm = _points_mm(inside, box, e.grid)
    site = _sided(_SITES[lesion.location], plane.find_side(points_mm) if plane else None)
    return Lesion(
        n, _PLACE_OF[lesion.location], site, lesion.volume_mm3, (peak[0], peak[1], peak[2]), _middle_mm(points_mm),
        float(e.lesion[box][inside].mean()), sd, contrast, exceeds,
    )  # fmt: skip


def _points_mm(inside: NDArray[np.bool_], box: tuple[slice, ...], grid: Grid) -> NDArray[np.float64]:
    """Centres (n, 3) of the voxels of a box that are inside, LPS."""
    k, j, i = (at + s.start for at, s in zip(np.nonzero(inside), box, strict=True))
    return np.asarray(np.stack([i, j, k, np.ones_like(i)], axis=1) @ grid.affine_mm[:3].T)


def _middle_mm(points_mm: NDArray[np.float64]) -> tuple[float, float, float]:
    """The point nearest to their mean, which itself may lie outside of a bent lesion."""
    distance_mm = np.linalg.norm(points_mm - points_mm.mean(axis=0), axis=1)
    x, y, z = points_mm[distance_mm.argmin()]
    return float(x), float(y), float(z)


def _sided(site: Code, side: Code | None) -> Code:
    return site if side is None else Code(site.value, site.scheme, site.meaning, (*site.modifiers, side))


def surrounding_dir(labels: NDArray[np.int32], n: int, box: tuple[slice, ...], e: DirEstimate) -> NDArray[np.float32]:
    """DIR of the brain tissue, without any lesion, 2 to 5 mm around lesion ``n`` that lies in ``box``."""
    wide = math.ceil(6 / e.spacing_mm)
    near = tuple(slice(max(0, s.start - wide), s.stop + wide) for s in box)
    distance_mm = ndimage.distance_transform_edt(labels[near] != n) * e.spacing_mm
    tissue = e.brain[near] & (e.structure[near] != number("lateral ventricles")) & (labels[near] == 0)
    return np.asarray(e.dir[near][tissue & (distance_mm >= 2) & (distance_mm <= 5)])


def _normal(z: float) -> float:
    """Probability that a standard normal number is below z."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def measure_lesions(found: LesionMap, t: Thresholds) -> list[Finding]:
    """Counts and volumes by place, then the largest lesions one by one; the rest in a sentence."""
    counts = Counter(lesion.place.name for lesion in found.lesions)
    load_ml = sum(lesion.volume_mm3 for lesion in found.lesions) / 1000
    d = t.decision
    asked = f"Connected parts of at least {d.smallest_mm3:g} mm3 where the lesion probability exceeds {d.probability:g}"
    results: list[Finding] = [
        Measurement("lesions", float(len(found.lesions)), "1", asked, quantity=NUMBER_OF_LESIONS),
        Measurement("lesion load", load_ml, "ml", quantity=VOLUME),
        Measurement("unsure parts", float(found.unsure), "1", f"Left out: mean lesion probability below {d.sure:g}"),
        Measurement("lesions without support", float(found.dropped), "1", f"Left out: FLAIR {d.flair:g} sd or less up"),
    ]
    for place in PLACES:
        own_ml = sum(lesion.volume_mm3 for lesion in found.lesions if lesion.place is place) / 1000
        count, site = float(counts[place.name]), place.site
        results.append(Measurement(f"{place.name} lesions", count, "1", site=site))
        results.append(Measurement(f"{place.name} lesion volume", own_ml, "ml", site=site))
    for lesion in found.lesions[: t.told]:
        results += _told(lesion, t)
    if rest := found.lesions[t.told :]:
        words = f"{len(rest)} further lesions of at most {rest[0].volume_mm3:.0f} mm3 are in the segmentation only"
        results.append(Note("lesions", words))
    return results


def _told(lesion: Lesion, t: Thresholds) -> list[Finding]:
    group, site = f"lesion {lesion.number}", lesion.site

    def number_of(
        name: str, value: float, unit: str, words: str = "", code: Code | None = None, derivation: Code | None = None
    ) -> Measurement:
        return Measurement(name, value, unit, words, group, site, code, (), derivation)

    found: list[Finding] = [
        number_of("volume", lesion.volume_mm3, "mm3", f"{lesion.place.name.capitalize()} lesion", VOLUME),
        number_of("mean lesion probability", lesion.probability, "1", code=PROBABILITY, derivation=MEAN),
        number_of("mean standard deviation", lesion.mean_sd, "1", "That the network states, in units of grey matter"),
    ]
    if lesion.contrast is not None and lesion.exceeds is not None:
        words = "Mean DIR less that of the tissue 2 to 5 mm around, in units of grey matter"
        sure = f"That the contrast exceeds {t.contrast:g}, the mean sd being the error of the whole lesion"
        found.append(number_of("contrast", lesion.contrast, "1", words))
        found.append(number_of("probability of contrast", lesion.exceeds, "1", sure))
    return found
