"""One recipe per model, one loop for all. ``RECIPES`` names them for the command line; ``load`` imports one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_zoo.training.recipe import Recipe

__all__ = ["RECIPES", "load"]

RECIPES: dict[str, str] = {
    "mri-prior": "model_zoo.training.mri_prior",
    "ct-prior": "model_zoo.training.ct_prior",
    "anatomy": "model_zoo.training.anatomy",
    "pet-synthesis": "model_zoo.training.pet_synthesis",
    "standard-dose-pet": "model_zoo.training.standard_dose_pet",
    "standard-dose-pet-semi": "model_zoo.training.standard_dose_semi",
    "synthetic-dir": "model_zoo.training.synthetic_dir",
    "translation": "model_zoo.training.translation",
}
"""Module that holds each recipe as ``RECIPE``, by the recipe's name."""


def load(name: str) -> Recipe[Any]:
    """Return the recipe of that name. Raises KeyError for a name that ``RECIPES`` does not hold."""
    recipe: Recipe[Any] = import_module(RECIPES[name]).RECIPE
    return recipe
