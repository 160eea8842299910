"""The evaluation of synthetic DIR: its baselines use the stated inputs only, its scores count as described."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_zoo import similarity
from model_zoo.bundle import Model
from model_zoo.evaluation import dir_cases, dir_contrast, find_evaluator
from model_zoo.evaluation import synthetic_dir as evaluation
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.training.recipe import seeded


@pytest.fixture(scope="module")
def case() -> dir_cases.Case:
    return dir_cases.build_case("phantom", "strong atrophy", 12, None)


def _make_model() -> Model:
    torch.manual_seed(0)
    network = VolumeUNet(4, 6, channels=(4, 8), dropout=0.2).eval()
    return Model("synthetic_dir", "0", "0" * 64, {}, network, {}, "cpu")


@pytest.mark.slow
def test_a_case_is_the_same_at_every_call(case: dir_cases.Case) -> None:
    again = dir_cases.build_case("phantom", "strong atrophy", 12, None)
    assert torch.equal(case.flair, again.flair)
    assert torch.equal(case.dir, again.dir)


def test_a_case_is_scaled_by_its_normal_white_matter(case: dir_cases.Case) -> None:
    assert float(case.flair[case.white_matter].median()) == pytest.approx(1.0, abs=1e-4)
    assert float(case.t1w[case.white_matter].median()) == pytest.approx(1.0, abs=1e-4)
    assert not bool((case.white_matter & case.mask).any())


def test_lookup_comes_closer_than_any_scale_of_flair(case: dir_cases.Case) -> None:
    lookup = dir_cases.look_up_dir(case, seeded(1), entries=100_000)
    flair = dir_cases.fit_affine(case.flair, case)
    assert similarity.psnr(lookup, case.dir, 2.0, case.brain) > similarity.psnr(flair, case.dir, 2.0, case.brain) + 1


def test_a_fit_undoes_an_affine_map(case: dir_cases.Case) -> None:
    found = dir_cases.fit_affine(3.0 - 2.0 * case.dir, case)
    assert torch.allclose(found[case.brain], case.dir[case.brain], atol=1e-4)


def test_the_true_mask_finds_every_lesion_and_nothing_else(case: dir_cases.Case) -> None:
    perfect = evaluation.score_lesions(case.mask, case)
    nothing = evaluation.score_lesions(torch.zeros_like(case.mask), case)
    assert perfect["recall"] == perfect["dice"] == 1.0
    assert perfect["false"] == 0
    assert nothing["recall"] == nothing["dice"] == 0.0
    everything = torch.zeros_like(case.mask)
    everything[2:5, 2:5, 2:5] = True
    assert evaluation.score_lesions(everything, case)["false"] == 1


def test_artefacts_fool_a_copy_of_flair_and_not_the_truth(case: dir_cases.Case) -> None:
    excess = case.dir + torch.from_numpy((case.artefact > 0).astype(np.float32))
    fooled = evaluation.score_artefacts(excess, torch.from_numpy(case.artefact > 0), case)
    right = evaluation.score_artefacts(case.dir, torch.zeros_like(case.mask), case)
    assert fooled["bright"] == fooled["called"] == fooled["count"] > 0
    assert right["bright"] == right["called"] == 0


def test_contrast_to_noise_is_what_was_put_in(case: dir_cases.Case) -> None:
    noise = torch.randn(case.dir.shape, generator=seeded(4))
    image = 0.1 * noise + 1.5 * case.mask.float()
    quiet = 0.05 * noise + 1.5 * case.mask.float()
    found = dir_contrast.measure_contrasts({"image": image, "quiet": quiet}, case)
    values = np.array([v for place in found["image"].values() for v in place])
    assert len(values) == len(case.lesions)
    assert np.median(values[:, 0]) == pytest.approx(1.5, abs=0.05)
    assert np.median(values[:, 1]) == pytest.approx(15, rel=0.1)
    assert np.nanmedian(values[:, 2]) == pytest.approx(15, rel=0.15)
    doubled = np.array([v for place in found["quiet"].values() for v in place])
    assert np.median(doubled[:, 1]) == pytest.approx(2 * np.median(values[:, 1]), rel=0.05)


def test_the_acquired_dir_has_the_noise_of_the_flair(case: dir_cases.Case) -> None:
    e = case.examination
    noise = (dir_contrast.add_scan_noise(case) - case.dir)[case.cortex & (case.dir > 0.7)]
    absolute = float(noise.std()) * e.unit / e.flair_level
    assert absolute == pytest.approx(0.02 * float(case.flair[case.brain].mean()), rel=0.1)


@pytest.mark.slow
def test_a_quick_evaluation_fills_every_table() -> None:
    said: list[str] = []
    found = find_evaluator("synthetic_dir")(
        _make_model(), root=None, quick=True, progress=lambda _, step: said.append(step)
    )
    titles = [table.title for table in found.tables]
    assert len(titles) == 6
    assert all(table.rows for table in found.tables)
    assert np.isfinite(found.metrics["psnr_db"])
    assert said
    assert "did better" in found.weaker


def test_cases_are_of_the_test_subjects_only(kit: Path) -> None:
    from model_zoo.simulate import anatomy

    assert {subject for subject, _, _ in dir_cases.list_cases(False)} == set(anatomy.TEST)
