"""Lesions of an estimate with place, volume and confidence, and their measurements for the report.

``model_zoo.lesion_decision`` decides on lesions; rejected candidates are counted as unsure or without support. A
lesion's contrast is its mean DIR less that of the tissue 2 to 5 mm around it; the probability that the contrast exceeds
tau takes the lesion's mean standard deviation as the error of the whole lesion, because errors within a lesion are
correlated.
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
from model_zoo.lesion_decision import LesionCriteria
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
DECISION = LesionCriteria()


@dataclass(frozen=True)
class Place:
    """Class of lesion locations: number of its segment, name, locations that belong to it, code and colour."""

    number: int
    name: str
    locations: tuple[str, ...]
    site: Code
    color: tuple[int, int, int]


def _part_of_white_matter(where: Code) -> Code:
    return Code("68523003", "SCT", "Cerebral White Matter", (where,))


def _part_of_brain(where: Code) -> Code:
    return Code(BRAIN.value, BRAIN.scheme, BRAIN.meaning, (where,))


_SITES = MappingProxyType({
    "juxtacortical": _part_of_white_matter(Code("JUXTACORTICAL", "99DICOMNODE", "Juxtacortical")),
    "cortical": CEREBRAL_CORTEX,
    "periventricular": _part_of_white_matter(Code("PERIVENTRICULAR", "99DICOMNODE", "Periventricular")),
    "infratentorial": _part_of_brain(Code("INFRATENTORIAL", "99DICOMNODE", "Infratentorial")),
    "deep": _part_of_white_matter(Code("795002", "SCT", "Deep")),
})  # fmt: skip
"""Finding site of a lesion by its location: a structure of the standard, and the part of it as modifier."""

PLACES = (
    Place(1, "juxtacortical", ("juxtacortical", "cortical"),
          _part_of_brain(Code("JUXTAORCORTICAL", "99DICOMNODE", "Juxtacortical or cortical")), (230, 159, 0)),
    Place(2, "periventricular", ("periventricular",), _SITES["periventricular"], (86, 180, 233)),
    Place(3, "infratentorial", ("infratentorial",), _SITES["infratentorial"], (204, 121, 167)),
    Place(4, "deep", ("deep",), _SITES["deep"], (0, 158, 115)),
)  # fmt: skip
"""Locations by which multiple sclerosis is diagnosed.

Cortical lesions count with the juxtacortical ones, as in the McDonald criteria 2017."""
_PLACE_OF = MappingProxyType({location: place for place in PLACES for location in place.locations})


@dataclass(frozen=True)
class Thresholds:
    """Thresholds: decision on lesions, least contrast on DIR (grey matter is 1), most lesions listed one by one."""

    decision: LesionCriteria = DECISION
    contrast: float = 0.3
    max_listed: int = 40


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    ``number``: number in the label map, from 1 for the largest; ``site``: code, with the side where it is certain;
    ``peak``: voxel (k, j, i) of the highest probability; ``centre_mm``: voxel nearest to the centre of mass, LPS;
    ``contrast`` and ``exceeds``, the probability that it exceeds the threshold: None without surrounding tissue.
    """

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
    """Lesions by descending volume.

    ``labels`` int32 (k, j, i): their numbers; ``unsure``: number of parts rejected as unsure; ``dropped``: number of
    others, rejected for lack of support.
    """

    labels: NDArray[np.int32]
    lesions: tuple[Lesion, ...]
    unsure: int = 0
    dropped: int = 0

    @property
    def load_ml(self) -> float:
        """Volume of all lesions in ml."""
        return sum(lesion.volume_mm3 for lesion in self.lesions) / 1000


def find_lesions(e: DirEstimate, t: Thresholds) -> LesionMap:
    """Find the lesions of an estimate."""
    decided = t.decision.select(e.lesion, e.flair, e.structure, e.spacing_mm)
    order = sorted(decided.lesions, key=lambda lesion: (-lesion.volume_mm3, lesion.label))
    renumbered = np.zeros(int(decided.labels.max()) + 1, np.int32)
    for n, lesion in enumerate(order, start=1):
        renumbered[lesion.label] = n
    labels = renumbered[decided.labels]
    boxes = ndimage.find_objects(labels, max_label=len(order))
    plane = find_midplane(e.structure, e.grid)
    lesions = tuple(
        _make_lesion(n, lesion, labels, boxes[n - 1], e, t, plane) for n, lesion in enumerate(order, start=1)
    )
    return LesionMap(labels, lesions, decided.unsure, decided.unsupported)


