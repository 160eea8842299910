"""Hazy rims keep the masks of lesions; bright tissue, magnetisation transfer and thick slices change images only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import ndimage

from model_zoo.simulate import flair_brightness, ms
from model_zoo.simulate.heads import Head
from model_zoo.simulate.lesions import Lesions, draw_lesions, remove_lesions
from model_zoo.simulate.phantom import make_phantom
from model_zoo.structures import number
from model_zoo.training.dir_losses import contrast_loss
from model_zoo.training.recipe import seeded

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def head() -> Head:
    return remove_lesions(make_phantom((80, 96, 80), 2.0))


@pytest.fixture(scope="module")
def lesions(head: Head) -> Lesions:
    return draw_lesions(head, seeded(2), count=12)


def test_hazy_rims_keep_every_mask_and_change_white_matter_only(head: Head, lesions: Lesions) -> None:
    hazy = flair_brightness.blur_rims(lesions, head, seeded(3))
    assert torch.equal(hazy.mask, lesions.mask)
    assert torch.equal(hazy.label[hazy.mask], lesions.label[lesions.mask])
    changed = (hazy.extent > 0) & ~lesions.mask
    assert changed.sum() > ((lesions.extent > 0) & ~lesions.mask).sum()
    white = torch.tensor(flair_brightness.WHITE)
    assert torch.isin(head.structure[changed], white).all()
    assert (hazy.label[hazy.extent > 0] > 0).all()


def test_a_head_without_lesions_stays_without(head: Head) -> None:
    none = draw_lesions(head, seeded(2), count=0)
    assert not flair_brightness.blur_rims(none, head, seeded(3)).extent.any()


def test_bright_tissue_lies_in_the_head_and_beside_the_ventricles(head: Head) -> None:
    added = torch.stack([flair_brightness.draw_bright_tissue(head, seeded(n)) for n in range(4)])
    assert not added[:, head.structure == 0].any()
    assert added.isfinite().all()
    assert added.abs().max() < 4
    away = torch.from_numpy(ndimage.distance_transform_edt(head.structure != number("lateral ventricles")) * 2.0)
    white, mean = head.structure == number("cerebral white matter"), added.mean(0)
    assert mean[white & (away < 3)].mean() > mean[white & (away > 8)].mean() + 0.02


def test_transfer_of_magnetisation_makes_cortex_brighter_than_white_matter(head: Head) -> None:
    patient = ms.draw_patient(head, seeded(1), count=0)
    e = replace(ms.draw_examination(seeded(2)), texture_sd=0.0)
    white, cortex = head.structure == number("cerebral white matter"), head.structure == number("frontal cortex")

    def ratio(transfer: float) -> float:
        flair = ms.render_images(patient, replace(e, transfer=transfer), seeded(3)).flair
        return float(flair[cortex].median() / flair[white].median())

    assert ratio(0.35) > 1.1 * ratio(0.0)


def test_a_harder_examination_keeps_its_dir(head: Head) -> None:
    patient, e = ms.draw_patient(head, seeded(1), count=5), replace(ms.draw_examination(seeded(2)), texture_sd=0.0)
    hard = ms.make_examination_harder(e, seeded(4), thick=1.0)
    assert 3 <= hard.flair_scan.spacing_mm[0] <= 5
    assert hard.t1w_scan.spacing_mm[0] in (e.t1w_scan.spacing_mm[0], hard.flair_scan.spacing_mm[0])
    assert hard.unit == e.unit
    easy, harder = (ms.render_images(patient, each, seeded(3)).dir for each in (e, hard))
    assert torch.equal(easy, harder)


def test_the_contrast_loss_counts_what_is_missing_beside_lesions() -> None:
    true = torch.zeros(2, 1, 24, 24, 24)
    lesion = torch.zeros_like(true)
    lesion[0, :, 10:14, 10:14, 10:14] = 1
    true[lesion > 0] = 2
    true[:, :, :8] = 5  # far brighter tissue counts for nothing, and the second patch has no lesion
    batch = {"lesion": lesion, "dir": true, "weight": torch.ones_like(true)}
    assert contrast_loss(true, batch) == 0
    assert contrast_loss(torch.ones_like(true), batch) == pytest.approx(0.5)
    half = torch.where(lesion > 0, 1.0, 0.0)
    assert contrast_loss(half, batch) == pytest.approx(0.25, abs=1e-3)
