"""The standard-dose recipe: its pairs, the inputs of the network, its loss, a run from nothing to restored images."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_zoo import filters, standard_dose
from model_zoo.bundle import Model
from model_zoo.evaluation import find_evaluator, image_quality
from model_zoo.imaging import FWHM, blur
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.registry import BUNDLES, read_facts
from model_zoo.simulate.pet import low_dose
from model_zoo.simulate.pet.torso import draw_torso
from model_zoo.training import checkpoint, dose_items, load, loop, manifest, recipe, standard_dose_pet
from model_zoo.training.labels import displace_labels
from model_zoo.training.recipe import seeded
from model_zoo.training.standard_dose_pet import RECIPE, compute_loss, draw_batch, make_network

pytestmark = pytest.mark.training

SMOKE = standard_dose_pet.CONFIGURATIONS["smoke"]
PHANTOM = recipe.make_simulated_sources(phantom=True).train


class IdentityNetwork(nn.Module):
    """A network that changes nothing and claims an error of one amplitude."""

    stride = 4

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        answer = torch.zeros(len(x), standard_dose.OUT_CHANNELS, *x.shape[2:])
        answer[:, 2] = 30.0  # all weight on the image itself
        return answer


def _make_torso(finer: int = 1, spacing_mm: float = 8.0) -> low_dose.ScannedObject:
    k, j, i = (finer * round(mm / spacing_mm) for mm in (96, 384, 512))
    body = draw_torso(seeded(3), shape=(k, j, i), spacing_mm=spacing_mm / finer, middle_mm=(0, 0, 310), lesions=2)
    return low_dose.make_torso(body, finer)


def test_the_recipe_trains_from_nothing_and_restores_an_image(tmp_path: Path) -> None:
    assert load("standard-dose-pet") is RECIPE
    loop.train(RECIPE, SMOKE, tmp_path, sources=recipe.make_simulated_sources(phantom=True))
    averaged = checkpoint.read(tmp_path / checkpoint.NAME).merge_average()
    arguments = RECIPE.describe_inference(SMOKE)["network_def"]
    network = VolumeUNet(**{name: value for name, value in arguments.items() if name != "_target_"})
    network.load_state_dict(averaged)
    low = 4000 * low_dose.draw_surrogate_pair(_make_torso(), 0.1, seeded(1), noise=0.1).low
    mean, sd = standard_dose.restore(network, low, 0.1, spacing_mm=8.0)
    assert mean.shape == sd.shape == low.shape
    assert float(mean.min()) >= 0
    assert float(sd.min()) > 0
    assert 0.5 < float(mean.sum() / low.sum()) < 2


def test_a_batch_depends_on_its_generator_alone() -> None:
    one, again, other = (draw_batch(SMOKE, PHANTOM, seeded(1, step)) for step in (5, 5, 6))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["low"], other["low"])
    assert one["inputs"].shape == (2, standard_dose.IN_CHANNELS, 16, 16, 16)
    assert all(bool(value.isfinite().all()) for value in one.values())


def test_brains_and_torsos_of_the_pool_go_through_osem_with_counts_of_their_own() -> None:
    for share, region in ((1.0, "grey matter"), (0.0, "liver")):
        c = replace(SMOKE, brains=share)
        pooled = dose_items.make_pooled_scan(c, PHANTOM, 0)
        pair, again = (dose_items.draw_pooled_pair(c, pooled, seeded(1, n)) for n in (1, 2))
        inside = pair.regions == 1 + low_dose.REGIONS.index(region)
        assert int(inside.sum()) > 10
        assert float(pair.low[inside].mean() / pair.target[inside].mean()) == pytest.approx(1, abs=0.25)
        assert torch.equal(pair.target, again.target)
        assert not torch.equal(pair.low, again.low)


def test_most_patches_of_a_torso_hold_a_lesion() -> None:
    lesion = torch.zeros(40, 40, 40, dtype=torch.uint8)
    lesion[30:33, 5:8, 20:23] = 1
    x = torch.rand(40, 40, 40)
    pair = low_dose.Pair(x, x, torch.zeros_like(lesion), lesion, 0.1, 3.0)
    for share, least, most in ((0.6, 0.5, 0.8), (0.0, 0.0, 0.3)):
        c = replace(SMOKE, about_lesions=share)
        held = [bool(lesion[dose_items.choose_patch(c, pair, seeded(3, n))].any()) for n in range(200)]
        assert least <= sum(held) / len(held) <= most


def test_the_targets_share_the_expectation_and_differ_in_noise() -> None:
    found = _make_torso(2)
    scan = low_dose.simulate_scan(found, 2e6, seeded(1))
    pairs = {
        target: low_dose.draw_osem_pair(
            found, scan, 0.5, seeded(2), reconstruct=low_dose.Reconstruction(post_fwhm_mm=10), target=target
        )
        for target in low_dose.TARGETS
    }
    expected = pairs["expected"].target
    body = expected > 0.3

    def error(x: Tensor) -> Tensor:
        return ((x - expected) / expected)[body]

    noise = error(pairs["expected"].low)
    shared, independent = (error(pairs[name].target) for name in ("shared", "independent"))
    assert float(torch.corrcoef(torch.stack([noise, shared]))[0, 1]) == pytest.approx(math.sqrt(0.5), abs=0.12)
    assert abs(float(torch.corrcoef(torch.stack([noise, independent]))[0, 1])) < 0.2
    assert float(noise.std() / independent.std()) == pytest.approx(math.sqrt(2), rel=0.2)
    with pytest.raises(ValueError, match="no target 'other'"):
        low_dose.draw_surrogate_pair(found, 0.5, seeded(2), noise=0.1, target="other")


@pytest.mark.usefixtures("as_the_network_answers")
def test_what_the_network_is_shown_does_not_depend_on_the_unit() -> None:
    low = low_dose.draw_surrogate_pair(_make_torso(), 0.1, seeded(1), noise=0.1).low
    assert standard_dose.scale_of(2.5e4 * low) == pytest.approx(2.5e4 * standard_dose.scale_of(low), rel=1e-4)
    mean, sd = standard_dose.restore(IdentityNetwork(), low, 0.1, spacing_mm=8.0, bf16=False)
    big_mean, big_sd = standard_dose.restore(IdentityNetwork(), 2.5e4 * low, 0.1, spacing_mm=8.0, bf16=False)
    assert torch.allclose(big_mean, 2.5e4 * mean, rtol=1e-3)
    assert torch.allclose(big_sd, 2.5e4 * sd, rtol=1e-3)
    assert torch.allclose(mean, low, atol=1e-5)


class ChoosingNetwork(IdentityNetwork):
    """A network that chooses the copy ``which``."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        answer = torch.zeros(len(x), standard_dose.OUT_CHANNELS, *x.shape[2:])
        answer[:, 2 + self.which] = 30.0
        return answer


