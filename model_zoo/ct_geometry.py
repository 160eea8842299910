"""Geometry of a scan of one plane by parallel or fan beams: image, views and bins. Importing it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["WATER_PER_MM", "CtGeometry"]

WATER_PER_MM = 0.0193
"""Attenuation of water at 70 keV, about the mean energy of a scan at 120 kV (NIST XCOM)."""


@dataclass(frozen=True)
class CtGeometry:
    """Image of ``shape`` (j, i) pixels of ``pixel_mm``, and the rays of ``views`` times ``bins`` equidistant bins.

    View k stands at ``first_deg`` + k ``arc_deg`` / ``views``. Without ``source_mm`` rays are parallel and ``bin_mm``
    apart. With it the source moves on a circle of that radius, and the detector is an arc about the source: the angle
    between rays is ``bin_mm`` / ``source_mm``, so that ``bin_mm`` is their distance on the axis of rotation.
    ``offset_bins`` moves the detector; a quarter of a bin is usual.

    Raises ValueError where a number is out of range, and where the source would touch the image.
    """

    shape: tuple[int, int]
    pixel_mm: float
    views: int
    bins: int
    bin_mm: float
    arc_deg: float = 180.0
    first_deg: float = 0.0
    source_mm: float | None = None
    offset_bins: float = 0.0

    def __post_init__(self) -> None:
        if min(*self.shape, self.views, self.bins) < 1 or min(self.pixel_mm, self.bin_mm) <= 0:
            raise ValueError("a geometry needs pixels, views and bins, and their sizes in mm above 0")
        if not 0 < self.arc_deg <= 360:
            raise ValueError(f"an arc of {self.arc_deg:g} degrees: it must be above 0 and at most 360")
        if self.source_mm is not None:
            if self.source_mm <= np.hypot(*self.shape) / 2 * self.pixel_mm:
                raise ValueError(f"a source at {self.source_mm:g} mm from the axis lies within the image")
            if np.abs(self.fan_angles).max() >= np.pi / 2:
                raise ValueError("a fan of half a turn or more")

    @property
    def view_angles(self) -> NDArray[np.float64]:
        """Angles of the views, beta, in radians; (view,)."""
        angles: NDArray[np.float64] = np.deg2rad(self.first_deg + np.arange(self.views) * (self.arc_deg / self.views))
        return angles

    @property
    def bin_places(self) -> NDArray[np.float64]:
        """Places of the bins on the detector, scaled to the axis of rotation, in mm; (bin,)."""
        middle = (self.bins - 1) / 2 - self.offset_bins
        return np.asarray((np.arange(self.bins) - middle) * self.bin_mm, np.float64)

    @property
    def fan_angles(self) -> NDArray[np.float64]:
        """Angles of the rays to the central ray, gamma, in radians; (bin,). Zeros for parallel rays."""
        return np.zeros(self.bins) if self.source_mm is None else self.bin_places / self.source_mm

    @property
    def rays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Angle theta in radians and distance t in mm of every ray; (view, bin) each.

        A ray of a fan has theta = beta + gamma and t = source_mm sin(gamma).
        """
        t = self.bin_places if self.source_mm is None else self.source_mm * np.sin(self.fan_angles)
        theta = self.view_angles[:, None] + self.fan_angles
        return theta, np.broadcast_to(t, theta.shape)

    @property
    def missing_deg(self) -> float:
        """Angle that an arc lacks so that every line through the circle in the image is measured: half a turn and, for
        fans, twice the angle of the ray that touches the circle; 0 where nothing lacks. Corners may lack more.
        """
        radius_mm = max(self.shape) / 2 * self.pixel_mm
        fan = 0.0 if self.source_mm is None else 2 * np.rad2deg(np.arcsin(radius_mm / self.source_mm))
        return float(max(min(180.0 + fan, 360.0) - self.arc_deg, 0.0))

    def finer(self, factor: int) -> CtGeometry:
        """Return the same scan with ``factor`` times as many pixels along each axis, and rays within each bin."""
        return replace(
            self,
            shape=(self.shape[0] * factor, self.shape[1] * factor),
            pixel_mm=self.pixel_mm / factor,
            bins=self.bins * factor,
            bin_mm=self.bin_mm / factor,
            offset_bins=self.offset_bins * factor,
        )
