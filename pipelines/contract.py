"""Inputs and findings of a pipeline: arrays with geometry and units, never a data set, never a patient.

Conventions, stated once:

- Image arrays have axes ``(k, j, i)``: slice, row, column.
- ``Grid.affine_mm`` maps homogeneous voxel indices ``(i, j, k, 1)`` to millimetres in the DICOM patient
  system (LPS: +x left, +y posterior, +z superior; PS3.3 C.7.6.2.1.1), at voxel centres.
- k-space arrays have axes ``(slice, coil, a, b)`` where image axis ``a`` becomes the row index ``j`` and ``b`` the
  column index ``i``; the centre of k-space is sample ``n // 2`` (centred orthonormal FFT).
- Units are UCUM codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_zoo.ct_geometry import CtGeometry
from model_zoo.grid import Grid

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = [
    "Alignment",
    "Case",
    "Code",
    "Covariates",
    "Finding",
    "Grid",
    "Image",
    "Input",
    "Interval",
    "KSpace",
    "Labels",
    "Measurement",
    "Note",
    "ParametricMap",
    "Pipeline",
    "Progress",
    "Projections",
    "Refused",
    "Segment",
    "Segmentation",
    "Sourced",
    "StoredSlices",
    "Volume",
]

T = TypeVar("T")

Progress = Callable[[float, str], None]
"""Callback with the fraction done in [0, 1] and a short name of the step; may raise to cancel."""


class Refused(Exception):
    """Refusal of an input that cannot be processed honestly. The message says for a person what, where and why."""


@dataclass(frozen=True)
class StoredSlices:
    """Slices of a series that may lack some: their ``numbers`` along k, None where the series lacks the slice.

    A number is that of a viewer: the Instance Number, 0 without one, or the frame of a multi-frame object. Every value
    is ``slope`` times a whole number plus ``intercept``.
    """

    numbers: tuple[int | None, ...]
    slope: float
    intercept: float


@dataclass(frozen=True)
class Volume:
    """Image: ``data`` float32 (k, j, i) on ``grid``, in ``unit`` (UCUM).

    ``slice_thickness_mm``: nominal thickness of a slice, which may differ from the spacing; None means the spacing.
    ``slices``: only of inputs with ``allows_gaps``, where missing slices are 0, and of results that keep the stored
    steps of their source.
    """

    data: NDArray[np.float32]
    grid: Grid
    unit: str = "1"
    slice_thickness_mm: float | None = None
    slices: StoredSlices | None = None


@dataclass(frozen=True)
class KSpace:
    """Cartesian multi-coil k-space, slice by slice in-plane.

    ``samples``: complex64 (slice, coil, a, b), exactly zero where nothing was acquired.
    ``mask``: bool (slice, a, b), True where a sample was acquired (as read from the data, never assumed).
    ``calibration``: per image axis the half-open range (start, stop) of the fully sampled block about the centre,
    as found in the data: ((a0, a1), (b0, b1)); None without such a block.
    ``noise``: complex64 (coil, n) of a noise pre-scan at the same receiver bandwidth; None where none was sent.
    ``encoded_fov_mm``: field of view (a, b) that the samples encode.
    ``grid``: grid of the image to deliver (its field of view may be smaller and its pixels finer than encoded).
    ``slice_thickness_mm``: nominal thickness of the excited slice, which may differ from the spacing.
    ``label``: name of this image within the acquisition ("contrast 2 of 3"); empty for the only image.
    """

    samples: NDArray[np.complex64]
    mask: NDArray[np.bool_]
    encoded_fov_mm: tuple[float, float]
    grid: Grid
    slice_thickness_mm: float
    calibration: tuple[tuple[int, int], tuple[int, int]] | None = None
    noise: NDArray[np.complex64] | None = None
    label: str = ""


@dataclass(frozen=True)
class Projections:
    """Computed tomography of parallel planes, each scanned by parallel beams or fans that lie in it.

    ``line_integrals``: float32 (slice, view, bin), without unit; ``counts``: photons detected in each ray, of the same
    shape, 0 for a ray that was not measured. ``beam``: image, views and bins of every plane; the axis of rotation is
    the middle of the image, x runs along i and y along j. ``grid``: of the image, (slice, j, i). ``water_per_mm``:
    attenuation of water in this beam, 1/mm, which is 0 HU. ``assumptions``: what the data do not state, in words.
    """

    line_integrals: NDArray[np.float32]
    counts: NDArray[np.float32]
    beam: CtGeometry
    grid: Grid
    slice_thickness_mm: float
    water_per_mm: float
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """Segmentation as an input: ``data`` uint16 (k, j, i) on ``grid``, 0 outside, else the number of a segment."""

    data: NDArray[np.uint16]
    grid: Grid
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Sourced(Generic[T]):
    """Value with its source; None is an unknown value, and ``source`` says why."""

    value: T | None = None
    source: str = "not stated"


@dataclass(frozen=True)
class Covariates:
    """Facts on the patient besides the images.

    ``sex``: "F" or "M"; ``e4_alleles``: APOE e4 alleles, 0 to 2; ``mmse``: points out of 30; ``ptau217_pg_ml``: in
    plasma.
    """

    age_years: Sourced[float] = Sourced()
    sex: Sourced[str] = Sourced()
    e4_alleles: Sourced[int] = Sourced()
    mmse: Sourced[int] = Sourced()
    ptau217_pg_ml: Sourced[float] = Sourced()


@dataclass(frozen=True)
class Case:
    """One study as a pipeline sees it: named inputs and acquisition facts, without identity.

    ``facts``: facts of the pipeline's first input, and under the name of each further input that input's facts.
    """

    inputs: Mapping[str, Volume | KSpace | Projections | Labels | Covariates]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Volume | KSpace | Projections | Labels | Covariates:
        return self.inputs[name]


@dataclass(frozen=True)
class Code:
    """Coded concept: value, coding scheme designator, meaning (PS3.16).

    ``modifiers``: codes that narrow the concept: a side of CID 244, or a part of the structure.
    """

    value: str
    scheme: str
    meaning: str
    modifiers: tuple[Code, ...] = ()


@dataclass(frozen=True)
class Image:
    """Generated or reconstructed image series, to be stored clean and with the synthetic label in its pixels.

    ``modality``: "PT" or "MR" where the image shows what the input's own scan measured, of the same tracer or from its
    own k-space, and in the same quantity; it may then be stored as an object of that modality and be compared with the
    input. Empty for any image that a model made from another contrast or modality. ``synthetic_slices``: where only
    these slices (of k) were generated and all others are measured; every frame then states which it is.
    """

    name: str
    volume: Volume
    description: str
    slice_thickness_mm: float
    modality: str = ""
    synthetic_slices: tuple[int, ...] = ()


@dataclass(frozen=True)
class ParametricMap:
    """Float map in real-world units (uncertainty, ratio) on the grid of its image.

    ``image_name``: name of that image, where several images share one grid.
    """

    name: str
    volume: Volume
    quantity: Code
    description: str
    slice_thickness_mm: float
    image_name: str = ""


@dataclass(frozen=True)
class Segment:
    """One label of a segmentation: ``number`` from 1; SNOMED CT category and type.

    ``color``: red, green, blue; the writer chooses one for None. ``site``: place of a finding in the body (a structure
    is its own site); ``centre_mm``: the voxel in its middle (x, y, z) in LPS, on which a viewer can mark it. The
    report's group of the same name states both.
    """

    number: int
    label: str
    category: Code
    type: Code
    description: str = ""
    color: tuple[int, int, int] | None = None
    site: Code | None = None
    centre_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Segmentation:
    """Label array uint8 (k, j, i): 0 is background, else the number of one of ``segments``; may be all zero.

    ``image_name``: name of its image, where several images share one grid.
    """

    name: str
    labels: NDArray[np.uint8]
    grid: Grid
    segments: tuple[Segment, ...]
    description: str
    slice_thickness_mm: float
    image_name: str = ""


@dataclass(frozen=True)
class Interval:
    """Range in which a quantity lies with probability ``level``."""

    level: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """Number about the result; ``unit`` in UCUM.

    ``group``: region or lesion that the number belongs to, empty for the whole result; ``site``: code of that region;
    ``quantity``: code of the measured quantity, where one exists; ``derivation``: how one number was made from the many
    of the region (CID 7464), such as their mean. No two measurements of a group share both quantity and derivation.
    """

    name: str
    value: float
    unit: str
    description: str = ""
    group: str = ""
    site: Code | None = None
    quantity: Code | None = None
    intervals: tuple[Interval, ...] = ()
    derivation: Code | None = None


@dataclass(frozen=True)
class Note:
    """Statement of the result in words: a covariate that was used, a number withheld, an abstention.

    ``holds_result``: the statement is a reason for the output gate to hold the result for a person.
    """

    name: str
    text: str
    holds_result: bool = False


@dataclass(frozen=True)
class Alignment:
    """Rigid motion of an input onto the result, for pictures of both at one place.

    ``name``: of the input; ``correction_mm``: float64 4 x 4, from positions as the input's header states them to those
    of the result (LPS).
    """

    name: str
    correction_mm: NDArray[np.float64]


Finding = Image | ParametricMap | Segmentation | Measurement | Note | Alignment


@dataclass(frozen=True)
class Input:
    """Input that a pipeline takes by name; covariates are always passed, even when nothing was sent for them.

    ``is_prior``: the input comes from a prior examination of the patient, not from the study of the results.
    ``allows_gaps``: slices of the series may be missing (``Volume.slices``); others refuse such a series.
    """

    name: str
    kind: type[Volume] | type[KSpace] | type[Projections] | type[Labels] | type[Covariates]
    required: bool = True
    is_prior: bool = False
    allows_gaps: bool = False


@dataclass(frozen=True)
class Pipeline:
    """One clinical question. ``run(case, model, options, seed, progress)`` returns findings.

    ``bundle``: its own model; ``helpers``: further bundles that it uses, which the node puts into ``model.helpers``.
    ``options`` is an instance of ``options_type`` (a frozen pydantic model with defaults, unknown keys refused), which
    the node fills from the route.
    """

    name: str
    title: str
    inputs: tuple[Input, ...]
    bundle: str
    options_type: type[Any]
    run: Callable[[Case, Model, Any, int, Progress], list[Finding]]
    helpers: tuple[str, ...] = ()