def test_the_network_may_choose_what_the_anatomy_explains_in_any_unit() -> None:
    truth = torch.ones(24, 32, 32)
    truth[:, :, 16:] = 3.0
    low = truth + 0.3 * truth**0.7 * torch.randn(truth.shape, generator=seeded(5))
    maps = torch.stack([(truth > 2).float(), torch.zeros_like(truth)])

    def error(which: int, regions: Tensor | None, unit: float = 1.0) -> float:
        mean, _ = standard_dose.restore(
            ChoosingNetwork(which), unit * low, 0.1, spacing_mm=8.0, bf16=False, regions=regions
        )
        return float((mean / unit - truth).square().mean().sqrt())

    with_anatomy, without_anatomy, image = error(5, maps), error(5, None), error(0, None)
    assert with_anatomy < 0.7 * without_anatomy
    assert with_anatomy < 0.5 * image
    assert error(5, maps, 2.5e4) == pytest.approx(with_anatomy, rel=1e-3)
    assert error(5, torch.zeros_like(maps)) == pytest.approx(without_anatomy, rel=1e-5)


class LoweringNetwork(ChoosingNetwork):
    """A network that makes everything lower by half an amplitude."""

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        answer = super().forward(x, *conditions)
        answer[:, 0] = -0.5
        return answer


def test_every_tissue_keeps_its_activity() -> None:
    truth = torch.ones(24, 32, 32)
    truth[:, :, 16:] = 3.0
    low = truth + 0.2 * truth**0.7 * torch.randn(truth.shape, generator=seeded(6))
    maps = (truth > 2).float()[None]
    mean, _ = standard_dose.restore(LoweringNetwork(1), low, 0.1, spacing_mm=8.0, bf16=False, regions=maps)
    for tissue in (truth > 2, truth < 2):
        assert float(mean[tissue].mean() / low[tissue].mean()) == pytest.approx(1, abs=0.02)


