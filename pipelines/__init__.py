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
"""Before the name of a bundle that brings its own way from an image to a result, as MONAI's do."""

MODULES = MappingProxyType(
    {
        "anatomy": "pipelines.anatomy",
        "mri_reconstruction": "pipelines.mri_reconstruction",
        "standard_dose_pet": "pipelines.standard_dose_pet",
        "pet_synthesis": "pipelines.pet_synthesis",
        "synthetic_dir": "pipelines.synthetic_dir",
    }
)

BUNDLES = MappingProxyType(
    {
        "anatomy": "anatomy",
        "mri_reconstruction": "mri_prior",
        "standard_dose_pet": "standard_dose_pet",
        "pet_synthesis": "pet_synthesis",
        "synthetic_dir": "synthetic_dir",
    }
)
"""By pipeline the ``bundle`` of its module, for those who may not import torch to ask."""


def load(name: str) -> Pipeline:
    """The pipeline of that name; raises KeyError naming those there are."""
    if name not in MODULES:
        raise KeyError(f"no pipeline {name!r}; there are: {', '.join(sorted(MODULES))}")
    pipeline: Pipeline = importlib.import_module(MODULES[name]).PIPELINE
    return pipeline


def load_bundle(facts: BundleFacts) -> Pipeline:
    """The pipeline that a bundle of MONAI's layout is; ``BUNDLE_PREFIX`` and its name is what it is called."""
    pipeline: Pipeline = importlib.import_module("pipelines.bundle").make_pipeline(facts)
    return pipeline
