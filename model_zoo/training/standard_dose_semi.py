"""Recipe ``standard-dose-pet-semi``: ``standard-dose-pet`` from few pairs and many images that have no partner.

The two stages of Jiang et al. (Generative Machine Learning Models in Medical Image Computing, ch. 11) with their
network (``DoseTransfer``: E1, E2, D1, D2, T12), the images, scales and doses of ``standard_dose_pet``, and what the
chapter has wrong put right:

1.  For the first ``first_stage`` of the steps, images of either dose, paired or not, are encoded and decoded by
    themselves: |D1(E1(x_L)) - d(x_L)|^2 + |D2(E2(x_S)) - d(x_S)|^2 per voxel, d the image less its widest blur in units
    of the noise amplitude. (The copies that ``standard_dose.interpret`` chooses from would let a decoder copy x.)
2.  Then pairs only: E1, T12 and D2 learn the loss of ``standard_dose_pet`` of D2(T12(E1(x_L))), plus ``struc_weight``
    times the structural consistency (``pet_losses``) of the features T12(E1(x_L)) with E2(x_S), where E2 stands still.

Eq. 11.3 leaves T12 out of its first term, and a caption has the second stage tuned on unpaired images: here T12 is in
every term, and they are pairs. Eq. 11.5 lacks brackets (the network here has no batch statistics), and eq. 11.7
compares errors in place of relations. The chapter scales each image to its own extremes, so that one hot voxel changes
all others; here one robust scale of the low dose divides both. Its pairs share a tenth of the events and their noise;
``target`` "independent" shares none. The squared error of stage 2 is here the likelihood of ``standard_dose_pet``,
which gives the standard deviation. There are no discriminators: what makes noise look real invents it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo.networks.dose_transfer import DoseTransfer
from model_zoo.standard_dose import BANDS, EMBEDDING, IN_CHANNELS, OUT_CHANNELS, interpret, prepare
from model_zoo.training import standard_dose_pet
from model_zoo.training.pet_losses import structural_consistency
from model_zoo.training.recipe import Recipe, Source
from model_zoo.training.standard_dose_pet import fidelity, items, names_of, region_maps

__all__ = [
    "CONFIGURATIONS",
    "RECIPE",
    "Configuration",
    "autoencoding",
    "compute_loss",
    "draw_batch",
    "holding",
    "make_network",
]


@dataclass(frozen=True, kw_only=True)
class Configuration(standard_dose_pet.Configuration):
    """``first_stage``: share of the steps. ``features``: of an encoder. ``lone``: images of either dose without partner
    per step, beside the ``batch`` pairs; simulated, they come from a pool of ``lone_pool`` other scans.

    ``struc_weight``: lambda_3 of the paper, ``line_weight`` its alpha.
    """

    first_stage: float = 0.4
    features: int = 32
    lone: int
    lone_pool: int = 300
    struc_weight: float = 0.5
    line_weight: float = 0.2
    target: str = "independent"
    pool: int = 20
    pool_share: float = 1.0


CONFIGURATIONS = {
    "cpu": Configuration(
        channels=(24, 48, 96), blocks=1, patch=32, steps=4500, batch=4, lone=4, patches_per_object=4,
        learning_rate=1e-3, warmup=40, ema=0.995, checkpoint_every=50, validate_every=300,
    ),
    "gpu": Configuration(
        channels=(32, 64, 128), blocks=1, patch=48, steps=12000, batch=8, lone=8, patches_per_object=4,
        learning_rate=1e-3, ema=0.999, workers=14, checkpoint_every=500, validate_every=2000,
    ),
    "smoke": Configuration(
        channels=(8, 16), blocks=1, features=8, patch=16, steps=6, batch=2, lone=1, first_stage=0.5, learning_rate=1e-3,
        warmup=2, checkpoint_every=3, spacings_mm=(8.0,), pool=1, lone_pool=1, pool_slices=16,
    ),
}  # fmt: skip


def make_network(c: Configuration) -> nn.Module:
    """The network of the paper with the two ends of ``model_zoo.standard_dose``."""
    return DoseTransfer(**_definition(c))


def _definition(c: Configuration) -> dict[str, Any]:
    return {
        "in_channels": IN_CHANNELS,
        "out_channels": OUT_CHANNELS,
        "channels": list(c.channels),
        "blocks": c.blocks,
        "features": c.features,
        "embedding": EMBEDDING,
        "maps": len(names_of(c)),
    }


def draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw pairs as ``standard_dose_pet.draw_batch`` does, and the encoders' inputs of each dose.

    The inputs are of the pairs' images, then of those without partner: ``inputs_low``, ``embedding_low``,
    ``regions_low``, ``told_low``; ``inputs_standard`` …
    """
    pairs = items(c, holding(source, "low", "standard"), generator)
    others = replace(c, batch=c.lone, pool=c.lone_pool, seed=c.seed + 1)
    batch = {name: pairs[name] for name in ("low", "target", "regions", "told")}
    for name, image in (("low", "low"), ("standard", "target")):
        lone = items(others, holding(source, name), generator)
        both = {key: torch.cat([pairs[key], lone[key]]) for key in pairs}
        dose = both["dose"] if name == "low" else torch.ones_like(both["dose"])
        maps = region_maps(both["regions"], both["told"], c)
        shown = prepare(both[image], dose, both["spacing_mm"], maps)
        batch |= {f"inputs_{name}": shown.inputs, f"embedding_{name}": shown.embedding}
        batch |= {f"regions_{name}": both["regions"], f"told_{name}": both["told"]}
        if name == "low":
            batch |= {"copies": shown.copies[: c.batch], "amplitude": shown.amplitude[: c.batch]}
    return batch


