"""Bundles in the layout of MONAI's Model Zoo, with the keys and structure of its files and with small networks.

Three follow bundles of the Zoo: one organ in CT (spleen_ct_segmentation), many in CT (wholeBody_ct_segmentation),
tumours in four MR images (brats_mri_segmentation). ``write_doubling_bundle`` maps an image to an image. The first and
the last have fixed weights, so that their output is known: a threshold, and 2 x + 1. The others have random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = [
    "ORGANS",
    "THRESHOLD_HU",
    "transform",
    "write_brats_bundle",
    "write_doubling_bundle",
    "write_spleen_bundle",
    "write_whole_body_bundle",
]

THRESHOLD_HU = 53.5
"""Brighter voxels are spleen: the middle of the window of -57 to 164 HU."""
ORGANS = ("spleen", "kidney_right", "kidney_left", "vertebrae_L1")
_UNET: dict[str, Any] = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "channels": [4, 8], "strides": [1],
    "num_res_units": 0, "norm": "batch",
}  # fmt: skip
_SHARPNESS = 1000.0
_DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"


def transform(name: str, **arguments: Any) -> dict[str, Any]:
    """Return a transform as a configuration states it; its keys are "image" by default."""
    return {"_target_": name, "keys": "image", **arguments}


def write_spleen_bundle(folder: Path, **metadata: Any) -> Path:
    """Write a bundle that labels voxels brighter than ``THRESHOLD_HU`` as spleen."""
    before = [
        transform("LoadImaged"),
        transform("EnsureChannelFirstd"),
        transform("Orientationd", axcodes="RAS"),
        transform("Spacingd", pixdim=[1.5, 1.5, 2.0], mode="bilinear"),
        transform("ScaleIntensityRanged", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True),
        transform("EnsureTyped"),
    ]
    after = [
        transform("Activationsd", keys="pred", softmax=True),
        _invert(nearest_interp=False),
        transform("AsDiscreted", keys="pred", argmax=True),
        _save(output_ext="@output_ext", output_dtype="@output_dtype", separate_folder="@separate_folder"),
    ]
    definition = _UNET | {"out_channels": 2}
    network = _linear(definition, torch.tensor([0.0, _SHARPNESS]), torch.tensor([0.0, -_SHARPNESS / 2]))
    task_metadata = {
        "version": "0.5.3",
        "task": "Decathlon spleen segmentation",
        "network_data_format": {
            "inputs": {"image": _format("CT", 1, "hounsfield", {"0": "image"})},
            "outputs": {"pred": _format("CT", 2, "segmentation", {"0": "background", "1": "spleen"})},
        },
    }
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "sw_batch_size": 4, "overlap": 0.5}
    return _write(folder, network, definition, before, inferer, after, task_metadata | metadata)


def write_whole_body_bundle(folder: Path) -> Path:
    """Write a bundle of four organs by random weights, with a section of options and an expression for the spacing."""
    before = [
        transform("LoadImaged", keys="@image_key"),
        transform("EnsureTyped", keys="@image_key"),
        transform("EnsureChannelFirstd", keys="@image_key"),
        transform("Orientationd", keys="@image_key", axcodes="RAS"),
        transform("Spacingd", keys="@image_key", pixdim="@pixdim", mode="bilinear"),
        transform("NormalizeIntensityd", keys="@image_key", nonzero=True),
        transform("ScaleIntensityd", keys="@image_key", minv=-1.0, maxv=1.0),
    ]
    after = [
        transform("Activationsd", keys="pred", softmax=True),
        transform("AsDiscreted", keys="pred", argmax=True),
        _invert(orig_keys="@image_key", nearest_interp=True),
        _save(output_postfix="@output_postfix"),
    ]
    count = len(ORGANS) + 1
    definition = _seg_res_net(1, count)
    task_metadata = {
        "version": "0.2.6",
        "task": "TotalSegmentator Segmentation",
        "network_data_format": {
            "inputs": {"image": _format("CT", 1, "hounsfield", {"0": "image"})},
            "outputs": {
                "pred": _format(
                    "CT", count, "segmentation", {str(n): name for n, name in enumerate(("background", *ORGANS))}
                )
            },
        },
    }
    options = {"highres": True, "sw_overlap": 0.25, "sw_batch_size": 1}
    inferer = {
        "_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32],
        "sw_batch_size": "@displayable_configs#sw_batch_size", "overlap": "@displayable_configs#sw_overlap",
        "padding_mode": "replicate", "mode": "gaussian", "device": _DEVICE,
    }  # fmt: skip
    more = {
        "displayable_configs": options,
        "image_key": "image",
        "pixdim": "$[2.5, 2.5, 2.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
        "modelname": "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
    }
    return _write(folder, _random(definition), definition, before, inferer, after, task_metadata, **more)


def write_brats_bundle(folder: Path, *, to_one_map: bool) -> Path:
    """Write a bundle of three nested parts of a tumour by random weights; ``to_one_map`` numbers them as BraTS does."""
    before = [transform("LoadImaged"), transform("NormalizeIntensityd", nonzero=True, channel_wise=True)]
    merged = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
    after = [
        transform("Activationsd", keys="pred", sigmoid=True),
        _invert(meta_keys="pred_meta_dict", nearest_interp=False),
        transform("AsDiscreted", keys="pred", threshold=0.5),
        *([transform("Lambdad", keys="pred", func=merged)] if to_one_map else []),
        _save(meta_keys="pred_meta_dict", output_postfix="seg", resample=False),
    ]
    definition = _seg_res_net(4, 3)
    task_metadata = {
        "version": "0.5.2",
        "task": "Multimodal Brain Tumor segmentation",
        "network_data_format": {
            "inputs": {"image": _format("MR", 4, "magnitude", {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"})},
            "outputs": {
                "pred": _format(
                    "MR", 3, "segmentation", {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"}
                )
            },
        },
    }
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "sw_batch_size": 1, "overlap": 0.5}
    return _write(folder, _random(definition), definition, before, inferer, after, task_metadata)


def write_doubling_bundle(folder: Path, **more: Any) -> Path:
    """Write a bundle that computes 2 x + 1 of an MR image in RAS and leaves the result on that grid."""
    before = [
        transform("LoadImaged", ensure_channel_first=True),
        transform("Orientationd", axcodes="RAS"),
        transform("EnsureTyped"),
    ]
    definition = _UNET | {"out_channels": 1}
    network = _linear(definition, torch.tensor([2.0]), torch.tensor([1.0]))
    task_metadata = {
        "version": "1.0.0",
        "task": "Twice the image",
        "network_data_format": {
            "inputs": {"image": _format("MR", 1, "magnitude", {"0": "image"})},
            "outputs": {"pred": _format("MR", 1, "magnitude", {"0": "doubled"})},
        },
    }
    after = [_save()]
    return _write(folder, network, definition, before, {"_target_": "SimpleInferer"}, after, task_metadata, **more)


def _invert(**arguments: Any) -> dict[str, Any]:
    return transform(
        "Invertd", **({"keys": "pred", "transform": "@preprocessing", "orig_keys": "image"} | arguments)
    ) | {"to_tensor": True}


def _save(**arguments: Any) -> dict[str, Any]:
    return transform("SaveImaged", keys="pred", output_dir="@output_dir", **arguments)


def _format(modality: str, channels: int, kind: str, names: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "image", "format": kind, "modality": modality, "num_channels": channels,
        "spatial_shape": ["8*n", "8*n", "8*n"], "dtype": "float32", "value_range": [0, 1], "is_patch_data": True,
        "channel_def": names,
    }  # fmt: skip


def _seg_res_net(channels: int, answers: int) -> dict[str, Any]:
    return {
        "_target_": "SegResNet", "spatial_dims": 3, "in_channels": channels, "out_channels": answers,
        "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "dropout_prob": 0.2,
    }  # fmt: skip


def _random(definition: dict[str, Any]) -> nn.Module:
    from monai.networks.nets import SegResNet

    torch.manual_seed(7)
    network: nn.Module = SegResNet(**{key: value for key, value in definition.items() if key != "_target_"})
    return network.eval()


def _linear(definition: dict[str, Any], gain: torch.Tensor, offset: torch.Tensor) -> nn.Module:
    """Return MONAI's UNet that answers ``gain[c] * x + offset[c]`` at each voxel, by kernel centres and identities."""
    from monai.networks.nets import UNet

    network: Any = UNet(**{key: value for key, value in definition.items() if key != "_target_"})
    with torch.no_grad():
        for name, weights in network.named_parameters():
            weights.fill_(1.0 if name.endswith("A.weight") or "N.weight" in name else 0.0)
        for name, variance in network.named_buffers():
            if name.endswith("running_var"):
                variance.fill_(1 - 1e-5)  # 1 with the norm's eps
        first, last = network.model[0].conv, network.model[2].conv
        first.weight[0, 0, 1, 1, 1] = 1.0
        last.weight[0, :, 1, 1, 1] = gain
        last.bias[:] = offset
    evaluated: nn.Module = network.eval()
    return evaluated


def _write(
    folder: Path,
    network: nn.Module,
    definition: dict[str, Any],
    before: list[dict[str, Any]],
    inferer: dict[str, Any],
    after: list[dict[str, Any]],
    task_metadata: dict[str, Any],
    **more: Any,
) -> Path:
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    inference = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "output_ext": ".nii.gz",
        "output_dtype": "$numpy.float32",
        "output_postfix": "trans",
        "separate_folder": True,
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "device": _DEVICE,
        "network_def": definition,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 4},
        "inferer": inferer,
        "postprocessing": {"_target_": "Compose", "transforms": after},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
            "val_handlers": "@handlers", "amp": True,
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip
    metadata = {
        "monai_version": "1.4.0", "intended_use": "An example, not for diagnosis", "data_source": "nobody's images",
        "authors": "A test",
    }  # fmt: skip
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata | task_metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(inference | more))
    (folder / "docs" / "README.md").write_text("# A bundle\n")
    (folder / "LICENSE").write_text("Apache License\n")
    return folder
