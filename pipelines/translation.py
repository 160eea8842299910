"""Pipeline ``translate:BUNDLE``: one series of a study from others, by a bundle of the recipe ``translation``.

Inputs: ``image``, the series that the route matches, which the option ``source`` names, and further series of the study
by the names of the bundle's plan. Output on the image's grid: the target in its unit, its standard deviation, and
checks: whether it shows the same head or body, whether it has the edges of its sources. A target that the study already
has is refused, unless ``evaluate`` asks how far the estimate is from it.

The bundle of a plan with holes fills missing slices instead (``slice_repair``).

Model: a network that gives the mean of what the target can be, and the scale of its error (``model_zoo.translation``),
so detail that the sources do not determine is smooth; trained against an opponent, as the mean of samples of
latents, or without pairs, it may be invented. The image is an estimate, never an acquisition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from model_zoo import registry
from model_zoo.translation import network as networks
from model_zoo.translation.engines import ENGINES
from model_zoo.translation.network import Conditions, Prediction, Sampling
from model_zoo.translation.plan import Plan, PlanError, PlannedTarget, find_unsupported
from model_zoo.translation.scales import Level
from pipelines import TRANSLATE_PREFIX, slice_repair, translation_checks
from pipelines.codes import STANDARD_DEVIATION
from pipelines.contract import (
    Case,
    Covariates,
    Finding,
    Image,
    Input,
    Note,
    ParametricMap,
    Pipeline,
    Progress,
    Refused,
    Volume,
)
from pipelines.dir_estimate import resample_map
from pipelines.translation_inputs import (
    IMAGE,
    Examination,
    PreparedSources,
    prepare_sources,
    read_examination,
    read_plan,
)

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts, Model

__all__ = ["Options", "make_pipeline", "run"]

COVARIATES = "covariates"
TISSUE_WORDS = {"white": "white matter", "grey": "cortex", "cerebellum": "cerebellar cortex"}
"""Words for the tissues of scales."""


class Options(BaseModel):
    """Options of a route."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(default="", description="source that the matched series is; empty: the plan's first")
    target: str = Field(default="", description="series to make; may be empty where the plan has one target")
    evaluate: bool = Field(
        default=False,
        description="true: the study has the target; make it all the same, and measure how far it is from it",
    )
    accept_risk: bool = Field(
        default=False,
        description="true: make a target that the sources do not hold; its result is held for a person",
    )


class SamplingOptions(Options):
    """Options of a route with a bundle whose engine draws samples."""

    samples: int = Field(
        default=8, ge=2, le=64, description="samples of the target, from which the standard deviation comes"
    )
    sample: bool = Field(default=False, description="true: also deliver one sample, whose detail may be invented")


class FlowOptions(SamplingOptions):
    """Options of a route with a bundle of the engine ``flow``."""

    steps: int = Field(
        default=8, ge=1, le=100, description="steps of each sample; few make the standard deviation too small"
    )


class LatentOptions(SamplingOptions):
    """Options of a route with a bundle of the engine ``latent``."""

    steps: int = Field(
        default=16, ge=1, le=100, description="steps of each sample; few make the standard deviation too small"
    )
    guidance: float = Field(
        default=1.0,
        ge=1.0,
        le=3.0,
        description="weight of target and covariates; above 1 the samples are more alike than what is known",
    )


OPTIONS: dict[str, type[Options]] = {
    "flow": FlowOptions,
    "latent": LatentOptions,
    "syndiff": SamplingOptions,
}
"""Options by the plan's engine."""


