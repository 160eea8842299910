"""Reconstructions by other software, from the problem as the node prepares it: BART (Debian) and sigpy."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.encoding import Problem

__all__ = ["reconstruct_by_bart", "reconstruct_by_sigpy"]


def reconstruct_by_bart(p: Problem, regulariser: str, weight: float) -> Tensor:
    """Return the images (slice, [set,] a, b) by BART with its own maps, as many sets as ours; ``pics -R`` takes the
    regulariser.

    Its maps have a phase of their own, so that chi-square, which takes ours, means nothing here. Two sets are turned
    into images of our maps.
    """
    return torch.cat([_reconstruct_slice(p.slices(i, i + 1), regulariser, weight) for i in range(len(p.y))])


def _reconstruct_slice(p: Problem, regulariser: str, weight: float) -> Tensor:
    y = p.y[0].permute(1, 2, 0)[:, :, None].numpy()  # (a, b, 1, coil)
    with tempfile.TemporaryDirectory() as folder:
        _write_cfl(Path(folder) / "y", y)
        if y.shape[3] == 1:
            _write_cfl(Path(folder) / "S", np.ones(y.shape, np.complex64))
        else:
            _run_bart(folder, "ecalib", f"-m{p.A.sets}", "-r24", "y", "S")
        _run_bart(folder, "pics", "-S", "-i100", "-R", f"{regulariser}:{weight:g}", "y", "S", "x")
        S, x = (torch.from_numpy(_read_cfl(Path(folder) / name)) for name in "Sx")
    if p.A.sets == 1:
        return x.reshape(1, *y.shape[:2])
    S = S.reshape(*y.shape[:2], y.shape[3], p.A.sets).permute(3, 2, 0, 1)
    return _express_in_maps(p, (S * x.reshape(*y.shape[:2], 1, -1).permute(3, 2, 0, 1)).sum(dim=0))


def _express_in_maps(p: Problem, received: Tensor) -> Tensor:
    """Return images (1, set, a, b) of our maps with the energy of coil images (coil, a, b).

    Their part outside our maps would be lost: each voxel is scaled so that its energy stays.
    """
    x = (p.A.maps[0].conj() * received).sum(dim=1)
    kept, energy = x.abs().pow(2).sum(dim=0), received.abs().pow(2).sum(dim=0)
    return (x * (energy / kept.clamp_min(1e-20)).sqrt() * (kept > 0))[None]


def _run_bart(folder: str, *words: str) -> None:
    subprocess.run(["bart", *words], cwd=folder, check=True, capture_output=True)


def _write_cfl(path: Path, array: NDArray[np.complex64]) -> None:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def _read_cfl(path: Path) -> NDArray[np.complex64]:
    shape = [int(n) for n in path.with_suffix(".hdr").read_text().split("\n")[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F")


def reconstruct_by_sigpy(p: Problem, weight: float) -> Tensor:
    """Return the images (slice, [set,] a, b) by sigpy's L1-wavelet reconstruction with our maps.

    It knows one set of maps: of several it takes the first, and the other images are zero.
    """
    from sigpy.mri.app import L1WaveletRecon

    first = p.A.maps if p.A.sets == 1 else p.A.maps[:, 0]
    slices = [
        L1WaveletRecon(
            y.numpy(), S.numpy(), weight, weights=m.numpy().astype(np.float32), max_iter=60, show_pbar=False
        ).run()
        for y, S, m in zip(p.y, first, p.A.mask, strict=True)
    ]
    x = torch.from_numpy(np.stack(slices).astype(np.complex64))
    return x if p.A.sets == 1 else torch.stack([x, *[torch.zeros_like(x)] * (p.A.sets - 1)], dim=1)
