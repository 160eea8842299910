"""Any MONAI bundle for segmentation or from image to image, by its own configuration: the pipeline ``bundle:NAME``.

Input: one volume for each channel that the bundle's metadata declare, under the channel's name ("image" where there is
one). Output: a segmentation whose segments are the declared channels, with volumes in millilitres, or an image for each
channel that comes out. Steps: ``preprocessing``, ``inferer`` and ``postprocessing`` of configs/inference.json
(``model_zoo.monai_config``) on arrays with their place in the patient, never on files; what comes out is brought to the
lattice of the first input. Nothing is random, so the seed is not used. A bundle of others states no uncertainty, and
none is made up: the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from model_zoo import monai_config, monai_rules, registry
from model_zoo.bundle import BundleError
from model_zoo.offline import offline
from pipelines import BUNDLE_PREFIX, bundle_findings, bundle_volumes
from pipelines.contract import Case, Finding, Input, Note, Pipeline, Progress, Refused, Volume

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts, Model
    from model_zoo.monai_config import Steps

__all__ = ["Options", "make_pipeline", "run"]

_UNCERTAINTY = (
    "Unknown. The bundle states none, and this node does not know how often it is wrong on images such as this one: "
    "no number has an interval, no voxel a standard deviation."
)
_SAME_MODALITY = {"MRI": "MR", "PET": "PT", "CTA": "CT"}


class Options(BaseModel):
    """What a route may set where the bundle's metadata do not tell, or tell it wrong.

    ``gives``: what comes out; ``labels``: names of label numbers; ``unit``: of images that come out, in UCUM.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gives: Literal["", "labels", "image"] = ""
    labels: dict[str, str] = Field(default_factory=dict)
    unit: str = ""


def make_pipeline(facts: BundleFacts) -> Pipeline:
    """The pipeline that this bundle is. Raises BundleError where it does not say how to come to a result."""
    called = f"{facts.name}@{facts.version}"
    if not monai_rules.has_code(registry.definition_of(facts)[1]):
        raise BundleError(f"{called}: {monai_rules.INFERENCE} has no inferer, so it is no pipeline of its own")
    return Pipeline(
        name=f"{BUNDLE_PREFIX}{facts.name}",
        title=str(facts.metadata.get("task") or facts.metadata.get("title") or facts.name),
        inputs=tuple(Input(name, Volume) for name in _channels(facts.metadata)),
        bundle=facts.name,
        options_type=Options,
        run=run,
    )


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Raises Refused for images that the bundle is not for, BundleError where its configuration does not fit."""
    volumes = _volumes(case, model.metadata)
    steps = monai_config.steps(model)
    progress(0.05, "preprocessing")
    with torch.inference_mode(), monai_config.quiet():
        pred = _answer(bundle_volumes.make_tensor(volumes), steps, model, progress)
    progress(0.9, "on the image's lattice")
    answer = bundle_findings.read_output_format(model.metadata, options.gives, options.labels, options.unit)
    found = bundle_findings.make_findings(pred, volumes[0], answer)
    return [*found, *_notes(model)]


def _answer(image: Any, steps: Steps, model: Model, progress: Progress) -> Any:
    """What postprocessing makes of the network's answer, (c, i, j, k) with its affine."""
    called = f"{model.name}@{model.version}"
    try:
        with offline(called):
            data = steps.preprocessing({steps.image: image})
        ready = data[steps.image]
        progress(0.2, "network")
        with offline(called):
            answer = steps.inferer(ready[None].to(model.device), model.network)
        progress(0.7, "postprocessing")
        data[steps.pred] = bundle_volumes.restore_affine(answer, ready)
        with offline(called):
            return steps.postprocessing(data)[steps.pred]
    except torch.OutOfMemoryError:
        raise  # another attempt may find room
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise BundleError(f"{called} does not run on this image: {monai_config.innermost(error)}") from error


def _channels(metadata: Mapping[str, Any]) -> list[str]:
    """The names of what goes in, in the order of the network's channels."""
    declared = bundle_findings.read_tensor_format(metadata, "inputs")
    count = int(declared.get("num_channels", 1))
    if count == 1:
        return ["image"]
    names = [str(declared.get("channel_def", {}).get(str(n), "")).strip() for n in range(count)]
    return names if all(names) and len(set(names)) == count else [f"image {n + 1}" for n in range(count)]


def _volumes(case: Case, metadata: Mapping[str, Any]) -> list[Volume]:
    """Of the declared modality, in one frame of reference, on the lattice of the first."""
    names = _channels(metadata)
    _check_modality(case.facts, metadata)
    found: list[Volume] = []
    for name in names:
        volume = case[name]
        if not isinstance(volume, Volume):
            raise Refused(f"{name}: this bundle takes images, not k-space")
        if found and case.facts.get(name, {}).get("same_frame") is False:
            raise Refused(f"{name} is of another frame of reference than {names[0]}, and a bundle registers nothing")
        found.append(bundle_volumes.resample_volume(volume, found[0].grid) if found else volume)
    return found


def _check_modality(facts: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    wanted = str(bundle_findings.read_tensor_format(metadata, "inputs").get("modality", "")).upper()
    wanted, stated = _SAME_MODALITY.get(wanted, wanted), str(facts.get("modality", ""))
    if wanted in ("CT", "MR", "PT") and stated and stated != wanted:
        raise Refused(f"image: Modality (0008,0060) is {stated}; this bundle takes {wanted}")


def _notes(model: Model) -> list[Finding]:
    use = str(model.metadata.get("intended_use", "")).strip() or "not stated"
    return [Note("uncertainty", _UNCERTAINTY), Note("intended use", f"As the bundle's authors say: {use}")]
