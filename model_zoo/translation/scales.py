"""Scales of images for translation: fixed, and exactly invertible, never by the extremes of one image.

    tissue:white         1 is the median of the white matter (also ``grey``: cortex, ``cerebellum``: its cortex)
    percentile:99        1 is the 99th percentile of the voxels that are no air: above a twentieth of that of all
    window:-1024,2000    0 and 1 are these values of the image's own unit

A scaled value is (x - offset) / width. Network inputs are clipped (``Scale.limit``), outputs are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from model_zoo.structures import CORTEX, number

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Level", "Scale", "parse_scale"]

TISSUES = {
    "white": (number("cerebral white matter"),),
    "grey": tuple(CORTEX),
    "cerebellum": (number("cerebellar cortex"),),
}
FEWEST_VOXELS = 100
AIR = 0.05
"""Share of an image's level below which a voxel is air."""
_SAMPLE = 500_000


@dataclass(frozen=True)
class Level:
    """Offset and width of one image in its own unit: ``apply`` scales, ``invert`` goes back."""

    offset: float
    width: float

    def apply(self, x: Tensor) -> Tensor:
        return (x - self.offset) / self.width

    def invert(self, scaled: Tensor) -> Tensor:
        return scaled * self.width + self.offset


@dataclass(frozen=True)
class Scale:
    """A scale of the plan. ``numbers``: structures, the percentile, or the window's ends."""

    kind: Literal["tissue", "percentile", "window"]
    numbers: tuple[float, ...]

    @property
    def limit(self) -> float:
        """Largest scaled value of a network input; the smallest is 0."""
        return 1.0 if self.kind == "window" else 4.0

    @property
    def span(self) -> float:
        """Range of scaled values to which SSIM refers."""
        return 2.0 if self.kind == "tissue" else 1.0

    @property
    def level(self) -> Level | None:
        """The level where it is the same for every image: that of a window."""
        return Level(self.numbers[0], self.numbers[1] - self.numbers[0]) if self.kind == "window" else None

    def measure(self, image: Tensor, structure: Tensor | None = None) -> Level:
        """Return the level of ``image`` (k, j, i); ``structure``: numbers on its voxels, for tissue scales.

        Raises ValueError where the image has no such level.
        """
        if self.level is not None:
            return self.level
        if self.kind == "percentile":
            return Level(0.0, _measure_percentile(image, self.numbers[0]))
        if structure is None:
            raise ValueError("a tissue scale needs the structures of the head")
        return Level(0.0, _measure_tissue(image, structure, self.numbers))


def parse_scale(text: str) -> Scale:
    """Return the scale that ``text`` states. Raises ValueError with the allowed forms."""
    kind, _, rest = text.partition(":")
    if kind == "tissue" and rest in TISSUES:
        return Scale("tissue", TISSUES[rest])
    numbers = _parse_numbers(rest)
    if kind == "percentile" and len(numbers) == 1 and 50 <= numbers[0] <= 100:
        return Scale("percentile", numbers)
    if kind == "window" and len(numbers) == 2 and numbers[0] < numbers[1]:
        return Scale("window", numbers)
    forms = f"tissue:NAME ({', '.join(TISSUES)}), percentile:P (50 to 100), window:LOW,HIGH"
    raise ValueError(f"no scale {text!r}; there are: {forms}")


def _parse_numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()


def _measure_percentile(image: Tensor, percentile: float) -> float:
    values = image.flatten()[:: max(1, image.numel() // _SAMPLE)]
    values = values[values > AIR * values.float().quantile(max(percentile, 99.0) / 100)]
    level = float(values.float().quantile(percentile / 100)) if values.numel() else 0.0
    if not level > 0:
        raise ValueError(f"its percentile {percentile:g} is {level:g}: no scale")
    return level


def _measure_tissue(image: Tensor, structure: Tensor, numbers: tuple[float, ...]) -> float:
    import torch

    values = image[torch.isin(structure, torch.tensor([int(n) for n in numbers]).to(structure))]
    level = float(values.float().median()) if values.numel() >= FEWEST_VOXELS else 0.0
    if not level > 0:
        raise ValueError(f"the tissue of its scale has {values.numel()} voxels and a median of {level:g}: no scale")
    return level
