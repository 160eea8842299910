"""No recipe reads a held-out label map: it trains where their files are absent, and every file it opens is watched."""

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

EVERY = pytest.mark.parametrize(
    "name", sorted(name for name, module in training.RECIPES.items() if find_spec(module) is not None)
)
PROCEDURAL = ("standard-dose-pet",)
"""Recipes of which a step may use no label map at all: the body below the head is made of ellipsoids."""

ENOUGH = 4
"""Subjects after which no more batches are drawn: a subject takes seconds to read."""

MAP = re.compile(r"training_seg_(\d\d)\.nii|regions/v\d+-(\d\d)\.npy")
_watched: list[str] = []
_watching = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and (found := MAP.search(str(arguments[0]))):
        _watched.append(found[1] or found[2])


@pytest.fixture(scope="module")
def _audited() -> None:
    sys.addaudithook(_hook)  # stays for the life of the process: Python has no way to take one away


@contextmanager
def opened() -> Iterator[list[str]]:
    """Subjects whose label map, or what was derived from it, is opened by any code in this process."""
    global _watching
    _watched.clear()
    _watching = True
    try:
        yield _watched
    finally:
        _watching = False


def kit_with(subjects: tuple[str, ...], kit: Path, folder: Path) -> Path:
    """The data kit with the label maps of ``subjects`` only."""
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


def nothing(*_: object) -> dict[str, float]:
    """In place of validation, which reads the validation subjects and has a test of its own."""
    return {}


@pytest.mark.timeout(1800)  # a machine's first reading of a subject registers the atlas to it
@pytest.mark.usefixtures("_audited")
@EVERY
def test_training_opens_no_held_out_map_and_needs_none(name: str, kit: Path, tmp_path: Path) -> None:
    found = training.load(name)
    c = replace(found.configurations["smoke"], steps=2)
    sources = recipe.make_simulated_sources(kit_with(anatomy.TRAIN, kit, tmp_path / "kit"))
    with opened() as subjects:
        loop.train(replace(found, validate=nothing), c, tmp_path / "run", sources=sources)
        for step in range(2, 30):
            if len(set(subjects)) < ENOUGH:
                found.draw_batch(c, sources.train, recipe.seeded(c.seed, step))
    assert subjects or name in PROCEDURAL
    assert set(subjects) <= set(anatomy.TRAIN)


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_audited")
@EVERY
def test_validation_opens_no_test_map_and_needs_none(name: str, kit: Path, tmp_path: Path) -> None:
    found = training.load(name)
    c = found.configurations["smoke"]
    root = kit_with(anatomy.VALIDATION, kit, tmp_path / "kit")
    torch.manual_seed(c.seed)
    network = found.make_network(c).eval()
    with opened() as subjects, torch.no_grad():
        metrics = found.validate(network, c, recipe.make_simulated_sources(root).validation)
    assert metrics
    assert set(subjects) <= set(anatomy.VALIDATION)


def test_the_same_training_fails_where_a_training_map_is_absent(kit: Path, tmp_path: Path) -> None:
    root = kit_with(("01",), kit, tmp_path / "kit")
    found = training.load("mri-prior")
    c = found.configurations["smoke"]
    with pytest.raises(FileNotFoundError, match="training_seg_"):
        loop.train(replace(found, validate=nothing), c, tmp_path / "run", sources=recipe.make_simulated_sources(root))


@pytest.mark.usefixtures("_audited")
def test_the_watch_sees_a_map_being_read(kit: Path) -> None:
    with opened() as subjects:
        anatomy.label_map("13", kit)
    assert set(subjects) == {"13"}


def test_the_command_s_default_sources_are_the_training_and_the_validation_subjects() -> None:
    sources = recipe.make_simulated_sources()
    assert sources.train.subjects == anatomy.TRAIN
    assert sources.validation.subjects == anatomy.VALIDATION
    held_out = {*anatomy.TEST, *anatomy.VALIDATION}
    assert len(held_out) == 4
    assert not held_out & set(sources.train.subjects)
    assert not set(anatomy.TEST) & set(sources.validation.subjects)