def _make_lesion(
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
    core = (p > t.decision.probability) | (p == p.max())
    peak = [int(at) + s.start for at, s in zip(np.unravel_index(p.argmax(), p.shape), box, strict=True)]
    sd = float(e.sd[box][inside].mean())
    near = surrounding_dir(labels, n, box, e)
    contrast = float(e.dir[box][inside].mean() - near.mean()) if len(near) >= LEAST_SURROUNDINGS else None
    exceeds = None if contrast is None else _normal_cdf((contrast - t.contrast) / max(sd, 1e-3))
    points_mm = _points_mm(inside, box, e.grid)
    site = _add_side(_SITES[lesion.location], plane.find_side(points_mm) if plane else None)
    return Lesion(
        n, _PLACE_OF[lesion.location], site, lesion.volume_mm3, (peak[0], peak[1], peak[2]), _middle_mm(points_mm),
        float(p[core].mean()), sd, contrast, exceeds,
    )  # fmt: skip


def _points_mm(inside: NDArray[np.bool_], box: tuple[slice, ...], grid: Grid) -> NDArray[np.float64]:
    """Return the centres (n, 3) of the voxels of a box that are inside, LPS."""
    k, j, i = (at + s.start for at, s in zip(np.nonzero(inside), box, strict=True))
    return np.asarray(np.stack([i, j, k, np.ones_like(i)], axis=1) @ grid.affine_mm[:3].T)


def _middle_mm(points_mm: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the point nearest to the mean, because the mean itself may lie outside of a bent lesion."""
    distance_mm = np.linalg.norm(points_mm - points_mm.mean(axis=0), axis=1)
    x, y, z = points_mm[distance_mm.argmin()]
    return float(x), float(y), float(z)


def _add_side(site: Code, side: Code | None) -> Code:
    return site if side is None else Code(site.value, site.scheme, site.meaning, (*site.modifiers, side))


def surrounding_dir(labels: NDArray[np.int32], n: int, box: tuple[slice, ...], e: DirEstimate) -> NDArray[np.float32]:
    """Return DIR of the lesion-free brain tissue 2 to 5 mm around lesion ``n``, which lies in ``box``."""
    wide = math.ceil(6 / e.spacing_mm)
    near = tuple(slice(max(0, s.start - wide), s.stop + wide) for s in box)
    distance_mm = ndimage.distance_transform_edt(labels[near] != n) * e.spacing_mm
    tissue = e.brain[near] & (e.structure[near] != number("lateral ventricles")) & (labels[near] == 0)
    return np.asarray(e.dir[near][tissue & (distance_mm >= 2) & (distance_mm <= 5)])


def _normal_cdf(z: float) -> float:
    """Return the probability that a standard normal number is below z."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def measure_lesions(lesion_map: LesionMap, t: Thresholds, *, on_dir: bool = True) -> list[Finding]:
    """Return counts and volumes by place, then the largest lesions one by one and a note on the rest.

    ``on_dir``: also measure them on the DIR.
    """
    counts = Counter(lesion.place.name for lesion in lesion_map.lesions)
    d = t.decision
    criterion = (
        f"Connected parts of at least {d.smallest_mm3:g} mm3 where the lesion probability exceeds {d.probability:g}"
    )
    findings: list[Finding] = [
        Measurement("lesions", float(len(lesion_map.lesions)), "1", criterion, quantity=NUMBER_OF_LESIONS),
        Measurement("lesion load", lesion_map.load_ml, "ml", quantity=VOLUME),
        Measurement(
            "unsure parts", float(lesion_map.unsure), "1", f"Left out: mean lesion probability below {d.sure:g}"
        ),
        Measurement(
            "lesions without support", float(lesion_map.dropped), "1", f"Left out: FLAIR {d.flair:g} sd or less up"
        ),
    ]
    for place in PLACES:
        own_ml = sum(lesion.volume_mm3 for lesion in lesion_map.lesions if lesion.place is place) / 1000
        count, site = float(counts[place.name]), place.site
        findings.append(Measurement(f"{place.name} lesions", count, "1", site=site))
        findings.append(Measurement(f"{place.name} lesion volume", own_ml, "ml", site=site))
    for lesion in lesion_map.lesions[: t.max_listed]:
        findings += _measure_lesion(lesion, t, on_dir)
    if rest := lesion_map.lesions[t.max_listed :]:
        words = f"{len(rest)} further lesions of at most {rest[0].volume_mm3:.0f} mm3 are in the segmentation only"
        findings.append(Note("lesions", words))
    return findings


def _measure_lesion(lesion: Lesion, t: Thresholds, on_dir: bool) -> list[Finding]:
    group, site = f"lesion {lesion.number}", lesion.site

    def measure(
        name: str,
        value: float,
        unit: str,
        description: str = "",
        code: Code | None = None,
        derivation: Code | None = None,
    ) -> Measurement:
        return Measurement(name, value, unit, description, group, site, code, (), derivation)

    findings: list[Finding] = [
        measure("volume", lesion.volume_mm3, "mm3", f"{lesion.place.name.capitalize()} lesion", VOLUME),
        measure("mean lesion probability", lesion.probability, "1", code=PROBABILITY, derivation=MEAN),
    ]
    if not on_dir:
        return findings
    description = "That the network states, in units of grey matter"
    findings.append(measure("mean standard deviation", lesion.mean_sd, "1", description))
    if lesion.contrast is not None and lesion.exceeds is not None:
        description = "Mean DIR less that of the tissue 2 to 5 mm around, in units of grey matter"
        confidence = f"That the contrast exceeds {t.contrast:g}, the mean sd being the error of the whole lesion"
        findings.append(measure("contrast", lesion.contrast, "1", description))
        findings.append(measure("probability of contrast", lesion.exceeds, "1", confidence))
    return findings
