"""One examination's synthetic DIR where the network works: on isotropic LPS voxels about the brain.

The T1w is laid on the FLAIR, the anatomy found in it (in the FLAIR where there is none), both images freed of their
bias fields and told in units of white matter; then the network's passes (``model_zoo.synthetic_dir``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_zoo.structures import BRAIN
from model_zoo.synthetic_dir import SyntheticDir, predict, prepared
from pipelines import anatomy, resampling
from pipelines.contract import Finding, Grid, Progress, Refused, Volume
from pipelines.registration import Registration, register_rigid

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["DirEstimate", "DropoutPasses", "estimate_dir", "resample_map"]

MARGIN = 6
"""Voxels about the brain that the network sees as well."""


@dataclass(frozen=True)
class DropoutPasses:
    """How the network is asked: how often, whether each pass sees another flip, from which seed."""

    count: int
    turned: bool
    seed: int


@dataclass(frozen=True)
class DirEstimate:
    """On ``grid``, isotropic LPS about the brain, each (k, j, i): ``flair`` and ``t1w`` in units of white matter,
    ``structure`` numbers of ``model_zoo.structures`` (0 outside), what was predicted; ``registered``: of the T1w;
    ``unusual``: how far the head lies from those of the training."""

    grid: Grid
    flair: NDArray[np.float32]
    t1w: NDArray[np.float32] | None
    structure: NDArray[np.uint8]
    dir: NDArray[np.float32]
    sd: NDArray[np.float32]
    epistemic: NDArray[np.float32]
    lesion: NDArray[np.float32]
    maps: NDArray[np.float32]
    registered: Registration | None
    unusual: tuple[Finding, ...] = ()

    @property
    def spacing_mm(self) -> float:
        return self.grid.spacing_mm[0]

    @property
    def brain(self) -> NDArray[np.bool_]:
        return np.isin(self.structure, BRAIN)


def estimate_dir(
    flair: Volume, t1w: Volume | None, model: Model, passes: DropoutPasses, progress: Progress
) -> DirEstimate:
    """Raises Refused where the images do not lie on each other or hold no brain."""
    progress(0.0, "registration")
    registered = register_rigid(flair, t1w, passes.seed, name="the T1w") if t1w else None
    head = registered.volume if registered else flair
    progress(0.1, "anatomy")
    found = anatomy.segment_head(head, model.helpers["anatomy"], lambda done, step: progress(0.1 + 0.15 * done, step))
    structure, grid = _about_brain(found, resampling.axis_aligned(flair.grid, float(model.settings["spacing_mm"])))
    progress(0.25, "preparing")
    structure = structure * (_sampled(Volume(np.ones_like(flair.data), flair.grid), grid) > 0.5)
    try:
        scaled_flair = _prepared(flair, grid, structure)
        scaled_t1w = _prepared(registered.volume, grid, structure) if registered else None
    except ValueError as error:
        raise Refused(f"no white matter is found where both images are: {error}") from error
    shown = _Watched(model.network, passes.count, lambda done: progress(0.3 + 0.6 * done, "passes"))
    p = predict(
        shown, _on(model, scaled_flair), None if scaled_t1w is None else _on(model, scaled_t1w),
        torch.from_numpy(structure).to(model.device), passes=passes.count, turned=passes.turned,
        generator=torch.Generator().manual_seed(passes.seed),
    )  # fmt: skip
    made = _estimate(p, grid, scaled_flair, scaled_t1w, structure, registered)
    return replace(made, unusual=tuple(anatomy.score_out_of_distribution(found, head, model, passes.seed)))


def resample_map(x: NDArray[np.float32], grid: Grid, onto: Grid) -> NDArray[np.float32]:
    """(..., k, j, i) of an estimate at the voxels of another lattice: averaged over their extent, 0 outside."""
    stacked = torch.from_numpy(np.ascontiguousarray(x.reshape(-1, *grid.shape), np.float32))
    found = resampling.resample(stacked, grid, onto).numpy()
    return np.asarray(found.reshape(*x.shape[:-3], *onto.shape))


class _Watched(nn.Module):
    """The network, telling after each pass how many of them are done."""

    def __init__(self, network: nn.Module, count: int, tell: Callable[[float], None]) -> None:
        super().__init__()
        self.network, self.count, self.tell, self.done = network, count, tell, 0
        self.stride = int(getattr(network, "stride", 1))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        found: Tensor = self.network(x, told)
        self.done += 1
        self.tell(self.done / self.count)
        return found


def _about_brain(found: anatomy.Anatomy, whole: Grid) -> tuple[NDArray[np.uint8], Grid]:
    """The structures in the box about them on the lattice ``whole``, upright as theirs. Raises Refused without brain.

    ``whole`` lies on the FLAIR's voxels where those are upright and of this size: nothing is then blurred.
    """
    labels = _looked_up(found.labels, found.grid, whole)
    there = np.nonzero(labels)
    if not len(there[0]):
        raise Refused("the anatomy model finds no brain where the FLAIR is")
    starts = [max(int(at.min()) - MARGIN, 0) for at in there]
    stops = [min(int(at.max()) + MARGIN + 1, n) for at, n in zip(there, labels.shape, strict=True)]
    k, j, i = (slice(a, b) for a, b in zip(starts, stops, strict=True))
    part = np.ascontiguousarray(labels[k, j, i])
    return part, resampling.subgrid(whole, (starts[0], starts[1], starts[2]), part.shape)


def _looked_up(labels: NDArray[np.uint8], grid: Grid, onto: Grid) -> NDArray[np.uint8]:
    """The nearest label at each voxel of ``onto``, 0 outside; both lattices are upright."""
    axes = []
    for axis, n in enumerate(onto.shape):
        row = 2 - axis
        mm = onto.affine_mm[row, 3] + onto.affine_mm[row, row] * np.arange(n)
        index = np.rint((mm - grid.affine_mm[row, 3]) / grid.affine_mm[row, row]).astype(int)
        axes.append(np.where((index >= 0) & (index < labels.shape[axis]), index + 1, 0))
    return np.asarray(np.pad(labels, 1)[np.ix_(*axes)])


def _sampled(volume: Volume, grid: Grid) -> NDArray[np.float32]:
    return np.asarray(resampling.resample(torch.from_numpy(volume.data)[None], volume.grid, grid)[0].numpy())


def _prepared(volume: Volume, grid: Grid, structure: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = torch.from_numpy(_sampled(volume, grid))
    return np.asarray(prepared(x, torch.from_numpy(structure), grid.spacing_mm[0]).numpy())


def _on(model: Model, x: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(x).to(model.device)


def _estimate(
    p: SyntheticDir,
    grid: Grid,
    flair: NDArray[np.float32],
    t1w: NDArray[np.float32] | None,
    structure: NDArray[np.uint8],
    registered: Registration | None,
) -> DirEstimate:
    """Zero outside the head's structures, where nothing was learned."""
    inside = structure > 0
    dir_, sd, epistemic, lesion = (x.cpu().numpy() * inside for x in (p.dir, p.sd, p.epistemic, p.lesion))
    return DirEstimate(
        grid, flair, t1w, structure, dir_, sd, epistemic, lesion, p.maps.float().cpu().numpy(), registered
    )