def make_pipeline(facts: BundleFacts) -> Pipeline:
    """Return the pipeline of this bundle. Raises BundleError for a bundle without a plan."""
    plan = read_plan(f"{facts.name}@{facts.version}", registry.read_definition(facts)[1].get("plan"))
    if plan.holes:
        return slice_repair.make_pipeline(facts)
    inputs = [Input(IMAGE, Volume), *(Input(name, Volume, required=False) for name in plan.names)]
    if plan.covariates:
        inputs.append(Input(COVARIATES, Covariates, required=False))
    return Pipeline(
        name=f"{TRANSLATE_PREFIX}{facts.name}",
        title=str(facts.metadata.get("task") or facts.name),
        inputs=tuple(inputs),
        bundle=facts.name,
        options_type=OPTIONS.get(plan.engine, Options),
        run=run,
        helpers=("anatomy",) if plan.labels == "structures" else (),
    )


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Translate the examination. Raises Refused. Only the registration of further sources is random."""
    plan = read_plan(f"{model.name}@{model.version}", model.settings.get("plan"))
    target = _choose_target(plan, options)
    _check_guidance(plan, options)
    examination = read_examination(case, plan, target, options.source, model, evaluate=options.evaluate)
    risks = _check_supported(plan, target, examination, options)
    prepared = prepare_sources(examination, plan, model, seed, lambda done, step: progress(0.4 * done, step))
    progress(0.4, "translation")
    prediction = _predict(prepared, plan, target, case, model, options, seed)
    progress(0.8, "checks")
    findings = [
        *_images(prediction, prepared, examination, target),
        *translation_checks.check_result(prediction, prepared, plan, target, model),
        *_notes(examination, plan, target, risks),
        *_note_sampling(plan, model, options),
    ]
    if examination.acquired is not None:
        acquired = translation_checks.Acquired(examination.acquired, target)
        findings += translation_checks.compare_with_acquired(prediction, prepared, acquired, plan, seed)
    return findings


def _choose_target(plan: Plan, options: Options) -> PlannedTarget:
    names = ", ".join(target.name for target in plan.targets)
    if not options.target and len(plan.targets) > 1:
        raise Refused(f"{plan.name} makes {names}: the option target has to say which")
    try:
        return plan.find_target(options.target or plan.targets[0].name)
    except PlanError as error:
        raise Refused(f"option target: {error}") from error


def _check_guidance(plan: Plan, options: Options) -> None:
    if _get_guidance(options) > 1 and len(plan.targets) == 1 and not plan.covariates:
        raise Refused(f"option guidance: {plan.name} has one target and no covariates, so nothing can weigh more")


def _get_guidance(options: Options) -> float:
    return options.guidance if isinstance(options, LatentOptions) else 1.0


def _check_supported(plan: Plan, target: PlannedTarget, examination: Examination, options: Options) -> list[str]:
    """Return why the sources of this case do not hold the target; empty where they do.

    Raises Refused unless plan and route accept that.
    """
    reason = find_unsupported([plan.find_source(name) for name in examination.sources], target)
    if not reason:
        return []
    if not plan.accepted_risk:
        raise Refused(f"{reason}; the model makes {target.name} with its other sources only")
    if not options.accept_risk:
        raise Refused(f"{reason}; the option accept_risk makes it all the same, and holds the result for a person")
    return [reason]


def _predict(
    prepared: PreparedSources,
    plan: Plan,
    target: PlannedTarget,
    case: Case,
    model: Model,
    options: Options,
    seed: int,
) -> Prediction:
    """Return the scaled target on the network's grid, 0 outside of what it was trained on, with a sample if asked for.

    With samples the standard deviation is theirs.
    """
    x = networks.stack_sources(plan, prepared.volumes).to(model.device)
    tokens = networks.covariate_tokens(plan, _list_covariates(case))
    brightness = networks.measure_brightness(plan, prepared.volumes, prepared.structure)
    conditions = [networks.one_hot_code(plan, target.name), brightness, tokens]
    c = Conditions(*(each[None].to(model.device) for each in conditions))
    sampling = _read_sampling(options, seed)
    p = ENGINES[plan.engine].predict(model.network, plan, model.settings, x, c, sampling)
    mean, sd = (_mask(each.float().cpu(), prepared.structure) for each in (p.mean, p.sd))
    sample = p.sample if isinstance(options, SamplingOptions) and options.sample else None
    return Prediction(mean, sd, None if sample is None else _mask(sample.float().cpu(), prepared.structure))


def _read_sampling(options: Options, seed: int) -> Sampling:
    values = options.model_dump(include={"samples", "steps", "guidance"})
    return Sampling(**({"samples": 1, "steps": 1} | values), generator=torch.Generator().manual_seed(seed))


def _mask(x: Tensor, structure: Tensor | None) -> Tensor:
    return x if structure is None else torch.where(structure > 0, x, 0.0)


def _list_covariates(case: Case) -> dict[str, float | str | None]:
    found = case.inputs.get(COVARIATES)
    if not isinstance(found, Covariates):
        return {}
    return {
        "age": found.age_years.value,
        "sex": found.sex.value,
        "e4": found.e4_alleles.value,
        "mmse": found.mmse.value,
        "ptau217": found.ptau217_pg_ml.value,
    }


def _images(
    p: Prediction,
    prepared: PreparedSources,
    examination: Examination,
    target: PlannedTarget,
) -> list[Finding]:
    """Return the target, its standard deviation and the sample, on the grid of the first source."""
    first = examination.first
    thickness_mm = first.slice_thickness_mm or first.grid.spacing_mm[0]
    level = target.parsed_scale.level or Level(0.0, 1.0)
    sources = " and ".join(examination.sources)

    def deliver(x: Tensor, scale: Callable[[Tensor], Tensor]) -> Volume:
        on_image = torch.from_numpy(resample_map(x.numpy(), prepared.grid, first.grid))
        return Volume(scale(on_image).numpy(), first.grid, target.unit)

    words = f"Synthetic {target.name} from {sources}, {_describe_unit(target)}"
    sd, sd_words = deliver(p.sd, lambda x: x * level.width), f"Standard deviation of synthetic {target.name}"
    of = "" if p.sample is None else target.name
    findings: list[Finding] = [
        Image(target.name, deliver(p.mean, level.invert), words, thickness_mm),
        ParametricMap("standard deviation", sd, STANDARD_DEVIATION, sd_words, thickness_mm, of),
    ]
    if p.sample is not None:
        words = f"One possible synthetic {target.name} from {sources}; its detail may be invented"
        findings.append(Image(f"sample of {target.name}", deliver(p.sample, level.invert), words, thickness_mm))
    return findings


def _describe_unit(target: PlannedTarget) -> str:
    kind, _, rest = target.scale.partition(":")
    if kind == "window":
        return f"in {target.unit}"
    return f"1 is the percentile {rest}" if kind == "percentile" else f"1 is the median of {TISSUE_WORDS[rest]}"


def _notes(examination: Examination, plan: Plan, target: PlannedTarget, risks: list[str]) -> list[Finding]:
    sources = " and ".join(examination.sources)
    about = f"{target.name} was estimated from {sources}. It is not an acquisition."
    detail = ENGINES[plan.engine].detail.format(sources=sources)
    missing = [source.name for source in plan.sources if source.name not in (*examination.sources, target.name)]
    found: list[Finding] = [Note("translation", f"{about} {detail}")]
    if missing:
        found.append(Note("sources", f"Made without {', '.join(missing)}, which this model would take as well"))
    if risks:
        found += [Note("risk", f"{reason}. The plan: {plan.accepted_risk}", holds_result=True) for reason in risks]
    found += [Note("input", reason, holds_result=True) for reason in examination.doubts]
    return found


def _note_sampling(plan: Plan, model: Model, options: Options) -> list[Finding]:
    """Return what the autoencoder of a latent engine loses by itself, and what guidance does to the samples."""
    found: list[Finding] = []
    if plan.engine == "latent":
        psnr = model.metadata.get("metrics", {}).get("autoencoder_psnr_db")
        measured = "not measured" if psnr is None else f"{float(psnr):.1f} dB on the validation data"
        text = f"PSNR of true images after its autoencoder alone: {measured}. The standard deviation leaves this out"
        found.append(Note("autoencoder", text))
    if (guidance := _get_guidance(options)) > 1:
        text = f"Guidance {guidance:g}: the samples are more alike than what is known, and their standard deviation"
        found.append(Note("guidance", f"{text} is too small"))
    return found
