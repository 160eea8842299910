"""No recipe reads a held-out label map: it trains without those files, and the test watches every file it opens."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from model_zoo import training
from model_zoo.simulate import anatomy
from model_zoo.training import loop, recipe

pytestmark = pytest.mark.training

EVERY = pytest.mark.parametrize(
    "name", sorted(name for name, module in training.RECIPES.items() if find_spec(module) is not None)
)
SHOWN = anatomy.TRAIN[:2]
"""Training subjects of these tests: a machine's first reading of a subject registers the atlas to it (20 s)."""
DRAWS = 6
"""Batches that are drawn after the training; each holds several examples."""

MAP = re.compile(r"training_seg_(\d\d)\.nii|regions/v\d+-(\d\d)\.npy")
_watched: list[str] = []
_watching = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and (found := MAP.search(str(arguments[0]))):
        _watched.append(found[1] or found[2])


@pytest.fixture(scope="module")
def _audit_hook() -> None:
    sys.addaudithook(_hook)  # stays for the life of the process: Python cannot remove an audit hook


@contextmanager
def watch_label_maps() -> Iterator[list[str]]:
    """Yield the subjects whose label map, or a file derived from it, is opened by any code in this process."""
    global _watching
    _watched.clear()
    _watching = True
    try:
        yield _watched
    finally:
        _watching = False


@pytest.fixture(scope="module")
def kit_to_train(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data kit with the label maps of ``SHOWN`` only, which is read once for all recipes."""
    return make_kit(SHOWN, kit, tmp_path_factory.mktemp("training") / "kit")


@pytest.fixture(scope="module")
def kit_to_validate(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data kit with the label maps of the validation subjects only, which is read once for all recipes."""
    return make_kit(anatomy.VALIDATION, kit, tmp_path_factory.mktemp("validation") / "kit")


def make_kit(subjects: tuple[str, ...], kit: Path, folder: Path) -> Path:
    """Make a data kit with the label maps of ``subjects`` only; return its folder."""
    maps = folder / "anatomy" / "synthseg-label-maps"
    maps.mkdir(parents=True)
    for subject in subjects:
        name = f"training_seg_{subject}.nii.gz"
        (maps / name).symlink_to(kit / "anatomy" / "synthseg-label-maps" / name)
    for each in (kit / "anatomy").iterdir():
        if each.name != maps.name:
            (folder / "anatomy" / each.name).symlink_to(each)
    for each in kit.iterdir():
        if each.name != "anatomy":
            (folder / each.name).symlink_to(each)
    return folder


def skip_validation(*_: object) -> dict[str, float]:
    """Replace validation, which reads the validation subjects and has a test of its own."""
    return {}


def draw_batches(found: recipe.Recipe[Any], source: recipe.Source, steps: range) -> None:
    c = found.configurations["smoke"]
    for step in steps:
        found.draw_batch(c, source, recipe.seeded(c.seed, step))


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_audit_hook")
@EVERY
def test_training_opens_no_held_out_map_and_needs_none(name: str, kit_to_train: Path, tmp_path: Path) -> None:
    found = training.load(name)
    c = replace(found.configurations["smoke"], steps=2)
    sources = recipe.make_simulated_sources(kit_to_train)
    sources = replace(sources, train=replace(sources.train, subjects=SHOWN))
    with watch_label_maps() as subjects:
        loop.train(replace(found, validate=skip_validation), c, tmp_path / "run", sources=sources)
        draw_batches(found, sources.train, range(2, 2 + DRAWS))
    assert set(subjects) <= set(SHOWN)


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_audit_hook")
@EVERY
def test_validation_opens_no_test_map_and_needs_none(name: str, kit_to_validate: Path) -> None:
    found = training.load(name)
    c = found.configurations["smoke"]
    torch.manual_seed(c.seed)
    network = found.make_network(c).eval()
    with watch_label_maps() as subjects, torch.no_grad():
        metrics = found.validate(network, c, recipe.make_simulated_sources(kit_to_validate).validation)
    assert metrics
    assert set(subjects) <= set(anatomy.VALIDATION)


@EVERY
def test_the_same_training_fails_where_the_training_maps_are_absent(name: str, kit: Path, tmp_path: Path) -> None:
    found = training.load(name)
    source = recipe.make_simulated_sources(make_kit((), kit, tmp_path / "kit")).train
    with pytest.raises(FileNotFoundError, match="training_seg_"):
        draw_batches(found, source, range(2 + DRAWS))


@pytest.mark.usefixtures("_audit_hook")
def test_the_watch_sees_a_map_being_read(kit: Path) -> None:
    with watch_label_maps() as subjects:
        anatomy.read_label_map("13", kit)
    assert set(subjects) == {"13"}


def test_the_command_s_default_sources_are_the_training_and_the_validation_subjects() -> None:
    sources = recipe.make_simulated_sources()
    assert sources.train.subjects == anatomy.TRAIN
    assert sources.validation.subjects == anatomy.VALIDATION
    held_out = {*anatomy.TEST, *anatomy.VALIDATION}
    assert len(held_out) == 4
    assert not held_out & set(sources.train.subjects)
    assert not set(anatomy.TEST) & set(sources.validation.subjects)
