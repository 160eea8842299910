"""The geometry of an array of projections as a JSON file, for arrays that have no header."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_zoo.ct_geometry import WATER_PER_MM, CtGeometry
from pipelines.contract import Grid, Refused

__all__ = ["ScanGeometry", "make_plane_grid"]

_LARGEST = 1e6
_Positive = Annotated[float, Field(gt=1e-6, le=_LARGEST, allow_inf_nan=False)]
_Photons = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
_Finite = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
_Vector = tuple[_Finite, _Finite, _Finite]
_ORTHONORMAL = 1e-4
AXIAL: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class ScanGeometry(BaseModel):
    """Content of the file; lengths in mm, angles in degrees.

    ``values``: "counts" (photons detected) or "line integrals"; ``photons``: of a ray without an object, one number or
    one for each bin. View k stands at ``first_deg`` + k ``arc_deg`` / ``views``; a negative arc turns the other way. At
    0 degrees the source of a fan stands below the last row, and bins grow towards the last column; with the angle the
    source moves towards the first column. The axis falls on bin (``bins`` - 1) / 2 - ``offset_bins``, from 0.
    ``source_mm``: from source to axis, ``detector_mm``: from source to detector; ``bin_mm`` is measured on the detector
    where that is stated, else on the axis. ``pixels``: rows and columns of the image. ``orientation``: of rows and
    columns, as Image Orientation (Patient); ``centre_mm``: the axis of rotation in the first slice, in LPS.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: Literal["counts", "line integrals"]
    photons: _Photons | tuple[_Photons, ...]
    beam: Literal["parallel", "fan"]
    views: Annotated[int, Field(ge=1)]
    bins: Annotated[int, Field(ge=2)]
    bin_mm: _Positive
    arc_deg: Annotated[float, Field(ge=-360, le=360)]
    first_deg: _Finite = 0.0
    offset_bins: _Finite = 0.0
    source_mm: _Positive | None = None
    detector_mm: _Positive | None = None
    detector: Literal["arc", "flat"] | None = None
    pixels: tuple[Annotated[int, Field(ge=8, le=1024)], Annotated[int, Field(ge=8, le=1024)]]
    pixel_mm: _Positive
    slice_mm: _Positive = 1.0
    slice_thickness_mm: _Positive | None = None
    orientation: tuple[_Finite, _Finite, _Finite, _Finite, _Finite, _Finite] | None = None
    centre_mm: _Vector | None = None
    water_per_mm: Annotated[float, Field(ge=0.01, le=0.1)] | None = None

    @classmethod
    def read(cls, text: str | bytes) -> Self:
        """Return the geometry of a JSON text. Raises Refused that names the key."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise Refused(f"sinogram geometry: {where}: {first['msg'].removeprefix('Value error, ')}") from None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Refuse keys that contradict each other."""
        if self.arc_deg == 0:
            raise ValueError("arc_deg is 0")
        of_fan = [name for name in ("source_mm", "detector_mm", "detector") if getattr(self, name) is not None]
        if self.beam == "parallel" and of_fan:
            raise ValueError(f"{of_fan[0]} is stated, but the beam is parallel")
        if self.beam == "fan" and (self.source_mm is None or self.detector is None):
            raise ValueError("a fan needs source_mm and detector")
        if self.detector == "flat":
            raise ValueError("a flat detector is not supported: rebin its views to equal angles (detector = arc)")
        if self.detector_mm is not None and self.source_mm is not None and self.detector_mm <= self.source_mm:
            raise ValueError("detector_mm, from source to detector, is not above source_mm, from source to axis")
        if isinstance(self.photons, tuple) and len(self.photons) != self.bins:
            raise ValueError(f"{len(self.photons)} numbers of photons for {self.bins} bins")
        if self.orientation is not None:
            row, column = np.array(self.orientation).reshape(2, 3)
            if np.abs(np.array([row @ row - 1, column @ column - 1, row @ column])).max() > _ORTHONORMAL:
                raise ValueError("orientation is not two unit vectors at a right angle")
        return self

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Facts that the file does not state, and what is taken for them."""
        found = []
        if self.orientation is None:
            found.append("orientation: axial, rows to the left and columns to the back of the patient")
        if self.centre_mm is None:
            found.append("place: the axis of rotation at the origin, the first slice at 0 mm")
        if self.water_per_mm is None:
            found.append(f"attenuation of water: {WATER_PER_MM:g} per mm (70 keV)")
        return tuple(found)

    def make_beam(self) -> CtGeometry:
        """Return image, views in ascending order, and bins. Raises Refused for what no scan can be."""
        step = self.arc_deg / self.views
        scale = 1.0 if self.detector_mm is None or self.source_mm is None else self.source_mm / self.detector_mm
        try:
            return CtGeometry(
                self.pixels, self.pixel_mm, self.views, self.bins, self.bin_mm * scale, abs(self.arc_deg),
                self.first_deg if step > 0 else self.first_deg + (self.views - 1) * step,
                self.source_mm, self.offset_bins,
            )  # fmt: skip
        except ValueError as error:
            raise Refused(f"sinogram geometry: {error}") from error

    def make_grid(self, slices: int) -> Grid:
        """Return the grid of the image, (slice, j, i)."""
        return make_plane_grid(
            (slices, *self.pixels), (self.slice_mm, self.pixel_mm, self.pixel_mm), self.orientation or AXIAL,
            self.centre_mm or (0.0, 0.0, 0.0),
        )  # fmt: skip


def make_plane_grid(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    orientation: tuple[float, ...],
    centre_mm: tuple[float, float, float],
) -> Grid:
    """Return the grid of planes across the axis of rotation, which goes through ``centre_mm`` in the first of them."""
    i, j = np.array(orientation, np.float64).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([i * spacing_mm[2], j * spacing_mm[1], np.cross(i, j) * spacing_mm[0]], axis=1)
    middle = np.array([(shape[2] - 1) / 2, (shape[1] - 1) / 2, 0.0])
    affine[:3, 3] = np.array(centre_mm) - affine[:3, :3] @ middle
    return Grid(shape, affine)
