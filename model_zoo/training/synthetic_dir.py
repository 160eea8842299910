"""Recipe ``synthetic-dir``: double inversion recovery, lesions and tissue maps from FLAIR with or without T1w.

Data: patches of whole simulated examinations of MS patients (``simulate.ms``), or of a user's registered FLAIR, T1w and
DIR, prepared as the pipeline does; first guesses are fitted to the whole brain, since those of patches train worse. T1w
is dropped at random, so that one network serves both inputs. Loss (model specification 1.3, without its errors):

    L = mean |T - G| + w_l sum(M |T - G|) / sum(M) + w_s (1 - SSIM) + w_b Laplace(T - G; b)
        + w_m mean |maps| + w_r mean |T - DIR(maps)| + w_seg (cross-entropy + 1 - Dice)
        + w_c mean max(0, 1 - (G_in - G_near) / (T_in - T_near))

M is the lesion mask, each lesion over the root of its volume, so that a small one is not lost beside a large one; its
term is divided by its sum, so a patient's lesion load does not set its weight. b is learned on the detached residual:
it describes the error and does not excuse it. The last term, off by default, is over pairs of a voxel of a lesion and
one of the tissue within 5 mm that is darker on the true DIR. The brightness of the tissues of the whole examination
(``synthetic_dir.tissue_levels``) is an input: no patch alone shows the protocol.

With ``adversarial_weight`` a PatchGAN of inputs and DIR is the opponent (algorithm 9.1). It is off by default: it
rewards lesions and folds that look right and are not there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo import similarity
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.physics.sequences import DIR_TE_MS, DIR_TR_MS
from model_zoo.simulate import ms
from model_zoo.simulate.acquisition import uniform
from model_zoo.structures import CORTEX
from model_zoo.synthetic_dir import (
    CHANNELS,
    CLIP,
    EMBEDDING,
    INPUT_CONTRACT,
    OUTPUT_LIMITS,
    compute_first_guess,
    decode,
    log_maps,
    prepare,
    scale,
    stack_inputs,
    tissue_levels,
    undo_transfer,
    white_matter_level,
)
from model_zoo.training.brain_box import find_box_with_margin
from model_zoo.training.cohort import Cohort
from model_zoo.training.dir_losses import contrast_loss, maps_losses, segmentation_loss, weigh_lesions, weighted_mean
from model_zoo.training.labels import displace_labels
from model_zoo.training.opponents import AdversarialConfiguration, Judged, Opponent, Pair, make_judge
from model_zoo.training.recipe import Column, Recipe, Source, seeded

__all__ = ["CONFIGURATIONS", "RECIPE", "Configuration"]

SPACING_MM = 1.0
WARP_CELLS = 24
OUTSIDE = 0.05
"""Weight of voxels outside the brain."""


@dataclass(frozen=True, kw_only=True)
class Configuration(AdversarialConfiguration):
    """``patch``: voxels of a side at 1 mm; ``examinations``: how many are in use at once, one of which is replaced by a
    new one every ``renew`` steps (a set that stays is learned by heart: with 40, new lesions were found best after
    500 steps); ``per_patient``: how many examinations a simulated patient has; ``margin``: voxels kept about the brain;
    ``without_t1w``: share of patches that see FLAIR only; ``hard``: share of examinations by
    ``ms.make_patient_harder`` and ``ms.make_examination_harder``; weights as in the loss."""

    channels: tuple[int, ...]
    patch: int
    examinations: int
    renew: int
    per_patient: int = 4
    blocks: int = 1
    unshuffle: int = 2
    refine: int = 16
    dropout: float = 0.2
    margin: int = 8
    head_shape: tuple[int, int, int] = (168, 208, 168)
    without_t1w: float = 0.25
    lesion_weight: float = 0.25
    ssim_weight: float = 0.1
    laplace_weight: float = 0.1
    maps_weight: float = 0.5
    render_weight: float = 0.2
    segment_weight: float = 0.2
    contrast_weight: float = 0.0
    hard: float = 0.0


CONFIGURATIONS = {
    "cpu": Configuration(
        channels=(32, 64, 96, 128), patch=64, examinations=24, renew=8, steps=3600, batch=2,
        learning_rate=3e-3, warmup=50, ema=0.99, checkpoint_every=100, validate_every=600,
    ),
    "gpu": Configuration(
        channels=(64, 96, 128, 160), patch=96, examinations=24, renew=32, steps=12000, batch=8,
        learning_rate=1.5e-3, ema=0.999, draw_on_device=True, checkpoint_every=500, validate_every=2000,
    ),
    "smoke": Configuration(
        channels=(4, 8), patch=16, examinations=2, renew=2, margin=4, head_shape=(48, 56, 48), steps=6, batch=2,
        learning_rate=1e-3, warmup=2, checkpoint_every=3,
    ),
}  # fmt: skip


def make_network(c: Configuration) -> nn.Module:
    """Return the network: FLAIR, T1w, 1 with T1w, and the first guess in, ``synthetic_dir.CHANNELS`` out."""
    return VolumeUNet(
        4, len(CHANNELS), channels=c.channels, blocks=c.blocks, unshuffle=c.unshuffle, refine=c.refine, norm="soft",
        dropout=c.dropout, embedding=EMBEDDING,
    )  # fmt: skip


def draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw patches of one simulated examination, or of the user's rows: each float (b, channels, k, j, i).

    ``input``, ``dir``, ``maps`` (3), ``lesion``, its ``emphasis``, ``weight``; ``levels`` of the tissues; ``known``
    (b, 2): 1 where maps and lesions are known; ``protocol`` (b, 5): TR, TI1, TI2, TE of the DIR in ms and its unit.
    """
    if source.cohort is not None:
        items = [_draw_measured(c, source.cohort, generator) for _ in range(c.batch)]
    else:
        items = _draw_simulated(c, source, generator)
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


