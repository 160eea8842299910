"""Write a trained network as a MONAI bundle: bfloat16 safetensors, metadata with digest and origin, licence."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import save_file

from model_zoo.registry import WEIGHTS, weights_digest
from model_zoo.training.mri_prior import SIGMA_DATA, ema_weights

__all__ = ["write_mri_prior"]

TRAINED_ON = "simulation only (random planes through SynthSeg label maps); never on patient images"

CARD = """# mri_prior {version}

A denoiser of complex brain MR slices, the prior of reconstruction from undersampled k-space. {step} steps, {made_on}.

**These weights were trained on simulation only. They have not been validated on patients. Research use only.**

Recipe, configuration, data, metrics and digest: `configs/metadata.json`.
"""


def write_mri_prior(checkpoint: Path, bundle: Path, *, version: str, made_on: date) -> None:
    """Turn the averaged weights of ``checkpoint`` into the bundle folder ``bundle``, replacing what is there.

    The metrics recorded are those of the last line of the run's log. A model card (``docs/README.md``)
    that is there is left as it is.
    """
    average, configuration, step = ema_weights(checkpoint)
    (bundle / "configs").mkdir(parents=True, exist_ok=True)
    (bundle / "models").mkdir(exist_ok=True)
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in average.items()}, bundle / WEIGHTS)
    (bundle / WEIGHTS).chmod(0o644)  # safetensors makes it for its owner only
    inference = {
        "network_def": {
            "_target_": "model_zoo.networks.local_unet.LocalUNet",
            "channels": list(configuration.channels),
            "blocks": configuration.blocks,
        },
        "sigma_data": SIGMA_DATA,
    }
    metadata = {
        "name": "mri_prior",
        "version": version,
        "task": "Prior of complex brain MR slices for reconstruction from undersampled k-space",
        "intended_use": "Research only. Not for diagnosis. Reconstruction of brain MR by posterior sampling.",
        "trained_on": TRAINED_ON,
        "input_contract": {
            "organ": "head",
            "scale": "99th percentile of the magnitude is 1",
            "channels": "real, imaginary",
        },
        "recipe": "mri-prior",
        "configuration": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(configuration).items()},
        "steps": step,
        "made_on": made_on.isoformat(),
        "metrics": _last_metrics(checkpoint.with_name("log.jsonl")),
        "licence": "Apache-2.0",
        "data_licence": "SynthSeg label maps: Apache-2.0; no image data",
        "weights_sha256": weights_digest(bundle / WEIGHTS),
    }
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference, indent=2) + "\n")
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    card = bundle / "docs" / "README.md"
    if not card.exists():
        card.parent.mkdir(exist_ok=True)
        card.write_text(CARD.format(version=version, step=step, made_on=made_on.isoformat()))
    licence = Path(__file__).parents[2] / "LICENSE"
    if licence.is_file():
        shutil.copyfile(licence, bundle / "LICENSE")


def _last_metrics(log: Path) -> dict[str, float]:
    """Denoising PSNR in dB on validation patches by noise level, from the last line of a run's log."""
    line = json.loads(log.read_text().splitlines()[-1])
    return {f"denoising_{name}_db": round(value, 2) for name, value in line.items() if name.startswith("psnr")}