def holding(source: Source, *names: str) -> Source:
    """The rows of a user's table that have these images; simulated sources have all. Raises ValueError for none."""
    if source.cohort is None:
        return source
    rows = tuple(row for row in source.cohort.rows if all(name in row.images for name in names))
    if not rows:
        raise ValueError(f"no row of a split has {' and '.join(names)}; this recipe needs some")
    if unknown := [row.line for row in rows if "low" in names and "dose" not in row.numbers]:
        raise ValueError(f"line {unknown[0]}, column dose: it is blank beside a low-dose image")
    return replace(source, cohort=replace(source.cohort, rows=rows))


def compute_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """The stage that this step belongs to."""
    if float(batch["progress"]) < c.first_stage:
        return autoencoding(network, batch, c)
    return _transfer(network, batch, c)


def autoencoding(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """Stage 1: each dose by its own encoder and decoder."""
    return _reconstruction(network, batch, c, "low") + _reconstruction(network, batch, c, "standard")


def _reconstruction(network: nn.Module, batch: dict[str, Tensor], c: Configuration, name: str) -> Tensor:
    decoder = network.get_submodule(f"decode_{name}")
    found = decoder(_features(network, batch, c, name))[:, :1].float()
    detail = batch[f"inputs_{name}"][:, :BANDS].sum(dim=1, keepdim=True)
    error: Tensor = found - detail
    return error.square().mean()


def _features(
    network: nn.Module, batch: dict[str, Tensor], c: Configuration, name: str, first: int | None = None
) -> Tensor:
    """E(x) of the images of a dose, or of the ``first`` of them."""
    inputs, embedding, regions, told = (batch[f"{key}_{name}"][:first] for key in _SHOWN)
    found: Tensor = network.get_submodule(f"encode_{name}")(inputs, embedding, None, region_maps(regions, told, c))
    return found


_SHOWN = ("inputs", "embedding", "regions", "told")


def _transfer(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """Stage 2: pairs, through E1, T12 and D2."""
    pairs = len(batch["target"])
    estimated = network.get_submodule("transfer")(_features(network, batch, c, "low", pairs))
    output = network.get_submodule("decode_standard")(estimated)
    total = fidelity(*interpret(output, batch["copies"], batch["amplitude"]), batch, c)
    if not c.struc_weight:
        return total
    with torch.no_grad():
        wanted = _features(network, batch, c, "standard", pairs)
    return total + c.struc_weight * structural_consistency(
        estimated.float(), wanted.float(), vertex_weight=1.0, line_weight=c.line_weight
    )


def validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """The numbers of ``standard_dose_pet``, on pairs."""
    return standard_dose_pet.validate(network, c, holding(source, "low", "standard"))


def describe_inference(c: Configuration) -> dict[str, Any]:
    """As of ``standard_dose_pet``, with this network."""
    target = {"_target_": "model_zoo.networks.dose_transfer.DoseTransfer"}
    return standard_dose_pet.describe_inference(c) | {"network_def": target | _definition(c)}


RECIPE = Recipe(
    name="standard-dose-pet-semi",
    bundle="standard_dose_pet",
    configurations=CONFIGURATIONS,
    make_network=make_network,
    draw_batch=draw_batch,
    compute_loss=compute_loss,
    validate=validate,
    describe_inference=describe_inference,
    facts=standard_dose_pet.RECIPE.facts,
    columns=tuple(replace(column, required=False) for column in standard_dose_pet.RECIPE.columns),
)
