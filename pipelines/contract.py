"""What a pipeline takes and what it gives: arrays with geometry and units, never a data set, never a patient.

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

from model_zoo.grid import Grid

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = [
    "Case",
    "Code",
    "Covariates",
    "Finding",
    "Grid",
    "Image",
    "Input",
    "Interval",
    "KSpace",
    "Measurement",
    "Note",
    "ParametricMap",
    "Pipeline",
    "Progress",
    "Refused",
    "Segment",
    "Segmentation",
    "Sourced",
    "Volume",
]

T = TypeVar("T")

Progress = Callable[[float, str], None]
"""Called with the done fraction in [0, 1] and a short word for the step; may raise to cancel."""


class Refused(Exception):
    """The input cannot be processed honestly. The message says what, where and why, for a person to read."""


@dataclass(frozen=True)
class Volume:
    """An image: ``data`` float32 (k, j, i) on ``grid``, in ``unit`` (UCUM).

    ``slice_thickness_mm``: nominal thickness of a slice, which may differ from the spacing; None: the spacing.
    """

    data: NDArray[np.float32]
    grid: Grid
    unit: str = "1"
    slice_thickness_mm: float | None = None


@dataclass(frozen=True)
class KSpace:
    """Cartesian multi-coil k-space, slice by slice in-plane.

    ``samples``: complex64 (slice, coil, a, b), exactly zero where nothing was acquired.
    ``mask``: bool (slice, a, b), True where a sample was acquired (read from the data, never assumed).
    ``calibration``: per image axis the half-open range (start, stop) of the fully sampled block about the centre,
    as found in the data: ((a0, a1), (b0, b1)); None when there is none.
    ``noise``: complex64 (coil, n) of a noise pre-scan at the same receiver bandwidth; None when not sent.
    ``encoded_fov_mm``: field of view (a, b) that the samples encode.
    ``grid``: that of the image to deliver (may be smaller in field of view and finer than what is encoded).
    ``slice_thickness_mm``: nominal thickness of the excited slice, which may differ from the spacing.
    ``label``: which image of the acquisition this is ("contrast 2 of 3"); empty where it is the only one.
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
class Sourced(Generic[T]):
    """A value and where it was found; None: unknown, and ``where`` says why."""

    value: T | None = None
    where: str = "not stated"


@dataclass(frozen=True)
class Covariates:
    """What is known of the patient beside the images: ``sex`` "F" or "M"; ``e4_alleles``: of APOE, 0 to 2; ``mmse``:
    points of 30; ``ptau217_pg_ml``: of plasma."""

    age_years: Sourced[float] = Sourced()
    sex: Sourced[str] = Sourced()
    e4_alleles: Sourced[int] = Sourced()
    mmse: Sourced[int] = Sourced()
    ptau217_pg_ml: Sourced[float] = Sourced()


@dataclass(frozen=True)
class Case:
    """One study as a pipeline sees it: named inputs and acquisition facts (no identity).

    ``facts``: those of the pipeline's first input, and under the name of each further input its own.
    """

    inputs: Mapping[str, Volume | KSpace | Covariates]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Volume | KSpace | Covariates:
        return self.inputs[name]


@dataclass(frozen=True)
class Code:
    """A coded concept: value, coding scheme designator, meaning (PS3.16).

    ``modifiers``: what narrows the concept: a side of CID 244, or the part of it that is meant.
    """

    value: str
    scheme: str
    meaning: str
    modifiers: tuple[Code, ...] = ()


@dataclass(frozen=True)
class Image:
    """A generated or reconstructed image series, to be stored clean and with the synthetic label in its pixels.

    ``modality``: "PT" or "MR" where the image shows what the input's own scan measured, of the same tracer or from its
    own k-space, and in the same quantity; it may then be stored as an object of that modality and be compared with the
    input. Empty for anything that a model made of another contrast or modality.
    """

    name: str
    volume: Volume
    description: str
    slice_thickness_mm: float
    modality: str = ""


@dataclass(frozen=True)
class ParametricMap:
    """A float map in real-world units (uncertainty, ratio) on the grid of its image.

    ``of``: that image's name, where several are on one grid.
    """

    name: str
    volume: Volume
    quantity: Code
    description: str
    slice_thickness_mm: float
    of: str = ""


@dataclass(frozen=True)
class Segment:
    """One label of a segmentation: ``number`` from 1; SNOMED CT category and type; ``color``: red, green, blue; without
    one the writer chooses.

    ``site``: where in the body a finding lies (a structure is its own site); ``centre_mm``: the voxel in the middle of
    it (x, y, z) in LPS, on which a viewer can mark it. The report's group of the same name tells both.
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
    """Label array uint8 (k, j, i): 0 background, else the number of one of ``segments``. May be all zero.

    ``of``: the name of its image, where several are on one grid.
    """

    name: str
    labels: NDArray[np.uint8]
    grid: Grid
    segments: tuple[Segment, ...]
    description: str
    slice_thickness_mm: float
    of: str = ""


@dataclass(frozen=True)
class Interval:
    """Where a quantity lies with probability ``level``."""

    level: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """A number about the result: ``unit`` in UCUM.

    ``group``: the region or lesion that it belongs to, empty for the whole result; ``site``: that region's code;
    ``quantity``: what was measured, coded where a code exists; ``derivation``: how one number was made of the many of
    the region (CID 7464), such as their mean. In one group no two measurements have the same of both.
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
    """Something that the result says in words: a covariate that was used, a number withheld, an abstention."""

    name: str
    text: str


Finding = Image | ParametricMap | Segmentation | Measurement | Note


@dataclass(frozen=True)
class Input:
    """An input that a pipeline takes by name; one of covariates is there even when nothing was sent for it.

    ``earlier``: it is of an earlier examination of the same patient, from another study than the results belong to.
    """

    name: str
    kind: type[Volume] | type[KSpace] | type[Covariates]
    required: bool = True
    earlier: bool = False


@dataclass(frozen=True)
class Pipeline:
    """One clinical question. ``run(case, model, options, seed, progress)`` gives findings.

    ``bundle``: its own model; ``helpers``: bundles of others that it uses, which the node puts into ``model.helpers``.
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
