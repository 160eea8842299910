"""Recipe ``anatomy``: structures of the head from an image of any MR contrast and resolution, after SynthSeg.

Data: random heads (``simulate.heads``) with random contrast, resolution and noise (``simulate.volumes``), so that no
sequence is special (Billot et al., Med. Image Anal. 86, 2023); or a user's label volumes with or without an image.

Two networks are trained one after the other (``networks.refinement_cascade``). The first learns where structures lie,
on a grid coarser than the image's: the share of each voxel that belongs to each structure. Loss: cross-entropy with
these shares plus one minus their mean soft Dice over the structures present. Cross-entropy is balanced between
structures at first, or small ones are not found for thousands of steps, and unbalanced at last, as the minimum of a
balanced one is at no probability. The image gives each structure's brightness and exact edge (``model_zoo.mixture``).
The second network learns to correct the result, while the first stays unchanged; loss: plain cross-entropy plus the
same Dice, of whole voxels. MONAI's ``DiceLoss`` averages over absent structures, too, and takes an image of the
truth for every structure, as large as the logits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo import mixture
from model_zoo.imaging import scale_between_quantiles
from model_zoo.mixture import Mixture
from model_zoo.networks.refinement_cascade import RefinementCascade
from model_zoo.networks.volume_unet import space_to_depth
from model_zoo.out_of_distribution import HOLD_ABOVE
from model_zoo.physics.tissues import tissue_of
from model_zoo.similarity import dice
from model_zoo.simulate.heads import Head, Variation
from model_zoo.simulate.volumes import render_contrast_agnostic
from model_zoo.structures import COUNT, STRUCTURES, number
from model_zoo.training import recipe
from model_zoo.training.cohort import Cohort
from model_zoo.training.recipe import Column, Recipe, Source, seeded

__all__ = [
    "CONFIGURATIONS",
    "RECIPE",
    "Configuration",
    "compute_refinement_loss",
    "compute_structure_shares",
    "score_structures",
]

UNSHUFFLE = 4
BALANCED_SHARE = 0.75
"""Share of the first network's training after which cross-entropy is no longer balanced."""
MIXTURE = Mixture()


@dataclass(frozen=True, kw_only=True)
class Configuration(recipe.Configuration):
    """A run of this recipe.

    ``channels``, ``blocks``: of the first network, its first level at four times ``spacing_mm``, its output at
    ``coarsen`` times; ``shape``: its field of view in voxels, which holds a whole head; ``shift_mm``: largest distance
    of the brain from its centre; ``balance``: power of a structure's size that divides its weight at first;
    ``first_steps``: steps of the first network, the rest is for the second, of ``again_channels``.
    """

    channels: tuple[int, ...]
    blocks: int
    shape: tuple[int, int, int]
    spacing_mm: float
    first_steps: int
    again_channels: tuple[int, ...] = (32, 64, 56)
    shift_mm: float = 12.0
    coarsen: int = 2
    balance: float = 0.75
    dice_weight: float = 1.0


CONFIGURATIONS = {
    "cpu": Configuration(
        channels=(64, 96, 128), blocks=2, shape=(80, 112, 80), spacing_mm=2.0, steps=13500, first_steps=10400,
        restarts=(10400,), batch=1, learning_rate=3e-3, warmup=50, ema=0.995, threads=1, workers=1,
        checkpoint_every=250, validate_every=1000,
    ),
    "gpu": Configuration(
        channels=(64, 96, 128), blocks=2, shape=(80, 112, 80), spacing_mm=2.0, steps=40000, first_steps=24000,
        restarts=(24000,), batch=4, learning_rate=2e-3, ema=0.998, workers=14, checkpoint_every=500,
    ),
    "smoke": Configuration(
        channels=(8, 8), blocks=1, again_channels=(8, 8), shape=(32, 32, 32), spacing_mm=6.0, steps=6, first_steps=3,
        restarts=(3,), batch=1, learning_rate=1e-3, warmup=2, checkpoint_every=3,
    ),
}  # fmt: skip


def make_network(c: Configuration) -> nn.Module:
    """Return the untrained cascade: image to logits of background and structures."""
    return RefinementCascade(COUNT + 1, c.channels, c.blocks, UNSHUFFLE, c.coarsen, c.again_channels)


def draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Return ``image`` float (b, 1, k, j, i) in [0, 1], ``structure`` int64 (b, k, j, i) and ``stage``.

    ``stage``: share of the first network's training that is done; from 1 on the second network is trained.
    """
    pairs = [_draw_example(c, source, generator) for _ in range(c.batch)]
    return {
        "image": torch.stack([image for image, _ in pairs])[:, None],
        "structure": torch.stack([structure for _, structure in pairs]).to(torch.int64),
        "stage": torch.tensor(source.step / c.first_steps),
    }


def _draw_example(c: Configuration, source: Source, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if source.cohort is not None:
        return _draw_cohort_example(c, source.cohort, generator)
    if source.phantom:
        head = source.draw_head(generator, shape=c.shape, spacing_mm=c.spacing_mm)
    else:
        draw = (2 * torch.rand(4, generator=generator) - 1).tolist()
        offset_mm = (draw[0] * c.shift_mm, draw[1] * c.shift_mm, draw[2] * c.shift_mm)
        variation = Variation(face=draw[3] < 0.2)
        head = source.draw_head(
            generator, shape=c.shape, spacing_mm=c.spacing_mm, offset_mm=offset_mm, variation=variation
        )
    return render_contrast_agnostic(head, generator), head.structure


def _draw_cohort_example(c: Configuration, cohort: Cohort, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the user's image where the row has one, else a simulated contrast of the user's labels."""
    row = cohort.draw_row(generator)
    names = [name for name in ("structures", "image") if name in row.images]
    found = cohort.draw_patch(row, names, c.shape, c.spacing_mm, generator)
    structure = found["structures"].round().clamp(0, COUNT).to(torch.uint8)
    if "image" in found:
        return scale_between_quantiles(found["image"]), structure
    lookup = torch.zeros(COUNT + 1, dtype=torch.uint8)
    for s in STRUCTURES:
        lookup[s.number] = tissue_of(s.name)
    return render_contrast_agnostic(
        Head(lookup[structure.long()], structure, c.spacing_mm, row.subject), generator
    ), structure


