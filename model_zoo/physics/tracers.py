"""Binding of each tracer by region and its growth with the disease: one table with a citation in every cell.

Values are standardised uptake value ratios (SUVR, dimensionless) to the tracer's reference region. A row holds one cell
per knot of the tracer's state (amyloid load in Centiloid, tau stage after Braak, neurodegeneration 0 to 1) and is
linear between knots and beyond them. Few cells are anchored in published numbers; ``ASSUMED`` marks the others, which a
site should treat as configuration.

The table has three regions beside the structures of ``model_zoo.structures``: "choroid plexus" (in the lateral
ventricles), "meninges" (the outermost csf) and "extracerebral" (bone, muscle, fat, skin, eyes); air has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model_zoo.structures import STRUCTURES, number

__all__ = [
    "ASSUMED",
    "COMPOSITES",
    "EXTRA_REGIONS",
    "REGIONS",
    "TRACERS",
    "Cell",
    "Tracer",
    "centiloid",
    "centiloid_to_suvr",
    "composite_uptake",
    "uptake",
    "uptake_sd",
]

ASSUMED = "plausible default, not measured"
PIB_YC = "PiB young controls 1.004±0.048 (Centiloid anchor, Klunk et al. 2015)"
PIB_AD = "PiB typical AD 2.067±0.204 (Centiloid anchor, Klunk et al. 2015)"
FBP_YC = "florbetapir young controls 0.96-0.98±0.04-0.07, unimpaired 1.04 (C-PAS)"
FBP_AD = "florbetapir AD 1.29±0.22 (C-PAS); 1.40±0.22 in the AD group of the ResDM paper, table 1"
FTP_CUT = "between the Braak-region cut-offs 1.13/1.30/1.87 (with partial volume correction, Maass et al. 2017)"
FDG_RATIO = "grey to white matter 4:1 (BrainWeb phantom, classes 128:32), cerebellum SUVmean 8.0±2.2"
MK_MENINGES = "high in about half of the subjects (reported qualitatively); the number is a plausible default"

EXTRA_REGIONS = ("choroid plexus", "meninges", "extracerebral")
REGIONS = (*(structure.name for structure in STRUCTURES), *EXTRA_REGIONS)

COMPOSITES: dict[str, dict[str, float]] = {
    "amyloid": {
        "frontal cortex": 0.40,
        "parietal cortex": 0.20,
        "precuneus": 0.05,
        "cingulate cortex": 0.08,
        "temporal cortex": 0.27,
    },
    "tau": {"parahippocampal cortex": 0.15, "amygdala": 0.05, "temporal cortex": 0.80},
    "metabolism": {"parietal cortex": 0.35, "precuneus": 0.10, "cingulate cortex": 0.15, "temporal cortex": 0.40},
}
"""Target regions of the composite, with their nominal shares of its volume: Centiloid-like neocortex,
temporal meta-region, metabolic signature."""


@dataclass(frozen=True)
class Cell:
    """SUVR of a region at a knot, its sd between subjects in the same state, and the source of the number."""

    suvr: float
    sd: float
    citation: str


@dataclass(frozen=True)
class Tracer:
    """A tracer and its table of uptake.

    ``target``: amyloid, tau or metabolism; ``knots``: states, in ``state_unit``, at which ``table`` has cells.

    ``scale``: the fixed number by which an SUVR image is divided for the networks. ``reference``: structures whose
    mean defines SUVR 1. ``meninges_probability``: share of subjects whose meninges bind at all. ``measured``: the table
    holds means of regions of images, partial volume included; else true uptake.
    """

    name: str
    target: str
    knots: tuple[float, ...]
    state_unit: str
    scale: float
    reference: tuple[str, ...]
    table: Mapping[str, tuple[Cell, ...]]
    meninges_probability: float = 0.0
    measured: bool = True

    @property
    def reference_numbers(self) -> tuple[int, ...]:
        """Structure numbers of the reference region."""
        return tuple(number(name) for name in self.reference)


Rows = dict[str, tuple[float, ...]]
Anchors = dict[tuple[str, int], str]


def _table(rows: Rows, sd: dict[str, float], anchors: Anchors, default_sd: float) -> dict[str, tuple[Cell, ...]]:
    missing = set(REGIONS) ^ set(rows)
    if missing:
        raise ValueError(f"regions without a row, or rows without a region: {sorted(missing)}")
    return {
        region: tuple(
            Cell(value, sd.get(region, default_sd), anchors.get((region, knot), ASSUMED))
            for knot, value in enumerate(rows[region])
        )
        for region in REGIONS
    }


WHOLE_CEREBELLUM = ("cerebellar cortex", "cerebellar white matter")

_FLORBETAPIR: Rows = {
    "cerebral white matter": (1.65, 1.65),
    "frontal cortex": (1.00, 1.42),
    "sensorimotor cortex": (0.98, 1.19),
    "parietal cortex": (1.00, 1.38),
    "precuneus": (1.02, 1.54),
    "cingulate cortex": (1.02, 1.50),
    "temporal cortex": (0.99, 1.34),
    "parahippocampal cortex": (0.95, 1.10),
    "occipital cortex": (0.98, 1.22),
    "insula": (1.00, 1.36),
    "lateral ventricles": (0.50, 0.50),
    "third and fourth ventricles": (0.50, 0.50),
    "csf": (0.50, 0.50),
    "cerebellar cortex": (0.90, 0.90),
    "cerebellar white matter": (1.35, 1.35),
    "thalamus": (1.10, 1.25),
    "caudate": (1.05, 1.35),
    "putamen": (1.12, 1.42),
    "pallidum": (1.35, 1.45),
    "hippocampus": (1.00, 1.10),
    "amygdala": (0.98, 1.15),
    "brain stem": (1.50, 1.50),
    "ventral diencephalon": (1.30, 1.35),
    "choroid plexus": (0.80, 0.80),
    "meninges": (0.55, 0.55),
    "extracerebral": (0.60, 0.60),
}
_PIB: Rows = {
    "cerebral white matter": (1.60, 1.60),
    "frontal cortex": (1.00, 2.12),
    "sensorimotor cortex": (0.98, 1.62),
    "parietal cortex": (1.01, 2.05),
    "precuneus": (1.03, 2.30),
    "cingulate cortex": (1.04, 2.28),
    "temporal cortex": (1.00, 1.90),
    "parahippocampal cortex": (1.00, 1.30),
    "occipital cortex": (1.00, 1.66),
    "insula": (1.02, 1.98),
    "lateral ventricles": (0.45, 0.45),
    "third and fourth ventricles": (0.45, 0.45),
    "csf": (0.45, 0.45),
    "cerebellar cortex": (0.95, 0.95),
    "cerebellar white matter": (1.30, 1.30),
    "thalamus": (1.15, 1.45),
    "caudate": (1.00, 1.90),
    "putamen": (1.10, 1.80),
    "pallidum": (1.30, 1.60),
    "hippocampus": (1.02, 1.25),
    "amygdala": (0.98, 1.35),
    "brain stem": (1.50, 1.50),
    "ventral diencephalon": (1.30, 1.40),
    "choroid plexus": (0.80, 0.80),
    "meninges": (0.55, 0.55),
    "extracerebral": (0.55, 0.55),
}
_FLORTAUCIPIR: Rows = {
    "cerebral white matter": (1.05, 1.05, 1.08, 1.15),
    "frontal cortex": (1.03, 1.05, 1.18, 1.65),
    "sensorimotor cortex": (1.02, 1.02, 1.08, 1.30),
    "parietal cortex": (1.05, 1.07, 1.27, 1.85),
    "precuneus": (1.05, 1.08, 1.30, 1.95),
    "cingulate cortex": (1.05, 1.08, 1.28, 1.80),
    "temporal cortex": (1.08, 1.15, 1.55, 2.10),
    "parahippocampal cortex": (1.08, 1.30, 1.50, 1.70),
    "occipital cortex": (1.04, 1.06, 1.20, 1.60),
    "insula": (1.06, 1.10, 1.28, 1.60),
    "lateral ventricles": (0.60, 0.60, 0.60, 0.60),
    "third and fourth ventricles": (0.60, 0.60, 0.60, 0.60),
    "csf": (0.55, 0.55, 0.55, 0.55),
    "cerebellar cortex": (1.00, 1.00, 1.00, 1.00),
    "cerebellar white matter": (1.00, 1.00, 1.00, 1.00),
    "thalamus": (1.25, 1.25, 1.27, 1.30),
    "caudate": (1.25, 1.25, 1.27, 1.30),
    "putamen": (1.40, 1.40, 1.42, 1.45),
    "pallidum": (1.45, 1.45, 1.47, 1.50),
    "hippocampus": (1.12, 1.22, 1.38, 1.50),
    "amygdala": (1.10, 1.25, 1.50, 1.75),
    "brain stem": (1.08, 1.08, 1.08, 1.10),
    "ventral diencephalon": (1.30, 1.30, 1.32, 1.35),
    "choroid plexus": (1.40, 1.40, 1.40, 1.40),
    "meninges": (0.70, 0.70, 0.70, 0.70),
    "extracerebral": (0.70, 0.70, 0.70, 0.70),
}
_MK6240: Rows = {
    "cerebral white matter": (0.80, 0.80, 0.83, 0.90),
    "frontal cortex": (0.98, 1.00, 1.20, 1.85),
    "sensorimotor cortex": (0.98, 0.98, 1.05, 1.30),
    "parietal cortex": (1.00, 1.03, 1.40, 2.30),
    "precuneus": (1.00, 1.05, 1.45, 2.40),
    "cingulate cortex": (1.00, 1.05, 1.40, 2.20),
    "temporal cortex": (1.00, 1.15, 1.85, 2.70),
    "parahippocampal cortex": (1.00, 1.60, 2.10, 2.40),
    "occipital cortex": (1.00, 1.02, 1.25, 1.90),
    "insula": (0.98, 1.03, 1.30, 1.80),
    "lateral ventricles": (0.50, 0.50, 0.50, 0.50),
    "third and fourth ventricles": (0.50, 0.50, 0.50, 0.50),
    "csf": (0.50, 0.50, 0.50, 0.50),
    "cerebellar cortex": (1.00, 1.00, 1.00, 1.00),
    "cerebellar white matter": (0.90, 0.90, 0.90, 0.90),
    "thalamus": (0.95, 0.95, 0.97, 1.00),
    "caudate": (0.90, 0.90, 0.92, 0.95),
    "putamen": (1.00, 1.00, 1.02, 1.05),
    "pallidum": (1.15, 1.15, 1.15, 1.15),
    "hippocampus": (1.00, 1.40, 1.80, 2.10),
    "amygdala": (1.00, 1.40, 2.00, 2.50),
    "brain stem": (0.95, 0.95, 0.95, 0.95),
    "ventral diencephalon": (1.20, 1.20, 1.20, 1.20),
    "choroid plexus": (0.80, 0.80, 0.80, 0.80),
    "meninges": (2.00, 2.00, 2.00, 2.00),
    "extracerebral": (0.60, 0.60, 0.60, 0.60),
}
_FDG: Rows = {
    "cerebral white matter": (0.28, 0.27),
    "frontal cortex": (1.12, 1.02),
    "sensorimotor cortex": (1.10, 1.08),
    "parietal cortex": (1.12, 0.82),
    "precuneus": (1.20, 0.84),
    "cingulate cortex": (1.15, 0.86),
    "temporal cortex": (1.02, 0.78),
    "parahippocampal cortex": (0.85, 0.68),
    "occipital cortex": (1.15, 1.08),
    "insula": (1.08, 1.00),
    "lateral ventricles": (0.06, 0.06),
    "third and fourth ventricles": (0.06, 0.06),
    "csf": (0.06, 0.06),
    "cerebellar cortex": (1.15, 1.15),
    "cerebellar white matter": (0.40, 0.40),
    "thalamus": (1.15, 1.10),
    "caudate": (1.15, 1.10),
    "putamen": (1.22, 1.20),
    "pallidum": (0.90, 0.88),
    "hippocampus": (0.85, 0.68),
    "amygdala": (0.80, 0.66),
    "brain stem": (0.65, 0.64),
    "ventral diencephalon": (0.75, 0.73),
    "choroid plexus": (0.30, 0.30),
    "meninges": (0.15, 0.15),
    "extracerebral": (0.20, 0.20),
}

BRAAK_KNOTS = (0.0, 1.5, 3.5, 5.5)
_AMYLOID_SD = {"cerebral white matter": 0.15, "brain stem": 0.12, "cerebellar white matter": 0.06}
_FTP_SD = {"putamen": 0.20, "caudate": 0.15, "pallidum": 0.20, "choroid plexus": 0.35, "cerebellar white matter": 0.03}
_MK_SD = {"meninges": 0.35, "pallidum": 0.15, "ventral diencephalon": 0.15}
_NEOCORTEX = tuple(COMPOSITES["amyloid"])


def _anchored(regions: tuple[str, ...], **at_knot: str) -> Anchors:
    return {(region, int(knot[1:])): text for region in regions for knot, text in at_knot.items()}


_PIB_INTERCEPT, _PIB_SPAN = 1.009, 1.067
_CENTILOID = {"PiB": (100 / _PIB_SPAN, -100 * _PIB_INTERCEPT / _PIB_SPAN), "florbetapir": (175.0, -182.0)}
"""Centiloid = slope SUVR + intercept. PiB: Klunk et al. 2015; florbetapir: Navitsky et al. 2018."""


def centiloid(tracer: str, suvr: float) -> float:
    """Return the Centiloid of a neocortical SUVR (reference: whole cerebellum). Raises KeyError without a scale."""
    slope, intercept = _CENTILOID[tracer]
    return slope * suvr + intercept


def centiloid_to_suvr(tracer: str, cl: float) -> float:
    """Return the neocortical SUVR of an amyloid load in Centiloid: inverse of :func:`centiloid`."""
    slope, intercept = _CENTILOID[tracer]
    return (cl - intercept) / slope


def _mean(rows: Rows, target: str, knot: int) -> float:
    return sum(share * rows[region][knot] for region, share in COMPOSITES[target].items())


def _amyloid_knots(name: str, rows: Rows) -> tuple[float, ...]:
    """Return the loads that belong to a table's neocortex, so that composite and Centiloid scale agree exactly."""
    return tuple(centiloid(name, _mean(rows, "amyloid", knot)) for knot in range(2))