def test_noise_that_the_network_leaves_is_taken_away_and_an_edge_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = torch.ones(24, 32, 32)
    truth[:, :, 16:] = 4.0
    low = truth + 0.3 * truth**0.7 * torch.randn(truth.shape, generator=seeded(9))
    found, _ = standard_dose.restore(ChoosingNetwork(1), low, 0.1, spacing_mm=8.0, bf16=False)
    monkeypatch.setattr(standard_dose, "residual_noise_fraction", lambda dose, has_anatomy: 1e-3)
    before, _ = standard_dose.restore(ChoosingNetwork(1), low, 0.1, spacing_mm=8.0, bf16=False)
    for flat in (slice(0, 10), slice(22, 32)):
        assert float((found - truth)[..., flat].std()) < 0.6 * float((before - truth)[..., flat].std())
    steepest = [float(x.diff(dim=2).mean(dim=(0, 1)).max()) for x in (found, before)]
    assert steepest[0] == pytest.approx(steepest[1], rel=0.05)


def test_one_hot_voxel_does_not_rescale_the_patient() -> None:
    low = low_dose.draw_surrogate_pair(_make_torso(spacing_mm=4.0), 0.1, seeded(1), noise=0.1).low
    hot = low.clone()
    hot[12, 40, 60] = 50 * low.max()
    assert standard_dose.scale_of(hot) < 2 * standard_dose.scale_of(low)
    assert standard_dose.scale_of(torch.zeros(4, 4, 4)) > 0


def test_the_noise_level_shown_grows_as_the_dose_falls() -> None:
    found = _make_torso(spacing_mm=4.0)
    levels = []
    for dose in (0.2, 0.02):
        low = low_dose.draw_surrogate_pair(found, dose, seeded(1), noise=0.1).low[None, None]
        levels.append(standard_dose.prepare(low, torch.tensor([dose]), torch.tensor([4.0])).embedding[0, 4])
    grown = float(torch.exp(2 * (levels[1] - levels[0])))
    assert 1.8 < grown < 3.5  # the square root of 10, less what structure adds at the higher dose


def test_a_hot_lesion_that_the_network_removed_is_given_back_and_noise_is_not() -> None:
    generator = seeded(3)
    truth = torch.full((40, 40, 40), 0.5)
    truth[18:22, 18:22, 18:22] = 2.0
    noise = 0.1 * truth**0.7 * torch.randn(truth.shape, generator=generator)
    smoothed = torch.full_like(truth, 0.5)
    found, sd = standard_dose.restore_significant_residual(truth + noise, smoothed, torch.full_like(truth, 0.02))
    lesion = truth > 1
    assert float(found[lesion].mean()) > 1.7
    assert float((found[~lesion] - smoothed[~lesion]).square().mean().sqrt()) < 0.02
    assert float((found == smoothed).float().mean()) > 0.98
    assert float(sd[lesion].min()) > 0.03, "what is added carries its noise"
    assert torch.equal(sd[found == smoothed], torch.full_like(sd, 0.02)[found == smoothed])


def test_nothing_is_given_back_where_nothing_was_taken() -> None:
    image = torch.rand(16, 16, 16, generator=seeded(4))
    found, _ = standard_dose.restore_significant_residual(image, image, torch.ones_like(image))
    assert torch.equal(found, image)


