"""The target of each recipe that the node may learn: a measured image, or a label map that a person answers for.

A generated image is never a target. A recipe whose target the node does not hold is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from dicomnode.errors import ConfigError
from dicomnode.routing.routing import MAIN_INPUT

if TYPE_CHECKING:
    from dicomnode.config.learning import LearningConfig

__all__ = ["TARGETS", "Target", "find_target"]


@dataclass(frozen=True)
class Target:
    """The target of a recipe, and the columns of its table.

    ``column``: of the target; ``statement``: in words. ``inputs``: by column, the job's input that fills it.
    ``measured``: columns of measured series of the study; ``label_maps``: columns of label maps that a person drew;
    both are named under ``with``, those of ``optional`` need not be. ``numbers``: columns that node.toml states.
    ``has_one_unit``: input and target are compared value by value, so both need the same unit.
    ``structures``: column that the anatomy model fills, for scales and never as the target. ``figure``: begin of the
    names of the numbers whose mean compares two versions, and ``figure_title`` in words.
    """

    column: str
    statement: str
    inputs: Mapping[str, str]
    figure: str
    figure_title: str
    measured: tuple[str, ...] = ()
    label_maps: tuple[str, ...] = ()
    optional: frozenset[str] = field(default_factory=frozenset)
    numbers: tuple[str, ...] = ()
    structures: str = ""
    has_one_unit: bool = False


TARGETS: Mapping[str, Target] = MappingProxyType({
    "standard-dose-pet": Target(
        "standard", "the standard-dose PET that the scanner measured, in the study of the low-dose one",
        {"low": MAIN_INPUT}, "gain_db_", "mean gain over the low-dose image, dB",
        measured=("standard",), numbers=("dose",), has_one_unit=True,
    ),
    "synthetic-dir": Target(
        "dir", "the double inversion recovery that the scanner measured, in the study of the FLAIR",
        {"flair": MAIN_INPUT, "t1w": "t1w"}, "mae", "mean absolute error of the DIR, over its scale",
        measured=("dir",), label_maps=("lesions",), optional=frozenset({"t1w", "lesions"}), structures="structures",
    ),
    "anatomy": Target(
        "structures", "the label map that a person drew or corrected; for training also one that a reader accepted",
        {"image": MAIN_INPUT}, "dice_again", "mean Dice of the structures",
        label_maps=("structures",), optional=frozenset({"structures"}),
    ),
    "mri-prior": Target(
        "image", "a magnitude image that the scanner measured, in the study of the k-space",
        {}, "denoising_psnr_", "mean PSNR of denoising, dB", measured=("image",),
    ),
})  # fmt: skip

_REFUSED = {
    "pet-synthesis": "its target is a PET of another examination, and its covariates stand in no header",
    "translation": "the plan of each of its models has its own columns",
    "standard-dose-pet-semi": "its table mixes pairs and single images, which nobody has sorted here",
}
"""Recipes that the node does not learn, with the reason."""


def find_target(entry: LearningConfig, recipe: str) -> Target:
    """Return the target of the recipe. Raises ConfigError where the node holds none or node.toml lacks a part of it."""
    target = TARGETS.get(recipe)
    if target is None:
        reason = _REFUSED.get(recipe, "the node knows no measured or accepted target for it")
        raise ConfigError(
            f"learning {entry.name}: the recipe {recipe or 'of this bundle'} is not learned from decided cases: "
            f"{reason}; make a table by hand and use 'dicomnode train'"
        )
    known = (*target.measured, *target.label_maps)
    if unknown := sorted(set(entry.with_) - set(known)):
        raise ConfigError(f"learning {entry.name}: 'with' names {unknown[0]!r}; {recipe} takes {', '.join(known)}")
    if missing := [each for each in known if each not in (*entry.with_, *target.optional)]:
        raise ConfigError(f"learning {entry.name}: 'with' lacks {missing[0]!r}: {target.statement}")
    if set(entry.numbers) != set(target.numbers):
        raise ConfigError(
            f"learning {entry.name}: 'numbers' needs exactly {', '.join(target.numbers) or 'nothing'} for {recipe}"
        )
    return target
