"""Pipeline ``bundle:NAME``: any MONAI bundle for segmentation or image-to-image, run by its own configuration.

Input: one volume for each channel that the bundle's metadata declare, under the channel's name ("image" for a single
channel). Output: a segmentation whose segments are the declared channels, with volumes in millilitres, or an image for
each output channel. Steps: ``preprocessing``, ``inferer`` and ``postprocessing`` of configs/inference.json
(``model_zoo.monai_config``) on arrays with their affine, never on files; the output is resampled to the grid of the
first input. No step is random, so the seed is not used. A third party's bundle states no uncertainty, and none is
invented: the result says so.
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
    """Options of a route, for facts that the bundle's metadata omit or state wrongly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gives: Literal["", "labels", "image"] = Field(
        default="",
        description="kind of the output, where the bundle's metadata omit it: labels or image",
    )
    labels: dict[str, str] = Field(default_factory=dict, description='names of label numbers, as { 1 = "spleen" }')
    unit: str = Field(default="", description="unit of output images in UCUM")


def make_pipeline(facts: BundleFacts) -> Pipeline:
    """Return the pipeline that this bundle defines. Raises BundleError for a bundle without an inferer."""
    bundle = f"{facts.name}@{facts.version}"
    if not monai_rules.has_inferer(registry.read_definition(facts)[1]):
        raise BundleError(f"{bundle}: {monai_rules.INFERENCE} has no inferer, so it is no pipeline of its own")
    return Pipeline(
        name=f"{BUNDLE_PREFIX}{facts.name}",
        title=str(facts.metadata.get("task") or facts.metadata.get("title") or facts.name),
        inputs=tuple(Input(name, Volume) for name in _input_names(facts.metadata)),
        bundle=facts.name,
        options_type=Options,
        run=run,
    )


def run(case: Case, model: Model, options: Options, seed: int, progress: Progress) -> list[Finding]:
    """Run the bundle. Raises Refused for images outside its use, BundleError where its configuration does not fit."""
    volumes = _collect_volumes(case, model.metadata)
    steps = monai_config.build_model_steps(model)
    progress(0.05, "preprocessing")
    with torch.inference_mode(), monai_config.suppress_warnings():
        pred = _infer(bundle_volumes.make_tensor(volumes), steps, model, progress)
    progress(0.9, "on the image's grid")
    output_format = bundle_findings.read_output_format(model.metadata, options.gives, options.labels, options.unit)
    findings = bundle_findings.make_findings(pred, volumes[0], output_format)
    return [*findings, *_notes(model)]


def _infer(image: Any, steps: Steps, model: Model, progress: Progress) -> Any:
    """Return the postprocessed output of the network, (c, i, j, k) with its affine."""
    bundle = f"{model.name}@{model.version}"
    try:
        with offline(bundle):
            data = steps.preprocessing({steps.image: image})
        ready = data[steps.image]
        progress(0.2, "network")
        with offline(bundle):
            output = steps.inferer(ready[None].to(model.device), model.network)
        progress(0.7, "postprocessing")
        data[steps.pred] = bundle_volumes.restore_affine(output, ready)
        with offline(bundle):
            return steps.postprocessing(data)[steps.pred]
    except torch.OutOfMemoryError:
        raise  # another attempt may find room
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise BundleError(f"{bundle} does not run on this image: {monai_config.innermost_reason(error)}") from error


def _input_names(metadata: Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs, in the order of the network's channels."""
    declared = bundle_findings.read_tensor_format(metadata, "inputs")
    count = int(declared.get("num_channels", 1))
    if count == 1:
        return ["image"]
    names = [str(declared.get("channel_def", {}).get(str(n), "")).strip() for n in range(count)]
    return names if all(names) and len(set(names)) == count else [f"image {n + 1}" for n in range(count)]


def _collect_volumes(case: Case, metadata: Mapping[str, Any]) -> list[Volume]:
    """Return the inputs on the grid of the first. Raises Refused for another modality or frame of reference."""
    names = _input_names(metadata)
    _check_modality(case.facts, metadata)
    volumes: list[Volume] = []
    for name in names:
        volume = case[name]
        if not isinstance(volume, Volume):
            raise Refused(f"{name}: this bundle takes images, not k-space")
        if volumes and case.facts.get(name, {}).get("same_frame") is False:
            raise Refused(f"{name} is of another frame of reference than {names[0]}, and a bundle registers nothing")
        volumes.append(bundle_volumes.resample_volume(volume, volumes[0].grid) if volumes else volume)
    return volumes


def _check_modality(facts: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    expected = str(bundle_findings.read_tensor_format(metadata, "inputs").get("modality", "")).upper()
    expected, actual = _SAME_MODALITY.get(expected, expected), str(facts.get("modality", ""))
    if expected in ("CT", "MR", "PT") and actual and actual != expected:
        raise Refused(f"image: Modality (0008,0060) is {actual}; this bundle takes {expected}")


def _notes(model: Model) -> list[Finding]:
    use = str(model.metadata.get("intended_use", "")).strip() or "not stated"
    return [Note("uncertainty", _UNCERTAINTY), Note("intended use", f"As the bundle's authors say: {use}")]