TRACERS: dict[str, Tracer] = {
    tracer.name: tracer
    for tracer in (
        Tracer(
            "FDG", "metabolism", (0.0, 1.0), "neurodegeneration", 3.0, WHOLE_CEREBELLUM,
            _table(_FDG, {}, _anchored(("cerebral white matter", "cerebellar cortex"), _0=FDG_RATIO), 0.06),
            measured=False,
        ),
        Tracer(
            "florbetapir", "amyloid", _amyloid_knots("florbetapir", _FLORBETAPIR), "CL", 3.0, WHOLE_CEREBELLUM,
            _table(_FLORBETAPIR, _AMYLOID_SD, _anchored(_NEOCORTEX, _0=FBP_YC, _1=FBP_AD), 0.05),
        ),
        Tracer(
            "PiB", "amyloid", _amyloid_knots("PiB", _PIB), "CL", 3.0, WHOLE_CEREBELLUM,
            _table(_PIB, _AMYLOID_SD, _anchored(_NEOCORTEX, _0=PIB_YC, _1=PIB_AD), 0.05),
        ),
        Tracer(
            "flortaucipir", "tau", BRAAK_KNOTS, "Braak stage", 4.0, ("cerebellar cortex",),
            _table(_FLORTAUCIPIR, _FTP_SD, _anchored(tuple(COMPOSITES["tau"]), _1=FTP_CUT, _2=FTP_CUT), 0.06),
        ),
        Tracer(
            "MK-6240", "tau", BRAAK_KNOTS, "Braak stage", 6.0, ("cerebellar cortex",),
            _table(_MK6240, _MK_SD, _anchored(("meninges",), _0=MK_MENINGES, _1=MK_MENINGES, _2=MK_MENINGES,
                                              _3=MK_MENINGES), 0.08),
            meninges_probability=0.5,
        ),
    )
}  # fmt: skip
"""Tracers by name. Scales are 3 for FDG, florbetapir and PiB, 4 for flortaucipir, 6 for MK-6240: typical scans stay
below one."""


