"""A residual 3D U-Net, for volumes and patches.

Like in ``LocalUNet`` each voxel is normalised by its own channels, so that a network trained on patches behaves the
same on a whole volume; a network that always sees the whole head, whatever its contrast, takes group statistics
instead (``norm="group"``), and one whose output follows the input's brightness a norm that keeps it (``"soft"``).

Everything that conditions the network is optional: a vector (time, dose) enters by feature-wise scaling, tokens
(covariates) by cross-attention with a residual at the deepest level, region maps by region-adaptive scale and shift
(SPADE, Park et al. 2019, with the norm above in place of batch norm). Dropout sits in the two deepest levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

__all__ = ["VolumeUNet", "depth_to_space", "set_dropout", "space_to_depth"]


def space_to_depth(x: Tensor, r: int) -> Tensor:
    """Turn each block of r^3 voxels into channels: (b, c, r k, r j, r i) -> (b, c r^3, k, j, i).

    Equals MONAI's ``pixelunshuffle``, without the import of MONAI in every process of a job: 3 s of CPU time, 180 MB.
    """
    b, c, k, j, i = x.shape
    blocks = x.reshape(b, c, k // r, r, j // r, r, i // r, r).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(b, c * r**3, k // r, j // r, i // r)


def depth_to_space(x: Tensor, r: int) -> Tensor:
    """Turn channels into blocks of r^3 voxels: the inverse of ``space_to_depth``."""
    b, c, k, j, i = x.shape
    blocks = x.reshape(b, c // r**3, r, r, r, k, j, i).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return blocks.reshape(b, c // r**3, k * r, j * r, i * r)


def _coordinates(x: Tensor) -> Tensor:
    """Return the distance from the centre in voxels along each axis, over 32, as channels: (b, 3, k, j, i)."""
    axes = [torch.arange(n, device=x.device) - (n - 1) / 2 for n in x.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")) / 32
    return grid.to(x.dtype).expand(x.shape[0], -1, -1, -1, -1)


class _VoxelNorm(nn.Module):
    """Norm x / sqrt(mean over channels of x^2 + floor), at each voxel, with a learned gain per channel.

    A floor of one keeps the brightness of the voxel, which a small one removes.
    """

    def __init__(self, channels: int, floor: float = 1e-4) -> None:
        super().__init__()
        self.floor = floor
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        return functional.rms_norm(last, self.gain.shape, self.gain.to(x.dtype), self.floor).movedim(-1, 1)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
    if kind == "voxel":
        return _VoxelNorm(channels)
    if kind == "soft":
        return _VoxelNorm(channels, floor=1.0)
    raise ValueError(f"no norm {kind!r}: voxel, soft or group")


class _Conditions:
    """Conditions of a block: embedding (b, e) or None, maps (b, m, k, j, i) at the block's level or None."""

    def __init__(self, embedding: Tensor | None, maps: Tensor | None) -> None:
        self.embedding = embedding
        self.maps = maps


