"""A plain U-Net beside ``pet_synthesis``: the same patients, the same evaluation, nothing but squares to learn from.

    python -m benchmarks.pet_unet [--out build/benchmarks/pet_unet] [--steps 1800] [--resume]

MONAI's U-Net with residual units sees the T1w and, as constant images beside it, eight sums of the covariates, and is
trained by the loop of the zoo on the batches of recipe ``pet-synthesis``. It sees no structures, no noise and no time:
what the other network adds to it is the maps, the small head for levels, and samples. Needs the data kit; a step is
1.5 to 2.4 s on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from model_zoo import pet_synthesis, registry
from model_zoo.evaluation.pet_measures import MEASURES, measure_image
from model_zoo.evaluation.pet_synthesis import draw_held_out_subjects
from model_zoo.pet_synthesis import COVARIATES, TARGETS, TOKEN_WIDTH
from model_zoo.precision import autocast
from model_zoo.simulate import anatomy
from model_zoo.training import checkpoint, loop
from model_zoo.training import pet_synthesis as recipe
from model_zoo.training.recipe import Source, make_simulated_sources

COVARIATE_CHANNELS = 8


class PlainUNet(nn.Module):
    """y0 (b, 1, k, j, i) and tokens (b, n, width) -> both tracers (b, 2, k, j, i) over their scales."""

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        super().__init__()
        self.told = nn.Linear(len(COVARIATES) * TOKEN_WIDTH, COVARIATE_CHANNELS)
        self.net = UNet(3, 1 + COVARIATE_CHANNELS, len(TARGETS), channels, (2,) * (len(channels) - 1), num_res_units=1)

    def forward(self, y0: Tensor, tokens: Tensor) -> Tensor:
        covariates = self.told(tokens.flatten(1))[..., None, None, None].expand(-1, -1, *y0.shape[2:])
        found: Tensor = self.net(torch.cat([y0, covariates], dim=1))
        return found


def _loss(network: nn.Module, batch: dict[str, Tensor], c: recipe.Configuration) -> Tensor:
    inside = batch["maps"].sum(dim=1, keepdim=True)
    error = network(batch["y0"], batch["tokens"]).float() - batch["x0"]
    loss: Tensor = (inside * error.square()).sum() / inside.sum()
    return loss


def _validate(network: nn.Module, c: recipe.Configuration, source: Source) -> dict[str, float]:
    return {}


PLAIN = replace(recipe.RECIPE, name="pet-unet", bundle="", make_network=lambda c: PlainUNet(), compute_loss=_loss,
                validate=_validate)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/pet_unet"))
    parser.add_argument("--steps", type=int, default=recipe.CONFIGURATIONS["cpu"].steps)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    c = replace(recipe.CONFIGURATIONS["cpu"], steps=arguments.steps)
    path = loop.train(
        PLAIN, c, arguments.out, sources=make_simulated_sources(), resume=arguments.resume, progress=_print_progress
    )
    network = PlainUNet()
    network.load_state_dict(checkpoint.read(path).merge_average())
    _report(network.eval())


def _print_progress(at: loop.Progress) -> None:
    print(f"step {at.step} of {at.steps}, loss {at.loss:.4f}, {at.left_s / 60:.0f} min left", flush=True)


def _report(network: PlainUNet) -> None:
    model = registry.load("pet_synthesis")
    found: list[list[tuple[float, ...]]] = [[], []]
    for subject in draw_held_out_subjects(model, Source(anatomy.TEST)):
        with torch.no_grad(), autocast("cpu"):
            x0 = network(subject.y0[None, None], pet_synthesis.covariate_tokens(subject.covariates)[None])
        image = pet_synthesis.normalise_to_own_reference(x0.float(), subject.covariates, subject.structure)[0][0]
        for at in range(len(TARGETS)):
            found[at].append(measure_image(subject, image, at))
    print("| plain U-Net | " + " | ".join(MEASURES) + " |")
    print("| --- |" + " ---: |" * len(MEASURES))
    for target, rows in zip(TARGETS, found, strict=True):
        means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        print(f"| {target} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
