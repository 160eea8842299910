"""The recipe ``ct-prior``: what it draws, what it learns from a site's series, and the denoiser of real images."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from model_zoo import registry
from model_zoo.denoisers import Denoiser
from model_zoo.training import bundle, ct_prior, loop
from model_zoo.training.cohort import Cohort, Row
from model_zoo.training.recipe import Source, make_simulated_sources, seeded

torch.set_num_threads(1)

RECIPE = ct_prior.RECIPE
SMOKE = RECIPE.configurations["smoke"]
PHANTOM = make_simulated_sources(phantom=True)


def test_patches_hold_air_and_tissue_in_units_of_water() -> None:
    x = ct_prior.draw_patches(8, SMOKE, PHANTOM.train, seeded(1))
    assert x.shape == (8, 1, 32, 32)
    assert 0.0 <= float(x.min()) < 0.4
    assert float(x.max()) <= ct_prior.LARGEST
    assert 0.2 < float(((x > 0.85) & (x < 1.15)).float().mean()) < 0.95
    assert torch.equal(x, ct_prior.draw_patches(8, SMOKE, PHANTOM.train, seeded(1)))


def test_heads_come_from_the_label_maps_of_the_source(kit: Path) -> None:
    source = Source(("01",), kit)
    slices = [ct_prior.draw_ct_slice(source, seeded(n), size=48) for n in range(12)]
    bones = [float((each == 2.0).float().mean()) for each in slices]  # 1000 HU exactly: the skull of a label map
    assert 0 < sum(share > 0.01 for share in bones) < 12


def test_a_series_of_the_site_is_taken_in_hounsfield_units(tmp_path: Path) -> None:
    values = np.full((40, 40, 5), -1000, np.int16)
    values[8:32, 8:32] = 40
    values[10, 10] = 9000  # metal, beyond the range
    values[0, 0] = -2000  # padding
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "ct.nii.gz")
    row = Row(2, "a", "train", {"image": tmp_path / "ct.nii.gz"}, {}, {})
    x = ct_prior.draw_ct_slice(Source((), cohort=Cohort((row,), "digest")), seeded(1), size=64)
    assert x.shape == (40, 40)
    assert sorted(set(x.flatten().tolist())) == pytest.approx([0.0, 1.04, ct_prior.LARGEST])


def test_a_real_image_is_denoised_as_one_channel_and_a_complex_one_as_two() -> None:
    torch.manual_seed(0)
    real = Denoiser(RECIPE.make_network(SMOKE), 0.5, 4)
    x = torch.rand(2, 30, 27)
    assert real(x, 0.1).dtype == torch.float32
    torch.testing.assert_close(real(x[:1], 0.1), real(x, 0.1)[:1])
    with pytest.raises(RuntimeError):
        real(x.to(torch.complex64), 0.1)


def test_a_few_steps_learn_and_make_a_bundle_of_the_size_that_may_be_shipped(tmp_path: Path) -> None:
    c = replace(SMOKE, steps=40, checkpoint_every=40, ema=0.9)
    run = loop.train(RECIPE, c, tmp_path / "run", sources=PHANTOM)
    bundle.write(RECIPE, run, tmp_path / "bundle", version="0.1.0", made_on=date(2026, 1, 2), commit="c0ffee")
    model = registry.load_from(registry.read_facts(tmp_path / "bundle"))
    clean = ct_prior.draw_patches(4, SMOKE, PHANTOM.validation, seeded(9))[:, 0]
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=seeded(3))
    before, after = ((each - clean).square().mean() for each in (noisy, model.denoiser(noisy, 0.5)))
    assert float(after) < 0.5 * float(before)
    large = RECIPE.make_network(RECIPE.configurations["cpu"])
    assert 2 * sum(p.numel() for p in large.parameters()) < 16e6
