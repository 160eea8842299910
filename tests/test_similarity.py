"""PSNR and SSIM against their definitions and against scikit-image."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import structural_similarity

from model_zoo.similarity import dice, mean_absolute_error, psnr, ssim


def _make_pair() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand((20, 24, 28), generator=g)
    return x, x + 0.1 * torch.randn(x.shape, generator=g)


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(4, 4, 4)
    assert psnr(x + 0.1, x, 1.0) == pytest.approx(20.0, abs=1e-4)
    assert psnr(x + 0.1, x, 2.0) == pytest.approx(20 + 20 * math.log10(2), abs=1e-4)
    assert psnr(x, x, 1.0) == math.inf


def test_a_mask_leaves_the_rest_out() -> None:
    x, y = torch.zeros(4, 4, 4), torch.zeros(4, 4, 4)
    y[0] = 5.0
    y[1] = 0.1
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[1] = True
    assert psnr(x, y, 1.0, mask) == pytest.approx(20.0, abs=1e-4)
    assert mean_absolute_error(x, y, mask) == pytest.approx(0.1)


def test_ssim_is_scikit_image_s() -> None:
    x, y = _make_pair()
    expected = structural_similarity(x.numpy(), y.numpy(), data_range=1.0)
    assert ssim(x, y, 1.0) == pytest.approx(expected, abs=1e-4)


def test_an_image_is_like_itself() -> None:
    x, _ = _make_pair()
    assert ssim(x, x, 1.0) == pytest.approx(1.0)


def test_dice_of_counted_masks_is_monais_for_arrays_and_tensors() -> None:
    from monai.metrics.meandice import compute_dice

    a, b = torch.zeros(4, 5, 6, dtype=torch.bool), torch.zeros(4, 5, 6, dtype=torch.bool)
    a[:2], b[1:4] = True, True
    assert dice(a, b) == 2 * 30 / (60 + 90)
    assert dice(a.numpy(), b.numpy()) == dice(a, b)
    assert float(compute_dice(a[None, None].float(), b[None, None].float())) == pytest.approx(dice(a, b))


def test_dice_of_two_empty_masks_is_zero() -> None:
    empty = torch.zeros(2, 2, 2, dtype=torch.bool)
    assert dice(empty, empty) == 0.0
    assert dice(empty, ~empty) == 0.0
