"""A head of nested ellipsoids, for tests and trials without the label maps."""

from __future__ import annotations

import torch

from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate.heads import Head
from model_zoo.structures import number

__all__ = ["make_phantom"]

_PHANTOM: tuple[tuple[str, str, tuple[float, float, float], tuple[float, float, float]], ...] = (
    ("fat", "", (0, 0, 0), (0.95, 0.95, 0.95)),
    ("bone", "", (0, 0, 0), (0.9, 0.9, 0.9)),
    ("csf", "csf", (0, 0, 0), (0.84, 0.84, 0.84)),
    ("cortex", "frontal cortex", (0, -0.1, 0), (0.72, 0.7, 0.76)),
    ("cortex", "occipital cortex", (0, 0.36, 0), (0.5, 0.44, 0.6)),
    ("cortex", "temporal cortex", (-0.2, 0, 0), (0.45, 0.6, 0.74)),
    ("cortex", "parietal cortex", (0.35, 0.25, 0), (0.38, 0.4, 0.55)),
    ("cortex", "sensorimotor cortex", (0.45, 0.0, 0), (0.3, 0.15, 0.5)),
    ("cortex", "precuneus", (0.4, 0.4, 0), (0.2, 0.2, 0.12)),
    ("white matter", "cerebral white matter", (0.05, 0, 0), (0.5, 0.6, 0.62)),
    ("cortex", "insula", (-0.02, -0.1, 0), (0.2, 0.2, 0.52)),
    ("white matter", "cerebral white matter", (-0.02, -0.1, 0), (0.2, 0.2, 0.42)),
    ("cortex", "cingulate cortex", (0.3, 0.0, 0), (0.12, 0.4, 0.1)),
    ("csf", "lateral ventricles", (0.1, 0, 0), (0.12, 0.3, 0.14)),
    ("thalamus", "thalamus", (-0.06, 0.05, 0), (0.12, 0.16, 0.2)),
    ("csf", "third and fourth ventricles", (-0.06, 0.05, 0), (0.1, 0.12, 0.04)),
    ("caudate", "caudate", (0.06, -0.22, 0), (0.1, 0.12, 0.2)),
    ("putamen", "putamen", (-0.04, -0.14, 0), (0.1, 0.16, 0.36)),
    ("pallidum", "pallidum", (-0.04, -0.14, 0), (0.08, 0.1, 0.26)),
    ("hippocampus", "hippocampus", (-0.24, 0.1, 0), (0.08, 0.16, 0.4)),
    ("hippocampus", "amygdala", (-0.24, -0.1, 0), (0.08, 0.08, 0.36)),
    ("cortex", "parahippocampal cortex", (-0.33, 0.02, 0), (0.06, 0.2, 0.34)),
    ("brain stem", "ventral diencephalon", (-0.2, 0.05, 0), (0.08, 0.1, 0.16)),
    ("brain stem", "brain stem", (-0.4, 0.12, 0), (0.18, 0.1, 0.12)),
    ("cerebellar cortex", "cerebellar cortex", (-0.5, 0.4, 0), (0.2, 0.24, 0.45)),
    ("white matter", "cerebellar white matter", (-0.5, 0.4, 0), (0.1, 0.12, 0.28)),
    ("lesion", "cerebral white matter", (0.16, -0.3, 0.3), (0.06, 0.06, 0.06)),
)
"""Tissue, structure, centre and half axes (k, j, i) as fractions of half the grid; later rows cover earlier ones."""


def make_phantom(shape: tuple[int, int, int] = (96, 112, 96), spacing_mm: float = 2.0) -> Head:
    """Return a head of ellipsoids with every structure, for tests and trials without the label maps: not anatomy."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    k, j, i = torch.meshgrid(*axes, indexing="ij")
    tissue, structure = torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8)
    names = list(TISSUES)
    for tissue_name, structure_name, centre, half in _PHANTOM:
        inside = sum(((a - c) / h) ** 2 for a, c, h in zip((k, j, i), centre, half, strict=True)) <= 1
        tissue[inside] = names.index(tissue_name)
        structure[inside] = number(structure_name) if structure_name else 0
    return Head(tissue, structure, spacing_mm, "phantom")
