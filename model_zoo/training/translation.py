"""Recipe ``translation``: any series to any target, by a plan (``model_zoo.translation.plan``).

Data: patches of simulated MR examinations (T1w, T2w, FLAIR, PD, DIR, with and without MS lesions), or of the rows of a
user's table, which may lack series. Each item has one target that its subject has, named by its code, and of the other
sources a random part, never none, so that one network serves every part. The plan's engine has the loss
(``translation_engines``, ``translation_losses``). ``adversarial`` adds an opponent, a PatchGAN of inputs and target,
with a hundredth of the weight of the mean error (chapter 9). It makes results sharper than what is known: it rewards
detail that looks right and is not there.

A plan with holes repairs one series: the target is a missing slice of the source (``translation_holes``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from model_zoo import similarity
from model_zoo.simulate import anatomy
from model_zoo.simulate.brain_label_maps import SUBJECTS as SYNTHSR
from model_zoo.training.cohort import Row
from model_zoo.training.opponents import AdversarialConfiguration, Judged, Opponent
from model_zoo.training.recipe import Column, Recipe, Source, seeded
from model_zoo.training.translation_engines import LEARNING
from model_zoo.training.translation_facts import state_facts
from model_zoo.training.translation_holes import draw_window
from model_zoo.training.translation_items import SEQUENCES, draw_patch, draw_subject, list_possible_targets
from model_zoo.training.translation_unpaired import draw_unpaired, has_pairs
from model_zoo.translation import network as networks
from model_zoo.translation import plan as plans
from model_zoo.translation.engines import ENGINES
from model_zoo.translation.plan import Plan

__all__ = ["CONFIGURATIONS", "MR_CONTRASTS", "RECIPE", "Configuration", "make_recipe", "make_recipe_of"]

MR_CONTRASTS = plans.parse({
    "name": "mr_contrasts",
    "title": "Any of T1w, T2w, FLAIR and PD from each part of the others",
    "body_part": ["head", "brain", "skull", "cereb", "crani", "neuro"],
    "labels": "structures",
    "emphasis": "lesions",
    "sources": [{"name": n, "modality": "MR", "scale": "tissue:white"} for n in ("t1w", "t2w", "flair", "pd")],
    "targets": [
        {"name": n, "modality": "MR", "scale": "tissue:white", "code": code}
        for code, n in enumerate(("t1w", "t2w", "flair", "pd"), start=1)
    ],
})  # fmt: skip
"""The plan without ``--plan``, which the simulator serves."""


@dataclass(frozen=True, kw_only=True)
class Configuration(AdversarialConfiguration):
    """``plan``: what is translated; ``channels``, ``blocks``, ``unshuffle``, ``refine`` and ``refine_blocks``: size of
    the network (of slices: the first two). ``examinations``, ``renew``, ``per_patient``, ``margin`` and ``head_shape``
    as in the recipe ``synthetic-dir``. ``kappa``: noise of a flow's start, in scaled units. ``encoder_channels``,
    ``latent_channels`` and ``kl_weight``: of the autoencoder of latents. ``cycle_weight``: of the errors without pairs.
    ``more_subjects``: label maps for training
    beside the source's. Weights as in the loss.
    """

    channels: tuple[int, ...]
    examinations: int
    renew: int
    plan: Plan = MR_CONTRASTS
    patch: int = 0
    blocks: int = 1
    unshuffle: int = 2
    refine: int = 16
    refine_blocks: int = 3
    per_patient: int = 4
    margin: int = 8
    head_shape: tuple[int, int, int] = (168, 208, 168)
    more_subjects: tuple[str, ...] = ()
    ssim_weight: float = 0.1
    emphasis_weight: float = 0.25
    laplace_weight: float = 0.1
    kappa: float = 0.2
    encoder_channels: tuple[int, ...] = (32, 64, 64)
    latent_channels: int = 8
    kl_weight: float = 1e-4
    cycle_weight: float = 0.5

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """Voxels (k, j, i) of a patch: of the configuration, or where that is 0 of the plan."""
        side = self.patch or self.plan.patch
        return (self.plan.slices or side, side, side)

    @property
    def least_shape(self) -> tuple[int, int, int]:
        """Smallest shape of a subject: of plans with holes a cube, since slices lie along any axis."""
        side = self.patch_shape[1]
        return (side, side, side) if self.plan.holes else self.patch_shape

    def list_subjects(self, source: Source) -> tuple[str, ...]:
        """Return the label maps of a source; only that of the training has the further ones."""
        return source.subjects + self.more_subjects if source.subjects == anatomy.TRAIN else source.subjects

    def to_json(self) -> str:
        values = asdict(replace(self, plan=MR_CONTRASTS)) | {"plan": self.plan.model_dump(mode="json")}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        plan = plans.parse(values.pop("plan")) if "plan" in values else MR_CONTRASTS
        return replace(super().from_json(json.dumps(values)), plan=plan)


CONFIGURATIONS = {
    "cpu": Configuration(
        channels=(32, 64, 96, 128), examinations=24, renew=8, steps=3600, batch=2, learning_rate=3e-3, warmup=50,
        ema=0.99, checkpoint_every=100, validate_every=600, more_subjects=SYNTHSR,
    ),
    "gpu": Configuration(
        channels=(64, 96, 128, 160), patch=96, examinations=24, renew=32, steps=12000, batch=8,
        learning_rate=1.5e-3, ema=0.999, checkpoint_every=500, validate_every=2000, workers=8,
        more_subjects=SYNTHSR,
    ),
    "smoke": Configuration(
        channels=(8, 16), patch=16, examinations=2, renew=2, margin=4, head_shape=(48, 56, 48), steps=6, batch=2,
        learning_rate=1e-3, warmup=2, checkpoint_every=3, encoder_channels=(8, 8), latent_channels=2,
    ),
}  # fmt: skip

HOLES: dict[str, dict[str, Any]] = {
    "cpu": {
        "channels": (48, 72, 96), "examinations": 12, "renew": 200, "per_patient": 2, "head_shape": (128, 160, 128),
        "steps": 2000, "batch": 6, "learning_rate": 2e-3, "validate_every": 2000,
    },
    "gpu": {"channels": (64, 128, 192), "patch": 0, "steps": 20000, "batch": 32},
}  # fmt: skip
"""Settings of plans with holes, which learn from small windows of many examinations."""


def make_network(c: Configuration) -> nn.Module:
    """Return the network of the plan. Raises ValueError where its engine does not fit the configuration."""
    network = networks.make_network(_describe_network(c))
    LEARNING[c.plan.engine].check(network, c)
    return network


def _describe_network(c: Configuration) -> dict[str, Any]:
    return ENGINES[c.plan.engine].describe_network(c.plan, LEARNING[c.plan.engine].describe_size(c))


def draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw patches of one simulated examination, or of the user's rows.

    ``input`` (b, channels, k, j, i), ``target``, ``weight``, ``emphasis`` (b, 1, k, j, i); ``target_code``,
    ``brightness``, ``tokens``; ``span`` (b,).
    """
    if source.cohort is None:
        _check_simulated(c.plan)
    if c.plan.pairing == "unpaired":
        return _stack([draw_unpaired(c, source, generator) for _ in range(c.batch)])
    return _draw_pairs(c, source, generator)


