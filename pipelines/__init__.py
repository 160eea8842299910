"""The clinical questions this node answers, one module each, found by name. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipelines.contract import Pipeline

if TYPE_CHECKING:
    from model_zoo.bundle import BundleFacts

__all__ = ["BUNDLES", "BUNDLE_PREFIX", "MODULES", "load", "load_bundle"]

BUNDLE_PREFIX = "bundle:"
"""Prefix of a pipeline that is a bundle with inference steps of its own, as MONAI's bundles are: ``bundle:NAME``."""

MODULES = MappingProxyType(
    {
        "anatomy": "pipelines.anatomy",
        "mri_reconstruction": "pipelines.mri_reconstruction",
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
        "standard_dose_pet": "standard_dose_pet",
        "pet_synthesis": "pet_synthesis",
        "synthetic_dir": "synthetic_dir",
        "ms_lesions": "synthetic_dir",
    }
)
"""Bundle of each pipeline, as its module states it; readable without importing torch."""


def load(name: str) -> Pipeline:
    """Return the pipeline of that name. Raises KeyError that lists the known names."""
    if name not in MODULES:
        raise KeyError(f"no pipeline {name!r}; there are: {', '.join(sorted(MODULES))}")
    pipeline: Pipeline = importlib.import_module(MODULES[name]).PIPELINE
    return pipeline


def load_bundle(facts: BundleFacts) -> Pipeline:
    """Return the pipeline that a bundle of MONAI's layout defines; its name is ``BUNDLE_PREFIX`` and the bundle's."""
    pipeline: Pipeline = importlib.import_module("pipelines.bundle").make_pipeline(facts)
    return pipeline
