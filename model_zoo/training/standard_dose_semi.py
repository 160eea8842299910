"""Recipe ``standard-dose-pet-semi``: ``standard-dose-pet`` from few pairs and many images that have no partner.

The two stages of Jiang et al. (Generative Machine Learning Models in Medical Image Computing, ch. 11) with their
network (``DoseTransfer``: E1, E2, D1, D2, T12), the images, scales and doses of ``standard_dose_pet``, and what the
chapter's errors corrected:

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
which gives the standard deviation. The discriminators (L_d1, L_d2) are there with ``adversarial_weight``, and off by
default: what makes noise look real invents it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo.networks.dose_transfer import DoseTransfer
from model_zoo.standard_dose import BANDS, EMBEDDING, IN_CHANNELS, OUT_CHANNELS, interpret, prepare
from model_zoo.training import dose_items, standard_dose_pet
from model_zoo.training.dose_items import draw_items, list_regions
from model_zoo.training.opponents import AdversarialConfiguration, Judged, Opponent, Pair, make_judge
from model_zoo.training.pet_losses import structural_consistency
from model_zoo.training.recipe import Recipe, Source
from model_zoo.training.standard_dose_pet import fidelity_loss, make_region_maps

__all__ = [
    "CONFIGURATIONS",
    "RECIPE",
    "Configuration",
    "autoencoding_loss",
    "compute_loss",
    "draw_batch",
    "make_network",
    "select_rows",
]


DOSES = ("low", "standard")


@dataclass(frozen=True, kw_only=True)
class Configuration(dose_items.Configuration, AdversarialConfiguration):
    """``first_stage``: share of the steps. ``features``: of an encoder. ``lone``: images of either dose without partner
    per step, in addition to the ``batch`` pairs; simulated, they come from a pool of ``lone_pool`` other scans.

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
    """Return the network of the paper with the two ends of ``model_zoo.standard_dose``."""
    return DoseTransfer(**_define_network(c))


def _define_network(c: Configuration) -> dict[str, Any]:
    return {
        "in_channels": IN_CHANNELS,
        "out_channels": OUT_CHANNELS,
        "channels": list(c.channels),
        "blocks": c.blocks,
        "features": c.features,
        "embedding": EMBEDDING,
        "maps": len(list_regions(c)),
    }


def draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw pairs as ``standard_dose_pet.draw_batch`` does, and the encoders' inputs of each dose.

    The inputs are of the pairs' images, then of those without partner: ``inputs_low``, ``embedding_low``,
    ``regions_low``, ``has_regions_low``; ``inputs_standard`` …
    """
    pairs = draw_items(c, select_rows(source, "low", "standard"), generator)
    others = replace(c, batch=c.lone, pool=c.lone_pool, seed=c.seed + 1)
    batch = {name: pairs[name] for name in ("low", "target", "regions", "has_regions")}
    for name, image in (("low", "low"), ("standard", "target")):
        unpaired = draw_items(others, select_rows(source, name), generator)
        both = {key: torch.cat([pairs[key], unpaired[key]]) for key in pairs}
        dose = both["dose"] if name == "low" else torch.ones_like(both["dose"])
        maps = make_region_maps(both["regions"], both["has_regions"], c)
        encoder_input = prepare(both[image], dose, both["spacing_mm"], maps)
        batch |= {f"inputs_{name}": encoder_input.inputs, f"embedding_{name}": encoder_input.embedding}
        batch |= {f"regions_{name}": both["regions"], f"has_regions_{name}": both["has_regions"]}
        if name == "low":
            batch |= {"copies": encoder_input.copies[: c.batch], "amplitude": encoder_input.amplitude[: c.batch]}
    return batch


def select_rows(source: Source, *names: str) -> Source:
    """Select the rows of a user's table that have these images; simulated sources have all.

    Raises ValueError where no row has them, or a low-dose image has no dose.
    """
    if source.cohort is None:
        return source
    rows = tuple(row for row in source.cohort.rows if all(name in row.images for name in names))
    if not rows:
        raise ValueError(f"no row of a split has {' and '.join(names)}; this recipe needs some")
    if unknown := [row.line for row in rows if "low" in names and "dose" not in row.numbers]:
        raise ValueError(f"line {unknown[0]}, column dose: it is blank, but the row has a low-dose image")
    return replace(source, cohort=replace(source.cohort, rows=rows))


def compute_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """Return the loss of the stage to which this step belongs."""
    return _compute_judged_loss(network, batch, c)[0]


def _make_judges(c: Configuration) -> dict[str, nn.Module]:
    """Return the discriminators of stage 1, one for each decoder, and that of stage 2."""
    return {name: make_judge(c.opponent_channels, 1) for name in (*DOSES, "estimate")}


def _compute_judged_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Judged]:
    if float(batch["progress"]) < c.first_stage:
        return autoencoding_loss(network, batch, c)
    return _transfer_loss(network, batch, c)


def autoencoding_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Judged]:
    """Return the loss of stage 1, each dose by its own encoder and decoder, and decoded with true details."""
    judged = {name: _decode(network, batch, c, name) for name in DOSES}
    low, standard = ((pair.made - pair.true).square().mean() for pair in judged.values())
    return low + standard, judged


def _decode(network: nn.Module, batch: dict[str, Tensor], c: Configuration, name: str) -> Pair:
    decoder = network.get_submodule(f"decode_{name}")
    decoded = decoder(_encode(network, batch, c, name))[:, :1].float()
    return Pair(decoded, batch[f"inputs_{name}"][:, :BANDS].sum(dim=1, keepdim=True))


def _encode(
    network: nn.Module, batch: dict[str, Tensor], c: Configuration, name: str, first: int | None = None
) -> Tensor:
    """Return E(x) of the images of a dose, or of the ``first`` of them."""
    inputs, embedding, regions, has_regions = (batch[f"{key}_{name}"][:first] for key in _ENCODER_INPUTS)
    features: Tensor = network.get_submodule(f"encode_{name}")(
        inputs, embedding, None, make_region_maps(regions, has_regions, c)
    )
    return features


_ENCODER_INPUTS = ("inputs", "embedding", "regions", "has_regions")


def _transfer_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Judged]:
    """Return the loss of stage 2, pairs through E1, T12 and D2, and the estimates with their targets."""
    pairs = len(batch["target"])
    estimated = network.get_submodule("transfer")(_encode(network, batch, c, "low", pairs))
    output = network.get_submodule("decode_standard")(estimated)
    mean, s = interpret(output, batch["copies"], batch["amplitude"])
    judged = {"estimate": Pair(mean, batch["target"])}
    total = fidelity_loss(mean, s, batch, c)
    if not c.struc_weight:
        return total, judged
    with torch.no_grad():
        target = _encode(network, batch, c, "standard", pairs)
    return total + c.struc_weight * structural_consistency(
        estimated.float(), target.float(), vertex_weight=1.0, line_weight=c.line_weight
    ), judged


def validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """Return the numbers of ``standard_dose_pet``, on pairs."""
    return standard_dose_pet.validate(network, c, select_rows(source, "low", "standard"))


def describe_inference(c: Configuration) -> dict[str, Any]:
    """Return the description of ``standard_dose_pet`` with this network."""
    target = {"_target_": "model_zoo.networks.dose_transfer.DoseTransfer"}
    return standard_dose_pet.describe_inference(c) | {"network_def": target | _define_network(c)}


RECIPE = Recipe(
    name="standard-dose-pet-semi",
    bundle="standard_dose_pet",
    configurations=CONFIGURATIONS,
    make_network=make_network,
    draw_batch=draw_batch,
    compute_loss=compute_loss,
    opponent=Opponent(_make_judges, _compute_judged_loss),
    validate=validate,
    describe_inference=describe_inference,
    facts=standard_dose_pet.RECIPE.facts,
    columns=tuple(replace(column, required=False) for column in standard_dose_pet.RECIPE.columns),
)
