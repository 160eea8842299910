"""Plain rules on FLAIR find a lesion, and a core grows to the half level of its hazy rim."""

from __future__ import annotations

import numpy as np

from model_zoo.evaluation.lesion_baselines import segment_by_seeds, segment_by_threshold
from model_zoo.lesion_decision import LesionCriteria
from model_zoo.lesion_growth import grow_to_half_level
from model_zoo.structures import number

SHAPE = (40, 40, 40)
DISTANCE = np.sqrt(sum((n - 20.0) ** 2 for n in np.indices(SHAPE)))
FLAIR = np.asarray(1 + np.random.default_rng(1).normal(0, 0.02, SHAPE) + np.clip((7 - DISTANCE) / 4, 0, 1), np.float32)
WHITE = np.full(SHAPE, number("cerebral white matter"), np.uint8)


def test_a_core_grows_to_the_half_level_of_its_rim() -> None:
    grown = grow_to_half_level(DISTANCE <= 2, FLAIR, 1.0, np.ones(SHAPE, bool))
    assert grown[DISTANCE < 4.6].all()
    assert not grown[DISTANCE > 5.4].any()


def test_both_rules_find_the_lesion_and_nothing_else() -> None:
    structure = WHITE.copy()
    structure[0] = 0
    for mask in (segment_by_seeds(FLAIR, structure), segment_by_threshold(FLAIR, structure)):
        assert mask[DISTANCE < 4.6].all()
        assert not mask[DISTANCE > 7.5].any()


def test_growth_reaches_only_what_is_connected_and_allowed() -> None:
    bright = np.full(SHAPE, 2, np.float32)
    bright[:, :, 30] = 1
    allowed = np.indices(SHAPE)[0] >= 20
    grown = grow_to_half_level(DISTANCE <= 2, bright, 1.0, allowed)
    assert not grown[:, :, 30:].any()
    assert not (grown & ~allowed & (DISTANCE > 2)).any()


def test_specks_and_heads_without_white_matter_give_nothing() -> None:
    flair = np.ones(SHAPE, np.float32)
    flair[20, 20, 20:22] = 3
    assert not segment_by_threshold(flair, WHITE).any()
    assert not segment_by_seeds(flair, np.zeros(SHAPE, np.uint8)).any()


def test_a_selected_part_grows_over_its_rim_in_white_matter_only() -> None:
    probability = np.where(DISTANCE <= 3, 0.95, 0.0).astype(np.float32)
    structure = WHITE.copy()
    structure[:, :, 23:] = number("putamen")
    cut = LesionCriteria(growth_mm=0).select(probability, FLAIR, structure)
    grown = LesionCriteria().select(probability, FLAIR, structure)
    white = structure == WHITE
    assert not cut.mask[DISTANCE > 3].any()
    assert grown.mask[white & (DISTANCE < 4.6)].all()
    assert not grown.mask[DISTANCE > 5.4].any()
    assert not (grown.mask & ~cut.mask & ~white).any()
    assert grown.lesions[0].volume_mm3 == grown.mask.sum() > cut.lesions[0].volume_mm3
