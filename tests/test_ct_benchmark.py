"""The benchmark of CT measures what its page says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.ct_reconstruction import CASES, Case, measure, rows, score, take_best
from model_zoo.radon import to_attenuation
from model_zoo.simulate import ct

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain


def test_bias_is_the_mean_error_inside_each_tissue() -> None:
    truth = np.full((40, 40), -1000.0, np.float32)
    truth[5:20, 5:35] = 40.0
    truth[20:35, 5:35] = 500.0
    x = truth + np.where(truth > 100, 30.0, -10.0).astype(np.float32)
    x[5, 5] = 5000.0  # on the border of tissue and air
    found = score(x, truth)
    assert found["soft tissue by CT"] == pytest.approx(-10.0)
    assert found["bone by CT"] == pytest.approx(30.0)
    assert "lung by CT" not in found


def test_the_best_setting_is_chosen_for_each_image() -> None:
    reference = torch.stack([torch.zeros(16, 16), torch.full((16, 16), 100.0)])
    candidates = [
        to_attenuation(reference + torch.tensor(shift).reshape(2, 1, 1)) for shift in ([20.0, 1.0], [5.0, 40.0])
    ]
    assert [each["setting"] for each in take_best(candidates, reference)] == [1, 0]


def test_few_views_favour_total_variation_and_the_table_has_a_row_for_each_method() -> None:
    generator = torch.Generator().manual_seed(1)
    torso = ct.draw_torso_slice(generator, size=64, pixel_mm=5.6, height_mm=400.0)
    with torch.no_grad():
        methods = measure(Case(20), torch.stack([torso, torso.flip(0)]), 32)
    psnr = {name: min(each["psnr"] for each in scores) for name, scores in methods.items()}
    assert psnr["total variation"] > psnr["FBP"] + 1
    assert psnr["total variation"] > psnr["CGLS"] + 1
    table = list(rows({"20 views": {"images": ["a", "b"], "methods": methods}}))
    assert len(table) == 2 + len(methods)
    assert {line.count("|") for line in table} == {table[0].count("|")}


def test_cases_cover_views_arcs_and_photons() -> None:
    assert {case.views for case in CASES.values() if case.arc_deg == 180} == {20, 60, 120, 360}
    assert {case.arc_deg for case in CASES.values()} == {90, 120, 150, 180}
    assert {case.photons for case in CASES.values()} == {1e4, 1e5, 1e6}
