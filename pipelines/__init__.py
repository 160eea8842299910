"""The clinical questions this node answers, one module each, found by name. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipelines.contract import Pipeline

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts

__all__ = [
    "BUNDLES",
    "BUNDLE_PREFIX",
    "INPUTS",
    "MODULES",
    "TITLES",
    "TRANSLATE_PREFIX",
    "find_bundle_name",
    "format_inputs",
    "load",
    "load_bundle",
]

BUNDLE_PREFIX = "bundle:"
"""Prefix of a pipeline that is a bundle with inference steps of its own, as MONAI's bundles are: ``bundle:NAME``."""
TRANSLATE_PREFIX = "translate:"
"""Prefix of a pipeline that is a bundle of the recipe ``translation``: ``translate:NAME``."""
_MODULES_BY_PREFIX = MappingProxyType({BUNDLE_PREFIX: "pipelines.bundle", TRANSLATE_PREFIX: "pipelines.translation"})

MODULES = MappingProxyType(
    {
        "anatomy": "pipelines.anatomy",
        "mri_reconstruction": "pipelines.mri_reconstruction",
        "ct_reconstruction": "pipelines.ct_reconstruction",
        "standard_dose_pet": "pipelines.standard_dose_pet",
        "pet_synthesis": "pipelines.pet_synthesis",
        "synthetic_dir": "pipelines.synthetic_dir",
        "ms_lesions": "pipelines.ms_lesions",
    }
)

BUNDLES = MappingProxyType(
    {
        "anatomy": "anatomy",
        "mri_reconstruction": "mri_prior",
        "ct_reconstruction": "ct_prior",
        "standard_dose_pet": "standard_dose_pet",
        "pet_synthesis": "pet_synthesis",
        "synthetic_dir": "synthetic_dir",
        "ms_lesions": "synthetic_dir",
    }
)
"""Bundle of each pipeline, as its module states it; readable without importing torch."""

TITLES = MappingProxyType(
    {
        "anatomy": "Structures of the brain from any MR image of the head",
        "mri_reconstruction": "MR image from undersampled k-space",
        "ct_reconstruction": "CT image from few or noisy projections",
        "standard_dose_pet": "Standard-dose PET from low-dose PET",
        "pet_synthesis": "Amyloid and tau PET from a T1w image",
        "synthetic_dir": "Double inversion recovery from FLAIR and T1w, with lesions",
        "ms_lesions": "Multiple sclerosis lesions from FLAIR and T1w",
    }
)
"""Title of each pipeline, as its module states it."""

INPUTS = MappingProxyType(
    {
        "anatomy": "head",
        "mri_reconstruction": "kspace",
        "ct_reconstruction": "projections",
        "standard_dose_pet": "pet [mr] [ct] [organs]",
        "pet_synthesis": "t1w [covariates]",
        "synthetic_dir": "flair [t1w] [prior_flair] [prior_t1w]",
        "ms_lesions": "flair [t1w]",
    }
)
"""Inputs of each pipeline, as its module states them, optional ones in brackets."""


def load(name: str) -> Pipeline:
    """Return the pipeline of that name. Raises KeyError that lists the known names."""
    if name not in MODULES:
        raise KeyError(f"no pipeline {name!r}; there are: {', '.join(sorted(MODULES))}")
    pipeline: Pipeline = importlib.import_module(MODULES[name]).PIPELINE
    return pipeline


def format_inputs(pipeline: Pipeline) -> str:
    """Return the names of the inputs, optional ones in brackets."""
    return " ".join(each.name if each.required else f"[{each.name}]" for each in pipeline.inputs)


def find_bundle_name(pipeline: str) -> str:
    """Return the bundle that a pipeline with a prefix is named after, or ""."""
    for prefix in _MODULES_BY_PREFIX:
        if pipeline.startswith(prefix):
            return pipeline.removeprefix(prefix)
    return ""


def load_bundle(name: str, facts: BundleFacts) -> Pipeline:
    """Return the pipeline ``name`` that a bundle defines: a prefix and the bundle's name."""
    module = _MODULES_BY_PREFIX[f"{name.partition(':')[0]}:"]
    pipeline: Pipeline = importlib.import_module(module).make_pipeline(facts)
    return pipeline
