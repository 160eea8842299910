"""Ellipses of known attenuation: their image, and their line integrals in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_zoo.radon import CtGeometry


@dataclass(frozen=True)
class Ellipse:
    """mu (1 - r^2)^smoothness within r <= 1, r the radius in units of the half axes; lengths in mm, mu in 1/mm.

    Smoothness 0 is a disc with an edge, 2 has continuous first derivatives.
    """

    mu: float
    centre_mm: tuple[float, float]
    axes_mm: tuple[float, float]
    turn: float = 0.0
    smoothness: int = 0

    def values(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        dx, dy = x - self.centre_mm[0], y - self.centre_mm[1]
        u = (dx * np.cos(self.turn) + dy * np.sin(self.turn)) / self.axes_mm[0]
        v = (dy * np.cos(self.turn) - dx * np.sin(self.turn)) / self.axes_mm[1]
        r2 = u**2 + v**2
        return np.where(r2 <= 1, self.mu * np.clip(1 - r2, 0, 1) ** self.smoothness, 0.0)

    def integrate(self, theta: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the integral along x cos(theta) + y sin(theta) = t.

        With s the half width of the ellipse's shadow, the chord is 2 a b / s^2 sqrt(s^2 - t^2) about the middle, and
        the integral of (1 - r^2)^n along it is that of (1 - u^2)^n, times (1 - t^2 / s^2)^n.
        """
        a, b = self.axes_mm
        s2 = (a * np.cos(theta - self.turn)) ** 2 + (b * np.sin(theta - self.turn)) ** 2
        t = t - self.centre_mm[0] * np.cos(theta) - self.centre_mm[1] * np.sin(theta)
        inside = np.clip(1 - t**2 / s2, 0, None)
        along = {0: 2.0, 1: 4 / 3, 2: 16 / 15}[self.smoothness]
        return self.mu * along * a * b / np.sqrt(s2) * inside ** (self.smoothness + 0.5)


def draw_image(ellipses: list[Ellipse], geometry: CtGeometry, *, samples: int = 4) -> Tensor:
    """Return the image (1, j, i): the mean over ``samples`` squared points in each pixel."""
    fine = geometry.pixel_mm / samples
    j, i = geometry.shape
    y, x = (np.asarray((np.arange(n) - (n - 1) / 2) * fine, np.float64) for n in (j * samples, i * samples))
    values = np.sum([e.values(x[None], y[:, None]) for e in ellipses], axis=0)
    means = values.reshape(j, samples, i, samples).mean(axis=(1, 3))
    return torch.from_numpy(means[None]).float()


def integrate(ellipses: list[Ellipse], geometry: CtGeometry) -> Tensor:
    """Return the line integrals (1, view, bin)."""
    theta, t = geometry.rays
    return torch.from_numpy(np.sum([e.integrate(theta, t) for e in ellipses], axis=0)[None]).float()
