"""PET series as scanners send them, and a bundle ``standard_dose_pet`` with a known answer: a blur."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import PositronEmissionTomographyImageStorage
from safetensors.torch import save_file

from model_zoo.bundle import weights_digest
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.registry import WEIGHTS
from model_zoo.simulate.pet.low_dose import REGIONS
from model_zoo.standard_dose import EMBEDDING, IN_CHANNELS, OUT_CHANNELS
from model_zoo.training.standard_dose_pet import RECIPE
from pipelines.contract import Grid
from tests.series import write_slices

__all__ = ["FACTOR", "write_pet", "write_pet_bundle"]

WEIGHT_KG, DOSE_BQ, HALF_LIFE_S, UPTAKE_S = 70.0, 350e6, 6586.2, 3600.0
FACTOR = 1000 * WEIGHT_KG / (DOSE_BQ * 2 ** (-UPTAKE_S / HALF_LIFE_S))
"""SUVbw per Bq/ml of the series of ``write_pet``."""

_DEFINITION: dict[str, Any] = {
    "in_channels": IN_CHANNELS, "out_channels": OUT_CHANNELS, "channels": [4, 8], "blocks": 1, "unshuffle": 1,
    "norm": "soft", "embedding": EMBEDDING, "maps": len(REGIONS),
}  # fmt: skip
_OF_MR = ("MagneticFieldStrength", "RepetitionTime", "EchoTime")


def _keep_unchanged(_: int, ds: Dataset) -> None:
    """Leave the data set unchanged."""


def write_pet(
    folder: Path,
    grid: Grid,
    bq_ml: NDArray[np.float32],
    *,
    edit: Callable[[int, Dataset], None] = _keep_unchanged,
    key: str = "pet",
) -> list[Path]:
    """Write one file per slice, each with its own rescale slope; ``edit(k, ds)`` changes a slice before it is saved."""
    slopes = np.maximum(np.abs(bq_ml).max(axis=(1, 2)), 1.0) / 32000

    def pet(k: int, ds: Dataset) -> None:
        for keyword in _OF_MR:
            del ds[keyword]
        ds.SOPClassUID, ds.Modality = PositronEmissionTomographyImageStorage, "PT"
        ds.Units, ds.DecayCorrection, ds.SeriesType = "BQML", "START", ["STATIC", "IMAGE"]
        ds.CorrectedImage, ds.ImageType = ["DECY", "ATTN", "SCAT", "RAN", "NORM"], ["ORIGINAL", "PRIMARY"]
        ds.RescaleSlope, ds.RescaleIntercept = f"{slopes[k]:.9g}", "0"
        ds.SeriesDate = ds.AcquisitionDate = "20260101"
        ds.SeriesTime = ds.AcquisitionTime = "130000"
        ds.ActualFrameDuration, ds.FrameReferenceTime, ds.PatientWeight = "600000", "0", f"{WEIGHT_KG}"
        source = Dataset()
        source.Radiopharmaceutical, source.RadiopharmaceuticalStartTime = "Fluorodeoxyglucose", "120000"
        source.RadionuclideTotalDose, source.RadionuclideHalfLife = f"{DOSE_BQ:.0f}", f"{HALF_LIFE_S}"
        ds.RadiopharmaceuticalInformationSequence = [source]
        edit(k, ds)

    stored = np.round(bq_ml / slopes[:, None, None]).astype(np.int16)
    return write_slices(folder, grid, stored, edit=pet, key=key)


def write_pet_bundle(root: Path, copy: int = 1) -> Path:
    """Write a bundle whose network returns the image blurred by 0, 1, 2 or 4 voxels (``copy`` 0 to 3), b = A."""
    bundle = root / "standard_dose_pet"
    for folder in ("configs", "models"):
        (bundle / folder).mkdir(parents=True, exist_ok=True)
    network = VolumeUNet(**_DEFINITION)
    with torch.no_grad():
        for weights in network.last.parameters():
            weights.zero_()
        network.last.bias[2 + copy] = 60.0  # type: ignore[index]  # torch types it as optional
    save_file(network.state_dict(), bundle / WEIGHTS)
    target = {"_target_": "model_zoo.networks.volume_unet.VolumeUNet"}
    inference = {"network_def": target | _DEFINITION, "regions": list(REGIONS), "spacings_mm": [2.0, 4.0]}
    metadata = {
        "name": "standard_dose_pet",
        "version": "0.0.1",
        "trained_on": "nothing: a blur",
        "input_contract": RECIPE.facts["input_contract"],
        "weights_sha256": weights_digest(bundle / WEIGHTS),
    }
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference))
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return bundle
