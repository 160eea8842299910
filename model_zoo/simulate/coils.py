"""Receive sensitivities of loops around a head, by Biot-Savart.

A loop of radius a in the plane z = 0 of its own frame, at distance rho from its axis and height z, with
alpha^2 = a^2 + rho^2 + z^2 - 2 a rho,  beta^2 = a^2 + rho^2 + z^2 + 2 a rho,  k^2 = 1 - alpha^2 / beta^2, has
(mu0 I / pi = 1)

    B_z   = [(a^2 - rho^2 - z^2) E(k^2) + alpha^2 K(k^2)] / (2 alpha^2 beta),
    B_rho = z [(a^2 + rho^2 + z^2) E(k^2) - alpha^2 K(k^2)] / (2 alpha^2 beta rho).

By reciprocity the sensitivity is S = B_x - i B_y in the head frame, B0 along z.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ellipe, ellipk

__all__ = ["compute_loop_field", "compute_sensitivities"]


def compute_loop_field(
    rho_mm: NDArray[np.float64], z_mm: NDArray[np.float64], radius_mm: float
) -> tuple[NDArray[np.float64], ...]:
    """Return (B_rho, B_z) of a circular loop at cylindrical coordinates of its frame, in units of mu0 I / (pi mm)."""
    a, rho = radius_mm, np.maximum(rho_mm, 1e-6)
    r2 = rho**2 + z_mm**2
    alpha2 = np.maximum(a**2 + r2 - 2 * a * rho, 1e-6)
    beta = np.sqrt(a**2 + r2 + 2 * a * rho)
    m = 1 - alpha2 / beta**2
    e, k = ellipe(m), ellipk(m)
    b_z = ((a**2 - r2) * e + alpha2 * k) / (2 * alpha2 * beta)
    b_rho = z_mm * ((a**2 + r2) * e - alpha2 * k) / (2 * alpha2 * beta * rho)
    return b_rho, b_z


def compute_sensitivities(
    points_mm: NDArray[np.float64], coils: int, rng: np.random.Generator, *, cylinder_mm: float = 140.0
) -> NDArray[np.complex64]:
    """Return the sensitivities (coils, ...) at ``points_mm`` (..., 3) about the head's centre, with sum_c |S_c|^2 = 1
    everywhere.

    The loops (radius 50 to 70 mm) sit evenly on a cylinder about z, each displaced by up to 10 mm and 10 degrees.
    """
    found = []
    for c in range(coils):
        angle = 2 * math.pi * c / coils + math.radians(rng.uniform(-10, 10))
        radial = np.array([math.cos(angle), math.sin(angle), 0.0])
        centre = radial * (cylinder_mm + rng.uniform(-10, 10)) + np.array([0, 0, rng.uniform(-10, 10)])
        tilt = math.radians(rng.uniform(-10, 10))
        normal = -radial * math.cos(tilt) + np.array([0, 0, math.sin(tilt)])
        offset = points_mm - centre
        z = offset @ normal
        across = offset - z[..., None] * normal
        rho = np.linalg.norm(across, axis=-1)
        b_rho, b_z = compute_loop_field(rho, z, rng.uniform(50, 70))
        field = b_rho[..., None] * across / np.maximum(rho, 1e-6)[..., None] + b_z[..., None] * normal
        found.append((field[..., 0] - 1j * field[..., 1]) * np.exp(1j * rng.uniform(-math.pi, math.pi)))
    s = np.stack(found)
    return np.asarray(s / np.sqrt(np.sum(np.abs(s) ** 2, axis=0, keepdims=True)), np.complex64)