def uptake(tracer: Tracer, state: Tensor | float) -> Tensor:
    """Return the SUVR (..., regions) in the order of ``REGIONS`` for states (...): linear between knots and beyond."""
    return _between_knots(tracer, state, _cells(tracer)).clamp_min(0.0)


def uptake_sd(tracer: Tracer) -> Tensor:
    """Return the between-subject sd (regions,) of the SUVR in one state."""
    return torch.tensor([tracer.table[region][0].sd for region in REGIONS])


def composite_uptake(tracer: Tracer, state: Tensor | float) -> Tensor:
    """Return the mean SUVR (...) of the target's composite regions that the latent state implies.

    For amyloid tracers this is the neocortical SUVR whose Centiloid is ``state``.
    """
    shares = torch.tensor([COMPOSITES[tracer.target].get(region, 0.0) for region in REGIONS])
    return _between_knots(tracer, state, _cells(tracer) @ shares[:, None])[..., 0]


def _cells(tracer: Tracer) -> Tensor:
    """Return the SUVR (knots, regions) of the table."""
    return torch.tensor([[cell.suvr for cell in tracer.table[region]] for region in REGIONS]).T


def _between_knots(tracer: Tracer, state: Tensor | float, values: Tensor) -> Tensor:
    """Interpolate ``values`` (knots, n) at states (...): (..., n)."""
    s = torch.as_tensor(state, dtype=torch.float32)
    knots = torch.tensor(tracer.knots)
    at = torch.searchsorted(knots[1:-1].contiguous(), s.contiguous())
    share = ((s - knots[at]) / (knots[at + 1] - knots[at]))[..., None]
    return values[at] + share * (values[at + 1] - values[at])
