"""Doubts about a version before it is used: its images, its comparisons, its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicomnode.config import Config
    from model_zoo.bundle import BundleFacts

__all__ = ["doubt_comparisons", "doubt_metrics"]

MEASURED = ("mri_reconstruction", "standard_dose_pet")
"""Pipelines whose images show what the input's scan measured: two good versions differ little there."""
LARGEST_LOSS_DB = 3.0


def doubt_comparisons(compared: Sequence[Mapping[str, Any]], pipeline: str, config: Config) -> str:
    """Return why the shadow's comparisons speak against a version, or "". The limits are those of the output gate.

    The output gate accepts an image that fits its data; what the data leave open comes from the model, which only the
    comparison with another version shows.
    """
    from dicomnode.execution import reference

    name = reference.PSNR_MEASURED if pipeline in MEASURED else reference.PSNR_MADE
    limit = config.quality.hold_below.get(name, reference.HOLD_BELOW[name])
    psnr = [row["psnr_db"] for row in compared if row["psnr_db"] is not None]
    if not psnr:
        return "no study was compared with the current version: try it first with --shadow"
    if min(psnr) >= limit:
        return ""
    far = sum(each < limit for each in psnr)
    worst = f"the worst {min(psnr):.1f} dB"
    return f"{far} of {len(psnr)} images are below {limit:g} dB against the current version, {worst}"


def doubt_metrics(facts: BundleFacts, other: BundleFacts) -> str:
    """Return that a version fits its validation images worse than another one, by its own metadata, or ""."""
    own, others = (each.metadata.get("metrics") for each in (facts, other))
    if not isinstance(own, Mapping) or not isinstance(others, Mapping):
        return ""
    losses_db = [others[key] - own[key] for key in own if key.endswith("_db") and key in others]
    loss_db = mean(losses_db) if losses_db else 0.0
    if loss_db < LARGEST_LOSS_DB:
        return ""
    called = f"{other.name}@{other.version}"
    return f"after training its PSNR was {loss_db:.1f} dB below that of {called}, each on its own validation images"