def test_regions_that_are_not_told_change_nothing() -> None:
    batch = draw_batch(SMOKE, PHANTOM, seeded(2))
    network = make_network(SMOKE)
    nn.init.normal_(network.last.weight)  # type: ignore[union-attr, arg-type]
    for block in network.modules():
        if getattr(block, "region", None) is not None:
            nn.init.normal_(block.region.weight)  # type: ignore[union-attr, arg-type]
            nn.init.normal_(block.conv2.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    c = replace(SMOKE, region_weight=0.0)
    with_maps, hidden = ({"has_regions": value} for value in (torch.ones(2), torch.zeros(2)))
    moved = {"regions": (batch["regions"] + 1) % 17}
    without, without_moved = (float(compute_loss(network, batch | hidden | m, c).detach()) for m in ({}, moved))
    with_regions, with_moved = (float(compute_loss(network, batch | with_maps | m, c).detach()) for m in ({}, moved))
    assert without == without_moved
    assert with_regions != with_moved


def test_a_configuration_keeps_the_keys_of_checkpoints_and_shipped_bundles() -> None:
    c = replace(SMOKE, regions_share=0.25)
    assert json.loads(c.to_json())["told"] == 0.25
    assert type(c).from_json(c.to_json()) == c
    shipped = read_facts(BUNDLES / "standard_dose_pet").metadata["configuration"]
    assert json.loads(type(c).from_json(json.dumps(shipped)).to_json()).keys() >= shipped.keys()
    assert type(c).from_json(json.dumps(shipped)).regions_share == shipped["told"]


def test_the_loss_is_least_for_the_truth_and_counts_bias_and_structure() -> None:
    batch = draw_batch(SMOKE, PHANTOM, seeded(3))
    true = batch | {"copies": batch["target"].repeat(1, 8, 1, 1, 1)}
    c = replace(SMOKE, gradient_weight=0.0, region_weight=0.0)
    assert float(compute_loss(IdentityNetwork(), true, c)) == pytest.approx(0, abs=1e-6)
    for weighted in (replace(c, gradient_weight=1.0), replace(c, region_weight=1.0), replace(c, structure_weight=1.0)):
        assert float(compute_loss(IdentityNetwork(), true, weighted)) == pytest.approx(0, abs=1e-5)
        assert float(compute_loss(IdentityNetwork(), batch, weighted)) > float(
            compute_loss(IdentityNetwork(), batch, c)
        )
    biased = batch | {"copies": 1.1 * true["copies"]}
    only = float(compute_loss(IdentityNetwork(), biased, replace(c, region_weight=1.0))) - float(
        compute_loss(IdentityNetwork(), biased, c)
    )
    assert only == pytest.approx(0.1, rel=1e-3)


@pytest.mark.usefixtures("as_the_network_answers")
def test_the_evaluation_makes_its_tables_and_a_network_that_does_nothing_ties_with_the_low_dose() -> None:
    model = Model("standard_dose_pet", "0", "", {}, IdentityNetwork(), {}, "cpu")
    found = find_evaluator("standard_dose_pet")(model, root=None, quick=True, progress=lambda share, step: None)
    quality = next(table for table in found.tables if table.title == "Image quality by dose, torso")
    scores = {str(row[0]): row[1:] for row in quality.rows}
    assert scores["10 %, ours"] == scores["10 %, low dose"]
    assert float(scores["10 %, Gaussian"][0]) > float(scores["10 %, low dose"][0])
    assert float(scores["10 %, low dose"][3]) == pytest.approx(1, abs=0.03)
    assert {picture.name for picture in found.pictures} == {"typical", "worst-case"}
    assert "of 1 images" in found.failures


def test_image_quality_is_perfect_for_the_reference_and_known_for_a_shift() -> None:
    reference = low_dose.draw_surrogate_pair(_make_torso(), 0.5, seeded(1), noise=0.1).target
    inside = reference > 0.3
    assert image_quality.ssim(reference, reference, inside) == pytest.approx(1, abs=1e-5)
    assert image_quality.nrmse(1.1 * reference, 1.0 * reference, inside) > 0.1
    shifted = reference + 0.01 * reference.max()
    assert image_quality.psnr_db(shifted, reference, inside) == pytest.approx(40, abs=0.01)
    assert image_quality.bias_percent(1.05 * reference, reference, inside) == pytest.approx(5, abs=0.01)
    flat = torch.full((9, 9, 9), 3.0)
    assert image_quality.suv_peak(flat, flat > 0, 4.0) == pytest.approx(3, rel=1e-4)


def test_non_local_means_keeps_an_edge_that_a_gaussian_of_the_same_noise_does_not() -> None:
    x = torch.ones(12, 24, 24)
    x[:, :, 12:] = 5.0
    noisy = x + 0.3 * torch.randn(x.shape, generator=seeded(1))
    means = filters.denoise_by_non_local_means(noisy, (0.5,), torch.full_like(x, 0.3))[0]
    flat = (slice(2, -2), slice(2, -2), slice(2, 8))
    blurred = min(
        filters.blur_by_widths(noisy, (2.0, 3.0, 4.0), 2.0), key=lambda g: abs(g[flat].std() - means[flat].std())
    )
    assert float(means[flat].std()) < 0.15
    edge = (slice(2, -2), slice(2, -2), slice(11, 13))
    assert float((means - x)[edge].abs().mean()) < 0.5 * float((blurred - x)[edge].abs().mean())


def test_local_regression_is_the_weighted_least_squares_of_every_voxel() -> None:
    generator = seeded(7)
    x, shares = torch.rand(9, 10, 11, generator=generator), torch.rand(3, 9, 10, 11, generator=generator)
    shares = shares / shares.sum(dim=0)
    found = filters.regress_locally(x, shares, 1.5, ridge=0.01)
    for v in ((4, 5, 6), (0, 9, 3)):
        weights = torch.ones(())
        for axis, n in enumerate(x.shape):
            point = torch.zeros([n if a == axis else 1 for a in range(3)])
            point.flatten()[v[axis]] = 1.0
            # a blur's row: what a voxel takes of every other along an axis
            rows = [blur(torch.eye(n)[m].view(point.shape), 1.5 * FWHM, (1.0,) * 3, normalised=True) for m in range(n)]
            shifted = torch.stack([row.flatten()[v[axis]] for row in rows]).view(point.shape)
            weights = weights * shifted
        w, F = weights.flatten().double(), shares.flatten(1).T.double()
        m = (w * x.flatten()).sum()
        A = F.T @ (w[:, None] * F)
        ridge = 0.01 * torch.diagonal(A).sum()
        a = torch.linalg.solve(A + ridge * torch.eye(3, dtype=torch.float64), F.T @ (w * x.flatten()) + ridge * m)
        assert float(found[v]) == pytest.approx(float(a @ shares[(slice(None), *v)].double()), rel=1e-4)


def test_local_regression_keeps_an_edge_that_the_anatomy_has_and_is_a_gaussian_without() -> None:
    x = torch.ones(16, 24, 24)
    x[:, :, 12:] = 4.0
    shares = torch.stack([(x == 1).float(), (x == 4).float()])
    noisy = x + 0.5 * torch.randn(x.shape, generator=seeded(8))
    found = filters.regress_locally(noisy, shares, 3.0)
    gaussian = filters.regress_locally(noisy, torch.ones(1, *x.shape), 3.0)
    assert float((found - x).square().mean().sqrt()) < 0.1
    assert torch.equal(gaussian, blur(noisy, 3.0 * FWHM, (1.0,) * 3, normalised=True))
    assert float((gaussian - x).square().mean().sqrt()) > 0.3


def test_what_a_network_is_told_of_borders_is_off_by_what_is_asked() -> None:
    labels = torch.arange(32, dtype=torch.uint8).expand(32, 32, 32).contiguous()
    assert torch.equal(displace_labels(labels, 0.0, 4, seeded(1)), labels)
    off = displace_labels(labels, 1.5, 4, seeded(1)).float() - labels
    inside = off[:, :, 8:24]
    assert 0.4 < float(inside.square().mean().sqrt()) < 2.0
    assert torch.equal(displace_labels(labels, 1.5, 4, seeded(1)), displace_labels(labels, 1.5, 4, seeded(1)))


def test_a_users_reconstructed_pairs_make_batches_too(tmp_path: Path) -> None:
    pair = low_dose.draw_surrogate_pair(_make_torso(), 0.2, seeded(1), noise=0.1, target="independent")
    for name, image in (("low", pair.low), ("standard", pair.target)):
        turned = image.numpy().transpose(2, 1, 0)
        nibabel.save(nibabel.Nifti1Image(turned, np.diag([-8.0, -8.0, 8.0, 1.0])), tmp_path / f"{name}.nii")
    lines = ["subject,split,low,standard,dose", *(f"{s},{s},low.nii,standard.nii,0.2" for s in ("train", "validation"))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    found = manifest.make_sources(manifest.read(tmp_path / "pairs.csv", RECIPE.columns))
    batch = draw_batch(SMOKE, found.train, seeded(4))
    assert batch["low"].shape == (2, 1, 16, 16, 16)
    assert int(batch["regions"].max()) == 0
    inside = batch["target"] > 0.05
    assert float(batch["low"][inside].mean() / batch["target"][inside].mean()) == pytest.approx(1, abs=0.1)
    assert bool(torch.isfinite(compute_loss(make_network(SMOKE), batch, SMOKE)))
