"""Synthetic DIR of one examination on the network's grid: isotropic LPS voxels about the brain.

The T1w is registered to the FLAIR, the anatomy is segmented in it (in the FLAIR where no T1w exists), both images are
freed of their bias fields and scaled to units of white matter; then follow the network's passes
(``model_zoo.synthetic_dir``).
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
from model_zoo.synthetic_dir import SyntheticDir, predict, prepare
from pipelines import anatomy, resampling
from pipelines.contract import Finding, Grid, Progress, Refused, Volume
from pipelines.registration import Registration, register_rigid

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["DirEstimate", "DropoutPasses", "crop_to_brain", "estimate_dir", "resample_map"]

MARGIN = 6
"""Margin about the brain, in voxels, that the network sees as well."""


@dataclass(frozen=True)
class DropoutPasses:
    """Passes through the network: their number, True in ``turned`` for another flip in each, and the seed."""

    count: int
    turned: bool
    seed: int


@dataclass(frozen=True)
class DirEstimate:
    """Synthetic DIR of one examination; arrays (k, j, i) on ``grid``, isotropic LPS about the brain.

    ``flair`` and ``t1w`` in units of white matter; ``structure``: numbers of ``model_zoo.structures`` (0 outside); then
    the predictions; ``registration``: of the T1w; ``out_of_distribution``: measures of the head's departure from those
    of the training.
    """

    grid: Grid
    flair: NDArray[np.float32]
    t1w: NDArray[np.float32] | None
    structure: NDArray[np.uint8]
    dir: NDArray[np.float32]
    sd: NDArray[np.float32]
    epistemic: NDArray[np.float32]
    lesion: NDArray[np.float32]
    maps: NDArray[np.float32]
    registration: Registration | None
    out_of_distribution: tuple[Finding, ...] = ()

    @property
    def spacing_mm(self) -> float:
        return self.grid.spacing_mm[0]

    @property
    def brain(self) -> NDArray[np.bool_]:
        return np.isin(self.structure, BRAIN)


def estimate_dir(
    flair: Volume, t1w: Volume | None, model: Model, passes: DropoutPasses, progress: Progress
) -> DirEstimate:
    """Estimate the DIR of one examination. Raises Refused for images that cannot be registered or hold no brain."""
    progress(0.0, "registration")
    registration = register_rigid(flair, t1w, passes.seed, name="the T1w") if t1w else None
    head = registration.volume if registration else flair
    progress(0.1, "anatomy")
    head_anatomy = anatomy.segment_head(
        head, model.helpers["anatomy"], lambda done, step: progress(0.1 + 0.15 * done, step)
    )
    structure, grid = crop_to_brain(
        head_anatomy, resampling.axis_aligned(flair.grid, float(model.settings["spacing_mm"]))
    )
    progress(0.25, "preparing")
    structure = structure * (_resample(Volume(np.ones_like(flair.data), flair.grid), grid) > 0.5)
    try:
        scaled_flair = _prepare(flair, grid, structure)
        scaled_t1w = _prepare(registration.volume, grid, structure) if registration else None
    except ValueError as error:
        raise Refused(f"no white matter is found where both images are: {error}") from error
    network = _NetworkWithProgress(model.network, passes.count, lambda done: progress(0.3 + 0.6 * done, "passes"))
    p = predict(
        network, _to_device(model, scaled_flair), None if scaled_t1w is None else _to_device(model, scaled_t1w),
        torch.from_numpy(structure).to(model.device), passes=passes.count, with_flips=passes.turned,
        generator=torch.Generator().manual_seed(passes.seed),
    )  # fmt: skip
    result = _make_estimate(p, grid, scaled_flair, scaled_t1w, structure, registration)
    scores = anatomy.score_out_of_distribution(head_anatomy, head, model, passes.seed)
    return replace(result, out_of_distribution=(*anatomy.measure_brain(head_anatomy), *scores))


def resample_map(x: NDArray[np.float32], grid: Grid, onto: Grid) -> NDArray[np.float32]:
    """Resample (..., k, j, i) of an estimate to another grid, averaged over the extent of its voxels, 0 outside."""
    stacked = torch.from_numpy(np.ascontiguousarray(x.reshape(-1, *grid.shape), np.float32))
    result = resampling.resample(stacked, grid, onto).numpy()
    return np.asarray(result.reshape(*x.shape[:-3], *onto.shape))


class _NetworkWithProgress(nn.Module):
    """Network that reports the fraction of passes done after each of them."""

    def __init__(self, network: nn.Module, count: int, report: Callable[[float], None]) -> None:
        super().__init__()
        self.network, self.count, self.report, self.done = network, count, report, 0
        self.stride = int(getattr(network, "stride", 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        output: Tensor = self.network(x, condition)
        self.done += 1
        self.report(self.done / self.count)
        return output


def crop_to_brain(head: anatomy.Anatomy, flair_grid: Grid) -> tuple[NDArray[np.uint8], Grid]:
    """Return the structures in the box about them, and its grid. Raises Refused without brain.

    ``flair_grid``: axis-aligned as the structures'; it has the FLAIR's own voxels where those are axis-aligned and of
    this size, so that nothing is then blurred.
    """
    labels = _nearest_labels(head.labels, head.grid, flair_grid)
    inside = np.nonzero(labels)
    if not len(inside[0]):
        raise Refused("the anatomy model finds no brain where the FLAIR is")
    starts = [max(int(at.min()) - MARGIN, 0) for at in inside]
    stops = [min(int(at.max()) + MARGIN + 1, n) for at, n in zip(inside, labels.shape, strict=True)]
    k, j, i = (slice(a, b) for a, b in zip(starts, stops, strict=True))
    labels_in_box = np.ascontiguousarray(labels[k, j, i])
    return labels_in_box, resampling.subgrid(flair_grid, (starts[0], starts[1], starts[2]), labels_in_box.shape)


def _nearest_labels(labels: NDArray[np.uint8], grid: Grid, onto: Grid) -> NDArray[np.uint8]:
    """Return the nearest label at each voxel of ``onto``, 0 outside; both grids are axis-aligned."""
    axes = []
    for axis, n in enumerate(onto.shape):
        row = 2 - axis
        mm = onto.affine_mm[row, 3] + onto.affine_mm[row, row] * np.arange(n)
        index = np.rint((mm - grid.affine_mm[row, 3]) / grid.affine_mm[row, row]).astype(int)
        axes.append(np.where((index >= 0) & (index < labels.shape[axis]), index + 1, 0))
    return np.asarray(np.pad(labels, 1)[np.ix_(*axes)])


def _resample(volume: Volume, grid: Grid) -> NDArray[np.float32]:
    return np.asarray(resampling.resample(torch.from_numpy(volume.data)[None], volume.grid, grid)[0].numpy())


def _prepare(volume: Volume, grid: Grid, structure: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = torch.from_numpy(_resample(volume, grid))
    return np.asarray(prepare(x, torch.from_numpy(structure), grid.spacing_mm[0]).numpy())


def _to_device(model: Model, x: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(x).to(model.device)


def _make_estimate(
    p: SyntheticDir,
    grid: Grid,
    flair: NDArray[np.float32],
    t1w: NDArray[np.float32] | None,
    structure: NDArray[np.uint8],
    registration: Registration | None,
) -> DirEstimate:
    """Return the estimate with predictions set to zero outside the head's structures, where nothing was learned."""
    inside = structure > 0
    dir_, sd, epistemic, lesion = (x.cpu().numpy() * inside for x in (p.dir, p.sd, p.epistemic, p.lesion))
    return DirEstimate(
        grid, flair, t1w, structure, dir_, sd, epistemic, lesion, p.maps.float().cpu().numpy(), registration
    )
