"""Two auto-encoders, one of low-dose and one of standard-dose PET, and the transfer between their features.

After Jiang et al.: encoders E1 (low dose) and E2 (standard dose) with region-adaptive normalisation, decoders D1 and
D2, and T12, two convolutions of one voxel. The shipped network computes D2(T12(E1(x))); E2 and D1 serve the training
(``model_zoo.training.standard_dose_semi``). Depth and width are not in the paper: here an encoder is a ``VolumeUNet``
whose features lie on half the grid, and its decoder takes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from model_zoo.networks.volume_unet import VolumeUNet, depth_to_space

__all__ = ["DoseTransfer"]


class DoseTransfer(nn.Module):
    """Restoration of standard-dose PET: float (b, in_channels, k, j, i) -> (b, out_channels, k, j, i).

    Sizes must be multiples of ``stride``. ``channels``, ``blocks``: of an encoder; ``features``: number of its outputs;
    ``embedding`` and ``maps``: sizes of its conditions, 0 for none. The low dose's decoder has one channel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        blocks: int = 1,
        features: int = 32,
        embedding: int = 0,
        maps: int = 0,
    ) -> None:
        super().__init__()

        def encoder() -> VolumeUNet:
            return VolumeUNet(
                in_channels, features, channels, blocks, unshuffle=2, coarsen=2, embedding=embedding, maps=maps,
                norm="soft",
            )  # fmt: skip

        self.encode_low, self.encode_standard = encoder(), encoder()
        self.decode_low, self.decode_standard = _Decoder(features, 1), _Decoder(features, out_channels)
        self.transfer = nn.Sequential(nn.Conv3d(features, features, 1), nn.SiLU(), nn.Conv3d(features, features, 1))
        self.stride = self.encode_low.stride

    def forward(
        self,
        x: Tensor,
        embedding: Tensor | None = None,
        tokens: Tensor | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        output: Tensor = self.decode_standard(self.transfer(self.encode_low(x, embedding, tokens, maps)))
        return output


class _Decoder(nn.Module):
    """Decoder of features on half the grid -> (b, out_channels, k, j, i)."""

    def __init__(self, features: int, out_channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(features, 2 * features, 3, padding=1)
        self.out = nn.Conv3d(2 * features, 8 * out_channels, 3, padding=1)

    def forward(self, f: Tensor) -> Tensor:
        return depth_to_space(self.out(nn.functional.silu(self.mix(f))), 2)