@dataclass(frozen=True)
class _PreparedExamination:
    """An examination as the pipeline prepares it, and its truth.

    ``volumes`` by name in half precision (k, j, i), with ``guess`` of FLAIR and T1w and ``guess_alone`` of FLAIR;
    ``special``: lesions and artefacts; ``protocol`` (5,).
    """

    volumes: dict[str, Tensor]
    special: Tensor
    protocol: Tensor


@lru_cache(maxsize=8)
def _make_patient(source: Source, c: Configuration, which: int) -> ms.Patient:
    """Return one patient of the run, who depends on the configuration's seed and ``which`` only."""
    generator = seeded(c.seed, 7, which)
    head = source.draw_head(generator, shape=c.head_shape, spacing_mm=SPACING_MM)
    patient = ms.draw_patient(head, generator, masks=0.0 if source.phantom else 0.3, root=source.root)
    lesions = replace(patient.lesions, extent=patient.lesions.extent.half())
    return ms.Patient(patient.head, lesions, patient.artefact.half()).crop(
        find_box_with_margin(patient.head.structure, c.margin, (c.patch,) * 3)
    )


@lru_cache(maxsize=40)
def _make_examination(source: Source, c: Configuration, which: int) -> _PreparedExamination:
    """Return one examination of the run, which depends on the configuration and ``which`` only."""
    generator = seeded(c.seed, 8, which)
    patient = _make_patient(source, c, which // c.per_patient)
    lesions = replace(patient.lesions, extent=patient.lesions.extent.float()).redraw_severities(generator)
    patient = replace(patient, lesions=lesions, artefact=patient.artefact.float())
    e = ms.draw_examination(generator)
    if c.hard and uniform(generator, 0, 1) < c.hard:
        patient, e = ms.make_patient_harder(patient, generator), ms.make_examination_harder(e, generator)
    images = ms.render_images(patient, e, generator)
    truth = {
        "dir": images.dir.clamp(0, CLIP),
        "maps": log_maps(images.maps),
        "lesion": patient.lesions.mask,
        "emphasis": weigh_lesions(patient.lesions),
        "brain": patient.head.structure > 0,
    }
    # off by tenths of a voxel to two voxels: no segmentation is exact
    structure = displace_labels(patient.head.structure, uniform(generator, 0.0, 1.2), WARP_CELLS, generator)
    volumes = _prepare(images.flair, images.t1w, structure) | truth
    protocol = torch.tensor([e.dir.tr_ms, e.dir.ti1_ms, e.dir.ti2_ms, e.dir.te_ms, e.unit])
    special = patient.lesions.mask | (patient.artefact > 0.1)
    return _PreparedExamination({name: x.half() for name, x in volumes.items()}, special, protocol)


def _prepare(flair: Tensor, t1w: Tensor | None, structure: Tensor) -> dict[str, Tensor]:
    """Prepare a whole examination as the pipeline does, with the guess from FLAIR alone in addition."""
    flair = undo_transfer(prepare(flair, structure, SPACING_MM), structure)
    volumes = {"flair": flair, "guess_alone": compute_first_guess(flair, None, structure)}
    volumes["levels_alone"] = tissue_levels(flair, None, structure)
    if t1w is not None:
        volumes["t1w"] = prepare(t1w, structure, SPACING_MM)
        volumes["guess"] = compute_first_guess(flair, volumes["t1w"], structure)
        volumes["levels"] = tissue_levels(flair, volumes["t1w"], structure)
    return volumes


def _draw_simulated(c: Configuration, source: Source, generator: torch.Generator) -> list[dict[str, Tensor]]:
    which = int(torch.randint(c.examinations, (1,), generator=generator, device=generator.device))
    examined = _make_examination(source, replace(c, without_t1w=0.0), source.step // c.renew + which)
    return [_draw_patch(c, examined, generator) for _ in range(c.batch)]


def _draw_patch(c: Configuration, examined: _PreparedExamination, generator: torch.Generator) -> dict[str, Tensor]:
    k, j, i = _draw_box(c, examined, generator)
    cut = _cut(examined.volumes, (k, j, i), generator.device)
    known = {"known": torch.ones(2), "protocol": examined.protocol}
    return _make_item(c, cut, generator) | {name: x.to(generator.device) for name, x in known.items()}


def _cut(volumes: dict[str, Tensor], box: tuple[slice, slice, slice], device: torch.device) -> dict[str, Tensor]:
    """Cut ``box`` out of every volume, float32 on ``device``; levels are those of the whole examination."""
    return {n: (x if n.startswith("levels") else x[(..., *box)]).float().to(device) for n, x in volumes.items()}


def _make_item(c: Configuration, cut: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Make one item of a batch from a patch of all that ``_prepare`` and the truth hold, flipped at random."""
    alone = "t1w" not in cut or uniform(generator, 0, 1) < c.without_t1w
    second, kind = (None, "_alone") if alone else (cut["t1w"], "")
    guess = cut[f"guess{kind}"]
    item = {
        "input": stack_inputs(cut["flair"][None], None if second is None else second[None], guess[None])[0],
        "dir": cut["dir"][None],
        "maps": cut["maps"],
        "lesion": cut["lesion"][None],
        "emphasis": cut["emphasis"][None],
        "weight": torch.where(cut["brain"] > 0.5, 1.0, OUTSIDE)[None],
    }
    turned = [axis for axis in (1, 2, 3) if uniform(generator, 0, 1) < 0.5]
    flipped = {name: value.flip(turned).contiguous() for name, value in item.items()}
    return flipped | {"levels": cut[f"levels{kind}"]}


def _draw_box(
    c: Configuration, examined: _PreparedExamination, generator: torch.Generator
) -> tuple[slice, slice, slice]:
    """Draw the box of a patch: half of them about a lesion or an artefact, the rest about any voxel of the brain."""
    special = examined.special
    where = special if uniform(generator, 0, 1) < 0.5 and bool(special.any()) else examined.volumes["brain"] > 0
    flat = torch.nonzero(where.flatten())[:, 0]
    at = int(flat[int(uniform(generator, 0, len(flat)))])
    centre = [at // (where.shape[1] * where.shape[2]), at // where.shape[2] % where.shape[1], at % where.shape[2]]
    jitter = [int(uniform(generator, -c.patch / 3, c.patch / 3)) for _ in range(3)]
    starts = [
        min(max(0, m + d - c.patch // 2), n - c.patch) for m, d, n in zip(centre, jitter, where.shape, strict=True)
    ]
    k, j, i = (slice(start, start + c.patch) for start in starts)
    return k, j, i


def _draw_measured(c: Configuration, cohort: Cohort, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw a patch of a user's row; DIR in units of its own cortex."""
    row = cohort.draw_row(generator)

    def read(name: str) -> Tensor:
        return cohort.read_volume(row, name, SPACING_MM).values

    structure = read("structures").round().to(torch.uint8)
    volumes = _prepare(read("flair"), read("t1w") if "t1w" in row.images else None, structure)
    dir_level = white_matter_level(read("dir"), torch.isin(structure, torch.tensor(CORTEX, dtype=torch.uint8)))
    volumes |= {"dir": scale(read("dir"), dir_level), "brain": (structure > 0).float()}
    volumes["lesion"] = (
        (read("lesions") > 0.5).float() if "lesions" in row.images else torch.zeros_like(volumes["flair"])
    )
    volumes["emphasis"] = volumes["lesion"]
    volumes["maps"] = torch.zeros(3, *structure.shape)
    start = [int(uniform(generator, 0, max(0, n - c.patch) + 1)) for n in structure.shape]
    k, j, i = (slice(a, a + c.patch) for a in start)
    cut = {name: _pad(x, c.patch) for name, x in _cut(volumes, (k, j, i), generator.device).items()}
    known = torch.tensor([0.0, float("lesions" in row.images)])
    protocol = torch.tensor([DIR_TR_MS, 2600.0, 550.0, DIR_TE_MS, 0.03])
    return _make_item(c, cut, generator) | {"known": known, "protocol": protocol}


def _pad(x: Tensor, size: int) -> Tensor:
    if x.dim() < 3:
        return x
    return functional.pad(x, [n for side in reversed(x.shape[-3:]) for n in (0, size - side)])


def compute_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """Return the sum in the module's docstring."""
    return _compute_judged_loss(network, batch, c)[0]


def _make_judges(c: Configuration) -> dict[str, nn.Module]:
    return {"dir": make_judge(c.opponent_channels, 5)}


def _compute_judged_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Judged]:
    """Return the loss, and the DIR with the inputs that it was made from."""
    out = decode(network(batch["input"], batch["levels"]), batch["input"])
    target, weight, lesion = batch["dir"], batch["weight"], batch["emphasis"]
    residual = (target - out.dir).abs()
    b = out.log_b.exp()
    ssim = similarity.ssim_map(out.dir, target, CLIP / 2)
    total = weighted_mean(residual, weight)
    total = total + c.lesion_weight * (lesion * residual).sum() / lesion.sum().clamp(min=1.0)
    total = total + c.ssim_weight * (1 - weighted_mean(ssim, weight))
    total = total + c.laplace_weight * weighted_mean(residual.detach() / b + out.log_b, weight)
    maps_error, rendered_error = maps_losses(out, batch)
    total = total + c.maps_weight * maps_error + c.render_weight * rendered_error
    total = total + c.segment_weight * segmentation_loss(out, batch)
    if c.contrast_weight:
        total = total + c.contrast_weight * contrast_loss(out.dir, batch)
    made, true = (torch.cat([batch["input"], dir_], dim=1) for dir_ in (out.dir, target))
    return total, {"dir": Pair(made, true)}


def validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """Return error, PSNR (peak 2) and lesion Dice on patches of eight examinations, with T1w and with FLAIR alone."""
    scores: dict[str, list[float]] = {}
    device = next(network.parameters()).device
    for n in range(8):
        for name, without in (("", 0.0), ("flair_only_", 1.0)):
            examined = replace(c, without_t1w=without, per_patient=2, examinations=min(c.examinations, 8))
            with torch.autocast(device.type, enabled=False), torch.autocast("cpu", enabled=False):
                batch = {k: v.to(device) for k, v in draw_batch(examined, source, seeded(c.seed, 10**9, n)).items()}
            brain, lesion = batch["weight"] > 0.5, batch["lesion"] > 0.5
            out = decode(network(batch["input"], batch["levels"]), batch["input"])
            scores.setdefault(f"{name}mae", []).append(similarity.mean_absolute_error(out.dir, batch["dir"], brain))
            if bool(lesion.any()):
                worst = similarity.mean_absolute_error(out.dir, batch["dir"], lesion)
                scores.setdefault(f"{name}lesion_mae", []).append(worst)
            scores.setdefault(f"{name}psnr_db", []).append(similarity.psnr(out.dir, batch["dir"], 2.0, brain))
            overlap = float(((out.lesion > 0) & lesion).sum())
            scores.setdefault(f"{name}dice", []).append(
                2 * overlap / max(1.0, float((out.lesion > 0).sum() + lesion.sum()))
            )
    return {name: sum(values) / len(values) for name, values in scores.items()}


def describe_inference(c: Configuration) -> dict[str, Any]:
    """Return the network's definition and the settings of its pipeline."""
    return {
        "network_def": {
            "_target_": "model_zoo.networks.volume_unet.VolumeUNet",
            "in_channels": 4,
            "out_channels": len(CHANNELS),
            "channels": list(c.channels),
            "blocks": c.blocks,
            "unshuffle": c.unshuffle,
            "embedding": EMBEDDING,
            "refine": c.refine,
            "norm": "soft",
            "dropout": c.dropout,
        },
        "spacing_mm": SPACING_MM,
        "channels": list(CHANNELS),
        "clip": CLIP,
        "passes": 20,
        "dir": {"tr_ms": DIR_TR_MS, "te_ms": DIR_TE_MS, "nulls": "white matter and CSF of the subject"},
    }


RECIPE = Recipe(
    name="synthetic-dir",
    bundle="synthetic_dir",
    configurations=CONFIGURATIONS,
    make_network=make_network,
    draw_batch=draw_batch,
    compute_loss=compute_loss,
    opponent=Opponent(_make_judges, _compute_judged_loss),
    validate=validate,
    describe_inference=describe_inference,
    facts={
        "task": "Synthetic double inversion recovery, MS lesions and tissue maps from FLAIR with or without T1w",
        "intended_use": "Research only. Not for diagnosis. Cortical and juxtacortical MS lesions made visible.",
        "network_input": {
            "organ": "brain",
            "modality": "MR at 3 T: FLAIR; T1w (MPRAGE or spin echo) on its grid where there is one",
            "spacing_mm": SPACING_MM,
            "orientation": "LPS",
            "scale": "without its bias field, median of the white matter is 1, clipped to [0, 4]",
            "channels": "FLAIR, T1w (0 without), 1 with T1w and 0 without, first guess by the tissues",
        },
        "input_contract": INPUT_CONTRACT,
        "output_limits": OUTPUT_LIMITS,
        "units": "DIR: 1 is the mean of the cortex, white matter and CSF are nulled",
        "trained_on": "simulation only (SynthSeg label maps, simulated lesions and signals); never on patient images",
        "data_licence": "SynthSeg label maps: Apache-2.0; lesion masks: CC BY (Lesjak et al. 2017); no image data",
    },
    columns=(
        Column("flair", "image", help="FLAIR"),
        Column("t1w", "image", required=False, help="T1w, registered to the FLAIR"),
        Column("dir", "image", help="acquired double inversion recovery, registered to the FLAIR"),
        Column("structures", "labels", help="structure numbers of model_zoo/structures.py, for the scales"),
        Column("lesions", "labels", required=False, help="1 in lesions, else 0"),
    ),
)