def prepare(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> dict[str, Tensor]:
    """Return the second network's inputs in a box about the brain; while the first is trained, the batch unchanged.

    ``prior``: the first network's probabilities; ``posterior``: the mixture's; ``structure``: the truth in the box;
    ``box``: its first and last voxel along (k, j, i).
    """
    if float(batch["stage"]) < 1:
        return batch
    image, structure = batch["image"], batch["structure"]
    p = functional.softmax(network(image).float(), dim=1)
    near = mixture.bounding_box(p[:, 0].amin(dim=0), _as_cascade(network).second.stride)
    fine = tuple(slice(2 * part.start, 2 * part.stop) for part in near)
    p = p[(slice(None), slice(None), *near)]
    image, structure = image[(slice(None), slice(None), *fine)], structure[(slice(None), *fine)]
    prior = functional.interpolate(p, image.shape[2:], mode="trilinear", align_corners=False)
    posterior = [mixture.compute_posterior(each, x[0], MIXTURE) for each, x in zip(prior, image, strict=True)]
    box = torch.tensor([(part.start, part.stop) for part in fine])
    return {"prior": p, "posterior": torch.stack(posterior), "structure": structure, "box": box}


def compute_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """Return cross-entropy, of the first network balanced at first, + w (1 - mean soft Dice)."""
    if "posterior" in batch:
        return compute_refinement_loss(_refined_logits(network, batch), batch["structure"], c)
    log_p = functional.log_softmax(network(batch["image"]).float(), dim=1)
    shares = compute_structure_shares(batch["structure"], c.coarsen)
    size = shares.sum(dim=(0, 2, 3, 4))
    balance = c.balance * max(0.0, 1 - float(batch["stage"]) / BALANCED_SHARE)
    weight = (size + 50) ** -balance
    weight = weight / (weight * size).sum()
    cross_entropy = -(log_p * shares * weight[:, None, None, None]).sum()
    p = log_p.exp()
    overlap = torch.minimum(p, shares).sum(dim=(0, 2, 3, 4))
    return cross_entropy + c.dice_weight * (1 - _mean_dice(overlap, p.sum(dim=(0, 2, 3, 4)), size))


def _refined_logits(network: nn.Module, prepared: dict[str, Tensor]) -> Tensor:
    """Return the second network's logits."""
    return _as_cascade(network).refine(prepared["posterior"], prepared["prior"])


def _as_cascade(network: nn.Module) -> RefinementCascade:
    if not isinstance(network, RefinementCascade):
        raise TypeError(f"{type(network).__name__} is no refinement cascade")
    return network


def compute_refinement_loss(logits: Tensor, structure: Tensor, c: Configuration) -> Tensor:
    """Return the loss of the second network: mean cross-entropy + w (1 - mean soft Dice).

    ``logits`` (b, structures, k, j, i); ``structure``: the true numbers (b, k, j, i), int64.
    """
    log_p = functional.log_softmax(logits, dim=1)
    right = log_p.gather(1, structure[:, None]).flatten()
    none = right.new_zeros(COUNT + 1)
    overlap = none.index_add(0, structure.flatten(), right.exp())
    size = none.index_add(0, structure.flatten(), torch.ones_like(right))
    return c.dice_weight * (1 - _mean_dice(overlap, log_p.exp().sum(dim=(0, 2, 3, 4)), size)) - right.mean()


def compute_structure_shares(structure: Tensor, coarsen: int) -> Tensor:
    """Return each structure's share of blocks of ``coarsen``^3 voxels: (b, k, j, i) -> (b, structures, k', ...)."""
    b, *shape = structure.shape
    blocks = space_to_depth(structure[:, None], coarsen)
    shares = torch.zeros(b, COUNT + 1, *(n // coarsen for n in shape), device=structure.device)
    return shares.scatter_add_(1, blocks, torch.full_like(blocks, 1 / coarsen**3, dtype=shares.dtype))


def _mean_dice(overlap: Tensor, found: Tensor, truth: Tensor) -> Tensor:
    """Return the mean over the structures present, without background, of 2 overlap / (found + truth); each (n,)."""
    present = truth > 0
    present[0] = False
    score = 2 * overlap / (found + truth).clamp(min=1)
    return score[present].mean() if bool(present.any()) else score.new_ones(())


def score_structures(found: Tensor, truth: Tensor) -> dict[int, float]:
    """Return the Dice coefficient of every structure in ``truth``, by number; integer tensors of one shape."""
    scores = {}
    for n in range(1, COUNT + 1):
        a, b = found == n, truth == n
        if bool(b.any()):
            scores[n] = dice(a, b)
    return scores


def place_in_box(labels: Tensor, box: Tensor, truth: Tensor) -> Tensor:
    """Return the labels of a box on the grid of ``truth``, 0 outside: what the box leaves out counts as missed."""
    found = torch.zeros_like(truth, dtype=labels.dtype)
    found[tuple(slice(int(first), int(last)) for first, last in box)] = labels
    return found


def validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """Return mean Dice over eight heads: on the first network's grid, of some structures, and after refinement."""
    generator = seeded(c.seed, 10**9)
    scores: list[dict[int, float]] = []
    refined: list[dict[int, float]] = []
    for _ in range(8):
        batch = draw_batch(c, source, generator)
        image = batch["image"].to(next(network.parameters()).device)
        found = network(image).argmax(1).cpu()
        scores.append(score_structures(found[0], compute_structure_shares(batch["structure"], c.coarsen).argmax(1)[0]))
        inputs = prepare(network, batch | {"image": image, "stage": torch.tensor(1.0)}, c)
        labels = _refined_logits(network, inputs).argmax(1).cpu()[0]
        refined.append(
            score_structures(place_in_box(labels, inputs["box"], batch["structure"][0]), batch["structure"][0])
        )
    metrics = {"dice": _mean(scores), "dice_again": _mean(refined)}
    for name in ("cerebral white matter", "frontal cortex", "hippocampus"):
        values = [s[number(name)] for s in scores if number(name) in s]
        metrics[f"dice_{name.replace(' ', '_')}"] = sum(values) / max(1, len(values))
    return metrics


def _mean(scores: list[dict[int, float]]) -> float:
    return sum(sum(s.values()) / max(1, len(s)) for s in scores) / len(scores)


def describe_inference(c: Configuration) -> dict[str, Any]:
    """Return the network's definition and the settings of its pipeline."""
    return {
        "network_def": {
            "_target_": "model_zoo.networks.refinement_cascade.RefinementCascade",
            "classes": COUNT + 1,
            "channels": list(c.channels),
            "blocks": c.blocks,
            "unshuffle": UNSHUFFLE,
            "coarsen": c.coarsen,
            "again_channels": list(c.again_channels),
        },
        "spacing_mm": c.spacing_mm,
        "shape": list(c.shape),
        "structures": COUNT,
        "percentiles": [0.5, 99.5],
        "mixture": asdict(MIXTURE),
    }


RECIPE = Recipe(
    name="anatomy",
    bundle="anatomy",
    configurations=CONFIGURATIONS,
    make_network=make_network,
    draw_batch=draw_batch,
    prepare=prepare,
    compute_loss=compute_loss,
    validate=validate,
    describe_inference=describe_inference,
    facts={
        "task": "Segmentation of brain structures and cortical regions from head MR of any contrast",
        "intended_use": "Research only. Not for diagnosis. Masks, reference regions and regional numbers of brain MR.",
        "network_input": {
            "organ": "head",
            "modality": "MR, any sequence",
            "orientation": "LPS",
            "scale": "0.5th to 99.5th percentile is 0 to 1",
        },
        "input_contract": {
            "head": [
                {"fact": "modality", "one_of": ["MR"]},
                {"fact": "body_part", "one_of": ["head", "brain", "skull", "cereb", "crani", "neuro"]},
                {"fact": "image_type", "none_of": ["P", "PHASE", "PHASE MAP"]},
                {"fact": "coverage_mm", "between": [100, 400]},
                {"fact": "coarsest_spacing_mm", "between": [0.2, 8]},
                {"fact": "age_years", "between": [16, 100], "otherwise": "hold"},
            ]
        },
        "output_limits": {"hold_above": dict(HOLD_ABOVE)},
        "units": "structure numbers of model_zoo/structures.py",
        "trained_on": "simulation only (SynthSeg label maps with random contrast); never on patient images",
        "data_licence": "SynthSeg label maps: Apache-2.0; Allen Human Reference Atlas: CC BY 4.0; no image data",
    },
    columns=(
        Column("structures", "labels", help="structure numbers 0 to 23 of model_zoo/structures.py"),
        Column("image", "image", required=False, help="head MR of any contrast; without it one is simulated"),
    ),
)