class _Block(nn.Module):
    """Residual block x + conv(dropout(silu(condition(conv(silu(norm(x))))))); the second convolution starts at zero."""

    def __init__(self, channels: int, embedding: int, maps: int, dropout: float, norm: str, kernel: int = 3) -> None:
        super().__init__()
        self.norm = _norm(norm, channels)
        self.conv1 = nn.Conv3d(channels, channels, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv3d(channels, channels, kernel, padding=kernel // 2)
        self.dropout = nn.Dropout3d(dropout) if dropout else nn.Identity()
        self.film = nn.Linear(embedding, 2 * channels) if embedding else None
        self.region = nn.Conv3d(maps, 2 * channels, 1) if maps else None
        nn.init.zeros_(self.conv2.weight)
        for started_at_zero in (self.film, self.region):
            if started_at_zero is not None:
                nn.init.zeros_(started_at_zero.weight)
                nn.init.zeros_(started_at_zero.bias)  # type: ignore[arg-type]  # torch types it as optional

    def forward(self, x: Tensor, c: _Conditions) -> Tensor:
        h = self.conv1(functional.silu(self.norm(x)))
        if self.film is not None and c.embedding is not None:
            scale, shift = self.film(c.embedding)[:, :, None, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        if self.region is not None and c.maps is not None:
            scale, shift = self.region(c.maps).chunk(2, dim=1)
            h = h * (1 + scale) + shift
        changed: Tensor = self.conv2(self.dropout(functional.silu(h)))
        return x + changed


class _TokenAttention(nn.Module):
    """Residual block x + attention of every voxel to all tokens (multi-head); the output starts at zero."""

    def __init__(self, channels: int, tokens: int, heads: int = 4) -> None:
        super().__init__()
        self.norm = _VoxelNorm(channels)
        self.attend = nn.MultiheadAttention(channels, heads, kdim=tokens, vdim=tokens, batch_first=True)
        nn.init.zeros_(self.attend.out_proj.weight)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        voxels = self.norm(x).flatten(2).transpose(1, 2)
        attended, _ = self.attend(voxels, tokens, tokens, need_weights=False)
        changed: Tensor = attended.transpose(1, 2).reshape(x.shape)
        return x + changed


class _Refinement(nn.Module):
    """Last layers conv(silu(blocks(conv([h, x])))) on the full grid; the blocks see single voxels and the embedding."""

    def __init__(self, in_channels: int, channels: int, out_channels: int, embedding: int, blocks: int) -> None:
        super().__init__()
        width = 2 * channels
        self.mix = nn.Conv3d(channels + in_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width, embedding, 0, 0.0, "soft", kernel=1) for _ in range(blocks))
        self.out = nn.Conv3d(width, out_channels, 3, padding=1)

    def forward(self, h: Tensor, x: Tensor, c: _Conditions) -> Tensor:
        h = self.mix(torch.cat([h, x.to(h.dtype)], dim=1))
        for block in self.blocks:
            h = block(h, c)
        output: Tensor = self.out(functional.silu(h))
        return output


class VolumeUNet(nn.Module):
    """Residual 3D U-Net: float (b, in_channels, k, j, i) -> (b, out_channels, k, j, i).

    Sizes must be multiples of ``stride``. ``channels``: width of each level; ``blocks``: residual blocks per level on
    the way down and again on the way up; ``unshuffle``: 2 makes the first level work on half the grid (space to depth),
    and ``refine`` channels of it then meet the input on the full one, so that edges lie where the image has them.
    ``refine_blocks``: blocks there of single voxels, by which the embedding says what the input means; a network of
    several targets needs them.
    ``coarsen``: how many times coarser than the input's the output's grid is, at most ``unshuffle``. ``embedding``,
    ``tokens`` and ``maps``: sizes of the conditions, 0 for none. ``dropout``: rate in the two deepest levels. ``norm``:
    "voxel", "soft" or "group". ``coordinates``: the first level takes its position, from the centre of the volume, as
    channels. ``recompute`` trades time for memory in training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 1,
        unshuffle: int = 1,
        coarsen: int = 1,
        embedding: int = 0,
        tokens: int = 0,
        maps: int = 0,
        dropout: float = 0.0,
        norm: str = "voxel",
        coordinates: bool = False,
        refine: int = 0,
        refine_blocks: int = 0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if unshuffle % coarsen or (refine and coarsen > 1):
            raise ValueError(f"no output {coarsen} times coarser with unshuffle={unshuffle} and refine={refine}")
        self.stride = unshuffle * 2 ** (len(channels) - 1)
        self.unshuffle, self.reshuffle = unshuffle, unshuffle // coarsen
        self.recompute = recompute
        deepest = len(channels) - 2

        def level(width: int, depth: int, count: int) -> nn.ModuleList:
            rate = dropout if depth >= deepest else 0.0
            return nn.ModuleList(_Block(width, embedding, maps, rate, norm) for _ in range(count))

        self.coordinates = coordinates
        first_channels = unshuffle**3 * in_channels + (3 if coordinates else 0)
        self.first = nn.Conv3d(first_channels, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for depth, (here, below) in enumerate(pairwise(channels)):
            self.down.append(level(here, depth, blocks))
            self.up.append(level(here, depth, blocks))
            self.shrink.append(nn.Conv3d(here, below, 2, stride=2))
            self.grow.append(nn.Conv3d(below, 8 * here, 1))
        self.middle = level(channels[-1], len(channels) - 1, 2 * blocks)
        self.attention = _TokenAttention(channels[-1], tokens) if tokens else None
        self.last_norm = _norm(norm, channels[0])
        self.last = nn.Conv3d(channels[0], self.reshuffle**3 * (refine or out_channels), 1)
        self.refine = _Refinement(in_channels, refine, out_channels, embedding, refine_blocks) if refine else None

    def forward(
        self,
        x: Tensor,
        embedding: Tensor | None = None,
        tokens: Tensor | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        self._check(x)
        region = None if maps is None else functional.avg_pool3d(maps, self.unshuffle)
        h = space_to_depth(x, self.unshuffle)
        h = self.first(torch.cat([h, _coordinates(h)], dim=1) if self.coordinates else h)
        skips: list[tuple[Tensor, _Conditions]] = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            c = _Conditions(embedding, region)
            skips.append((self._run(level, h, c), c))
            h = shrink(skips[-1][0])
            region = None if region is None else functional.avg_pool3d(region, 2)
        h = self._middle(h, _Conditions(embedding, region), tokens)
        for level, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            skip, c = skips.pop()
            h = self._run(level, skip + depth_to_space(grow(h), 2), c)
        output = depth_to_space(self.last(functional.silu(self.last_norm(h))), self.reshuffle)
        return output if self.refine is None else self.refine(output, x, _Conditions(embedding, None))

    def _middle(self, h: Tensor, c: _Conditions, tokens: Tensor | None) -> Tensor:
        half = len(self.middle) // 2
        h = self._run(self.middle[:half], h, c)
        if self.attention is not None and tokens is not None:
            h = self.attention(h, tokens)
        return self._run(self.middle[half:], h, c)

    def _run(self, level: nn.Module, h: Tensor, c: _Conditions) -> Tensor:
        for block in level:  # type: ignore[attr-defined]  # a ModuleList
            if self.recompute and torch.is_grad_enabled():
                h = checkpoint(block, h, c, use_reentrant=False)
            else:
                h = block(h, c)
        return h

    def _check(self, x: Tensor) -> None:
        if any(n % self.stride for n in x.shape[2:]):
            raise ValueError(f"sizes {tuple(x.shape[2:])} are no multiples of the network's stride {self.stride}")


def set_dropout(network: nn.Module, active: bool = True) -> None:
    """Switch the dropout of a network in evaluation mode on (Monte-Carlo dropout) or off; nothing else changes."""
    for module in network.modules():
        if isinstance(module, nn.Dropout3d):
            module.train(active)
