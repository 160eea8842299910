"""The SynthSR maps as subjects of the simulator: brains in the middle, with fluid and a head of shells."""

from __future__ import annotations

import numpy as np
import pytest

from model_zoo.data_kit import data_root
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import anatomy, brain_label_maps


@pytest.fixture(scope="module")
def tissue() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        data_root()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    found: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = anatomy.read_tissue_map("sr1").numpy()
    return found


def test_a_brain_has_fluid_bone_and_fat_about_it(tissue: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    names = list(TISSUES)
    litres = {name: float((tissue == names.index(name)).sum()) / 1e6 for name in names}
    assert 0.3 < litres["white matter"] < 0.8
    assert 0.3 < litres["cortex"] < 0.9
    assert 0.1 < litres["csf"] < 0.6
    assert litres["bone"] > 0.3
    assert litres["fat"] > 0.2
    assert litres["eye"] == 0
    inside = np.argwhere((tissue == names.index("white matter")) | (tissue == names.index("cortex")))
    assert np.abs(inside.mean(0) - 128).max() < 12
    assert inside.min() > 15, "shells fit in the cube"


def test_no_split_of_validation_or_test_has_them() -> None:
    assert not set(brain_label_maps.SUBJECTS) & {*anatomy.TRAIN, *anatomy.VALIDATION, *anatomy.TEST}