def _draw_pairs(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    subject = draw_subject(c, source, generator)
    items, draw = [], draw_window if c.plan.holes else draw_patch
    for number in range(c.batch):
        if number and source.cohort is not None:
            subject = draw_subject(c, source, generator)
        items.append(draw(c, subject, generator))
    return _stack(items)


def _stack(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def _check_simulated(plan: Plan) -> None:
    """Raise ValueError for a series that the simulator does not make."""
    for each in (*plan.sources, *plan.targets):
        is_known = each.kind in SEQUENCES or (plan.holes > 0 and each.kind == "other")
        if not is_known or each.modality != "MR":
            known = ", ".join(SEQUENCES)
            raise ValueError(f"the simulator makes no {each.name}: train with --manifest; it makes {known}")
    if plan.covariates:
        raise ValueError("simulated heads have no covariates: train with --manifest")


def compute_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """Return the loss of the plan's engine, without the opponent's part."""
    return _compute_judged_loss(network, batch, c)[0]


def _compute_judged_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Judged]:
    return LEARNING[c.plan.engine].compute_loss(network, batch, c)


def _make_judges(c: Configuration) -> Mapping[str, nn.Module]:
    return LEARNING[c.plan.engine].make_judges(c)


@torch.no_grad()
def validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """Return error and PSNR inside (peak: the scale's span) on 16 batches, in all and for each target, and the share
    of voxels within two standard deviations; of plans without pairs where subjects have both images.
    """
    engine = LEARNING[c.plan.engine]
    scores: dict[str, list[float]] = {}
    device = next(network.parameters()).device
    few = replace(c, per_patient=2, examinations=min(c.examinations, 8))
    for n in range(16):
        batch, pairs = _draw_validation(few, source, n, device)
        for key, value in engine.measure(network, batch, c).items():
            scores.setdefault(key, []).append(value)
        if pairs is not None:
            _score_batch(scores, engine.estimate(network, pairs, c), pairs, c.plan)
    return {name: sum(values) / len(values) for name, values in sorted(scores.items())}


def _draw_validation(
    c: Configuration, source: Source, n: int, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Return a batch, and one of pairs: the same one; of plans without pairs another one, or None where there is none.

    Images are drawn without autocast.
    """
    with torch.autocast(device.type, enabled=False), torch.autocast("cpu", enabled=False):
        batch = {k: v.to(device) for k, v in draw_batch(c, source, seeded(c.seed, 10**9, n)).items()}
        if c.plan.pairing == "paired":
            return batch, batch
        if not has_pairs(c, source):
            return batch, None
        return batch, {k: v.to(device) for k, v in _draw_pairs(c, source, seeded(c.seed, 10**9, n, 1)).items()}


def _score_batch(
    scores: dict[str, list[float]], estimate: tuple[Tensor, Tensor], batch: Mapping[str, Tensor], plan: Plan
) -> None:
    mean, sd = estimate
    for item in range(len(mean)):
        inside, target = batch["weight"][item] > 0.5, batch["target"][item]
        if bool(inside.any()):
            _score(scores, mean[item], sd[item], target, inside, batch, item, plan)


def _score(
    scores: dict[str, list[float]],
    mean: Tensor,
    sd: Tensor,
    target: Tensor,
    inside: Tensor,
    batch: Mapping[str, Tensor],
    item: int,
    plan: Plan,
) -> None:
    code = int(batch["target_code"][item].argmax()) + 1
    name = next(each.name for each in plan.targets if each.code == code)
    psnr = similarity.psnr(mean, target, float(batch["span"][item]), inside)
    within = ((mean - target).abs() <= 2 * sd)[inside].float().mean()
    found = {
        "mae": similarity.mean_absolute_error(mean, target, inside),
        "psnr_db": psnr,
        f"{name}_psnr_db": psnr,
        "within_2_sd": float(within),
    }
    if plan.holes:
        cubic = (batch["input"][item, :1, plan.slices // 2][:, None] + 1) / 2
        found["cubic_psnr_db"] = similarity.psnr(cubic, target, float(batch["span"][item]), inside)
    for key, value in found.items():
        scores.setdefault(key, []).append(value)


def describe_inference(c: Configuration) -> dict[str, Any]:
    """Return the network's definition and the plan."""
    own = LEARNING[c.plan.engine].make_settings(c)
    return {"network_def": _describe_network(c), "plan": c.plan.model_dump(mode="json"), **own}


def make_recipe(path: Path) -> Recipe[Configuration]:
    """Return the recipe of the plan in a file. Raises PlanError, FileNotFoundError."""
    return make_recipe_of(plans.read(path))


def make_recipe_of(plan: Plan) -> Recipe[Configuration]:
    return Recipe(
        name="translation",
        bundle=plan.name,
        configurations={name: _adapt(name, c, plan) for name, c in CONFIGURATIONS.items()},
        opponent=Opponent(_make_judges, _compute_judged_loss, LEARNING[plan.engine].is_logistic),
        make_network=make_network,
        draw_batch=draw_batch,
        compute_loss=compute_loss,
        validate=validate,
        describe_inference=describe_inference,
        facts=state_facts(plan),
        columns=_list_columns(plan),
        with_plan=make_recipe,
        check_row=lambda row: _explain_useless(plan, row),
        at_configuration=lambda c: make_recipe_of(c.plan),
    )


def _adapt(name: str, c: Configuration, plan: Plan) -> Configuration:
    """Return the configuration for a plan, with what its engine or its holes need."""
    if plan.holes:
        c = replace(c, **HOLES.get(name, {}))
    return LEARNING[plan.engine].adapt(replace(c, plan=plan))


def _list_columns(plan: Plan) -> tuple[Column, ...]:
    sources = {each.name: each for each in plan.sources}
    columns = [
        Column(
            name, "image", name in sources and sources[name].required and plan.pairing == "paired", _explain(plan, name)
        )
        for name in plan.names
    ]
    if plan.labels == "structures":
        columns.append(
            Column("structures", "labels", help="structure numbers of model_zoo/structures.py, for the scales")
        )
    if plan.emphasis == "lesions":
        columns.append(Column("lesions", "labels", required=False, help="1 in lesions, else 0"))
    helps = {"age": "years", "sex": "F or M", "e4": "APOE e4 alleles", "mmse": "points", "ptau217": "pg/ml in plasma"}
    columns += [
        Column(name, "word" if name == "sex" else "number", required=False, help=helps[name])
        for name in plan.covariates
    ]
    return tuple(columns)


def _explain_useless(plan: Plan, row: Row) -> str:
    """Return why the row teaches nothing, or ""."""
    if list_possible_targets(plan, row.images, row.images):
        return ""
    if plan.pairing == "unpaired":
        return "" if row.images.keys() & set(plan.names) else f"it has neither {' nor '.join(plan.names)}"
    return "it has no target with another series that is a source and holds what the target shows"


def _explain(plan: Plan, name: str) -> str:
    uses = [
        use for use, series in (("source", plan.sources), ("target", plan.targets)) if name in {s.name for s in series}
    ]
    return f"{' and '.join(uses)}, registered to the row's other images"


RECIPE = make_recipe_of(MR_CONTRASTS)
