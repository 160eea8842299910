"""The recipe of synthetic DIR: the content of its batches, the minimum of its loss, the parts of its prediction."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch
from scipy import ndimage

from model_zoo import registry
from model_zoo import synthetic_dir as sd
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.physics.mr import TissueParameters
from model_zoo.physics.sequences import Dir
from model_zoo.simulate import ms
from model_zoo.simulate.lesions import Lesions
from model_zoo.simulate.phantom import make_phantom
from model_zoo.simulate.volumes import Scan
from model_zoo.structures import CORTEX, COUNT, number
from model_zoo.training import bundle, checkpoint, loop
from model_zoo.training import synthetic_dir as recipe
from model_zoo.training.dir_losses import weigh_lesions
from model_zoo.training.labels import displace_labels
from model_zoo.training.recipe import make_simulated_sources, seeded

SMOKE = recipe.CONFIGURATIONS["smoke"]
SOURCES = make_simulated_sources(phantom=True)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    return recipe.draw_batch(replace(SMOKE, batch=4, without_t1w=0.5), SOURCES.train, seeded(0, 3))


class _FixedNetwork(torch.nn.Module):
    """A network that returns fixed channels."""

    def __init__(self, channels: torch.Tensor) -> None:
        super().__init__()
        self.channels = torch.nn.Parameter(channels)

    def forward(self, _: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return self.channels


def _make_true_channels(batch: dict[str, torch.Tensor], log_b: float = -2.0) -> torch.Tensor:
    """Return the six channels of a network that knows the answer."""
    sure = 20 * batch["lesion"] - 10
    added = batch["dir"] - batch["input"][:, 3:4]
    return torch.cat([added, torch.full_like(added, log_b), batch["maps"], sure], dim=1)


def _compute_loss(channels: torch.Tensor, batch: dict[str, torch.Tensor], c: recipe.Configuration) -> float:
    return float(recipe.compute_loss(_FixedNetwork(channels), batch, c).detach())


@pytest.mark.slow
def test_a_step_s_batch_depends_on_its_generator_only() -> None:
    first, again = (recipe.draw_batch(SMOKE, SOURCES.train, seeded(5, 1)) for _ in range(2))
    other = recipe.draw_batch(SMOKE, SOURCES.train, seeded(5, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["input"], other["input"])


@pytest.mark.slow
def test_examinations_stay_for_some_steps_and_are_replaced_one_by_one() -> None:
    def protocols(step: int) -> set[tuple[float, ...]]:
        at = replace(SOURCES.train, step=step)
        return {tuple(recipe.draw_batch(SMOKE, at, seeded(5, n))["protocol"][0].tolist()) for n in range(12)}

    first, second = protocols(0), protocols(SMOKE.renew)
    assert len(first) == len(second) == SMOKE.examinations
    assert protocols(SMOKE.renew - 1) == first
    assert len(first & second) == SMOKE.examinations - 1


def test_batches_are_scaled_and_flair_alone_is_marked(batch: dict[str, torch.Tensor]) -> None:
    assert batch["input"].shape == (4, 4, 16, 16, 16)
    assert float(batch["input"].min()) >= -3
    assert float(batch["input"].max()) <= 3 * (sd.CLIP - 1)
    assert float(batch["dir"].max()) <= sd.CLIP
    present = batch["input"][:, 2].flatten(1).amax(1)
    assert set(present.tolist()) == {0.0, 1.0}
    alone = batch["input"][present == 0]
    assert float(alone[:, 1:3].abs().max()) == 0.0


@pytest.mark.slow
def test_the_true_dir_is_one_in_cortex_and_nulls_white_matter_and_csf() -> None:
    head = make_phantom((96, 112, 96), 2.0)
    g = torch.Generator().manual_seed(0)
    patient = ms.draw_patient(head, g, count=0)
    e = replace(ms.draw_examination(g), texture_sd=0.0)
    x = ms.render_images(patient, e, g)
    healthy = patient.lesions.label == 0

    def median(image: torch.Tensor, *numbers: int) -> float:
        inside = torch.isin(head.structure, torch.tensor(numbers, dtype=torch.uint8)) & healthy
        return float(image[inside].median())

    assert median(x.dir, *CORTEX) == pytest.approx(1.0, abs=0.15)
    assert median(x.dir, number("cerebral white matter")) < 0.05
    assert median(x.dir, number("lateral ventricles")) < 0.15
    assert median(x.flair, number("cerebral white matter")) == pytest.approx(1.0, abs=0.2)


def test_the_first_guess_is_right_where_dir_is_a_polynomial_of_the_images_whatever_their_contrast() -> None:
    shape = (20, 20, 20)
    structure = torch.randint(0, COUNT + 1, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    levels = sd.expected_signal(torch.device("cpu"))
    assert float(levels[number("cerebral white matter")]) < 1e-3
    assert float(levels[number("csf")]) < 1e-3
    assert float(levels[number("insula")]) == 1.0
    truth = levels[structure.long()].float()
    for contrast in (truth, 2 - truth, (1 + truth).sqrt()):
        guess = sd.compute_first_guess(contrast, None, structure)
        assert float((guess - truth)[structure > 0].abs().max()) < 0.01
    assert float(sd.compute_first_guess(truth, truth, torch.zeros(shape, dtype=torch.uint8)).abs().max()) == 0.0


def test_cortex_brightened_by_magnetisation_transfer_comes_back_and_other_flairs_stay() -> None:
    structure = torch.full((20, 20, 20), number("cerebral white matter"), dtype=torch.uint8)
    structure[10:] = number("frontal cortex")
    cortex = structure == number("frontal cortex")
    dark = torch.where(cortex, 1.05, 1.0)
    assert sd.undo_transfer(dark, structure) is dark
    plain = torch.where(cortex, sd.CORTEX_ON_FLAIR, 1.0)
    plain[0, 0, :2] = torch.tensor([0.2, 1.5])
    bright = torch.where(plain > 1.05, plain * 1.3 / sd.CORTEX_ON_FLAIR, plain)
    assert torch.allclose(sd.undo_transfer(bright, structure), plain)
    values = torch.linspace(0, 3, 4000)
    ramp = torch.cat([values, torch.full((4000,), 1.3)]).reshape(20, 20, 20)
    mapped = sd.undo_transfer(ramp, structure).flatten()[:4000]
    assert (mapped.diff() > 0).all()


def test_the_robust_guess_is_right_though_a_fifth_of_the_structures_is_wrong() -> None:
    structure = torch.randint(0, COUNT + 1, (40, 40, 40), generator=seeded(0)).to(torch.uint8)
    truth = sd.expected_signal(torch.device("cpu"))[structure.long()].float()
    flair, t1w = 1 + 0.4 * truth, 1.2 - 0.5 * truth + 0.02 * torch.randn(truth.shape, generator=seeded(1))
    labels = structure.clone()
    mislabelled = torch.rand(truth.shape, generator=seeded(2)) < 0.2
    labels[mislabelled & (structure > 0)] = number("frontal cortex")
    plain, robust = (sd.compute_first_guess(flair, t1w, labels, robust=r) - truth for r in (False, True))
    assert float(robust[structure > 0].abs().mean()) < 0.35 * float(plain[structure > 0].abs().mean())


@pytest.mark.slow
def test_artefacts_brighten_flair_but_not_t1w_nor_dir() -> None:
    head = make_phantom((96, 112, 96), 2.0)
    patient = ms.draw_patient(head, torch.Generator().manual_seed(1), count=3)
    spot = torch.zeros(head.tissue.shape)
    spot[50:54, 50:54, 70:74] = 0.6
    e = ms.draw_examination(torch.Generator().manual_seed(2))
    e = replace(e, flair_scan=Scan((2.0, 2.0, 2.0), 0.0, 0.0), t1w_scan=Scan((2.0, 2.0, 2.0), 0.0, 0.0))
    without, with_it = (
        ms.render_images(replace(patient, artefact=a), e, torch.Generator().manual_seed(3)) for a in (0 * spot, spot)
    )
    assert torch.allclose(with_it.flair - without.flair, spot, atol=0.02)
    assert torch.equal(with_it.t1w, without.t1w)
    assert torch.equal(with_it.dir, without.dir)


def test_physical_maps_render_the_dir_that_they_were_made_for(batch: dict[str, torch.Tensor]) -> None:
    p = TissueParameters(torch.tensor([850.0, 1350.0]), torch.tensor([70.0, 90.0]), torch.tensor([0.7, 0.82]))
    dir_ = Dir.nulling(7500.0, 850.0)
    assert torch.allclose(sd.render(sd.log_maps(p), dir_), dir_.signal(p).abs(), atol=1e-6)


def test_the_truth_has_a_smaller_loss_than_any_change_of_it(batch: dict[str, torch.Tensor]) -> None:
    truth = _make_true_channels(batch)
    best = _compute_loss(truth, batch, SMOKE)
    for channel in (0, 2, 3, 4, 5):
        worse = truth.clone()
        worse[:, channel] = -0.5 * worse[:, channel] - 0.3
        assert _compute_loss(worse, batch, SMOKE) > best + 0.01


def test_the_lesion_term_does_not_grow_with_the_lesion_load(batch: dict[str, torch.Tensor]) -> None:
    def term(lesion: torch.Tensor) -> float:
        of = batch | {"lesion": lesion, "known": torch.zeros(4, 2)}
        biased = _make_true_channels(batch)
        biased[:, 0] += 0.5
        c = replace(SMOKE, lesion_weight=1.0, ssim_weight=0.0, laplace_weight=0.0, segment_weight=0.0)
        plain = replace(c, lesion_weight=0.0)
        return _compute_loss(biased, of, c) - _compute_loss(biased, of, plain)

    small, large = torch.zeros_like(batch["lesion"]), torch.zeros_like(batch["lesion"])
    small[:, :, 4:6, 4:6, 4:6] = 1.0
    large[:, :, 2:14, 2:14, 2:14] = 1.0
    assert term(small) == pytest.approx(0.5, abs=1e-3)
    assert term(large) == pytest.approx(0.5, abs=1e-3)


def test_the_laplace_scale_settles_at_the_mean_error_and_leaves_the_mean_alone(batch: dict[str, torch.Tensor]) -> None:
    off = _make_true_channels(batch)
    off[:, 0] += 0.2
    losses = {}
    for b in (0.1, 0.2, 0.4):
        off[:, 1] = math.log(b)
        losses[b] = _compute_loss(off, batch, SMOKE)
    assert losses[0.2] == min(losses.values())
    only_b = replace(SMOKE, lesion_weight=0.0, ssim_weight=0.0, maps_weight=0.0, render_weight=0.0, segment_weight=0.0)
    network = _FixedNetwork(off)
    with_b, without = (
        torch.autograd.grad(recipe.compute_loss(network, batch, replace(only_b, laplace_weight=w)), network.channels)[0]
        for w in (1.0, 0.0)
    )
    assert torch.allclose(with_b[:, 0], without[:, 0])


def test_dropout_passes_spread_and_one_pass_does_not() -> None:
    torch.manual_seed(0)
    network = VolumeUNet(4, 6, channels=(4, 8), dropout=0.5)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.rand(14, 16, 18)
    brain = torch.ones(x.shape, dtype=torch.uint8)
    once = sd.predict(network, x, None, brain, passes=1, bf16=False)
    many = sd.predict(network, x, x, brain, passes=8, bf16=False)
    again = sd.predict(network, x, x, brain, passes=8, bf16=False)
    assert once.dir.shape == (14, 16, 18)
    assert float(once.epistemic.max()) == 0.0
    assert float(many.epistemic.mean()) > 0
    assert torch.equal(many.dir, again.dir)
    assert bool((many.sd >= many.epistemic).all())
    assert many.maps.shape == (3, 14, 16, 18)
    assert not any(m.training for m in network.modules())


class _AddingNetwork(torch.nn.Module):
    """A network that adds 1 to the first guess everywhere and keeps its embedding in ``levels``."""

    def forward(self, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        self.levels = levels
        y = torch.zeros(1, 6, *x.shape[2:])
        y[:, 0] = 1.0
        return y


def test_the_network_adds_to_the_robust_guess_where_there_is_a_t1w_and_else_to_the_plain_one() -> None:
    x, brain = torch.rand(14, 16, 18), torch.ones(14, 16, 18, dtype=torch.uint8)
    network = _AddingNetwork()
    for t1w in (x.sqrt(), None):
        guess = sd.compute_first_guess(x, t1w, brain, robust=t1w is not None)
        found = sd.predict(network, x, t1w, brain, passes=1, bf16=False)
        assert torch.allclose(found.dir - guess, torch.tensor(1.0), atol=1e-4)
        assert torch.equal(network.levels[0], sd.tissue_levels(x, t1w, brain))


def test_the_spread_over_passes_is_the_samples_own() -> None:
    samples = torch.rand(5, 1, 6, 4, 4, 4)
    outputs = [sd.decode(s, torch.zeros(1, 4, 4, 4, 4)) for s in samples]
    mean, sd_, epistemic, _, _ = sd.combine_passes(iter(outputs), 5)
    assert torch.allclose(mean, samples[:, 0, 0].mean(0), atol=1e-6)
    assert torch.allclose(epistemic, samples[:, 0, 0].std(0), atol=1e-5)
    assert torch.allclose(sd_**2, epistemic**2 + (2 * samples[:, 0, 1].exp().square()).mean(0), atol=1e-4)


@pytest.mark.slow
def test_validation_under_autocast_sees_what_validation_without_sees() -> None:
    torch.manual_seed(0)
    network = recipe.make_network(SMOKE).eval()
    # patients are cached by configuration; one that differs in an unused number makes the same patients anew
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = recipe.validate(network, replace(SMOKE, learning_rate=0.1), SOURCES.validation)
    with torch.no_grad():
        full = recipe.validate(network, replace(SMOKE, learning_rate=0.2), SOURCES.validation)
    assert half["mae"] == pytest.approx(full["mae"], rel=0.02)


def test_no_passes_and_an_empty_white_matter_are_refused() -> None:
    with pytest.raises(ValueError, match="0 passes"):
        sd.predict(VolumeUNet(4, 6, channels=(4, 8)), torch.rand(8, 8, 8), None, torch.zeros(8, 8, 8), passes=0)
    with pytest.raises(ValueError, match="no scale"):
        sd.white_matter_level(torch.ones(4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.bool))


@pytest.mark.slow
def test_it_trains_into_a_bundle_that_predicts(tmp_path: Path) -> None:
    loop.train(recipe.RECIPE, SMOKE, tmp_path / "run", sources=SOURCES)
    path = tmp_path / "bundles" / "synthetic_dir"
    bundle.write(recipe.RECIPE, tmp_path / "run" / checkpoint.NAME, path, version="0.0.1", made_on=date(2026, 1, 2))
    model = registry.load("synthetic_dir", root=tmp_path / "bundles")
    x = torch.rand(16, 16, 16)
    found = sd.predict(model.network, x, None, torch.ones(x.shape, dtype=torch.uint8), passes=2)
    assert bool(torch.isfinite(found.dir).all())
    assert bool((found.sd > 0).all())
    assert model.settings["channels"] == list(sd.CHANNELS)


def test_every_configuration_s_weights_fit_into_a_bundle() -> None:
    for c in recipe.CONFIGURATIONS.values():
        with torch.device("meta"):
            size = sum(2 * p.numel() for p in recipe.make_network(c).parameters())
        assert size < bundle.LARGEST_BYTES


def test_the_network_is_told_how_bright_the_tissues_are() -> None:
    structure = make_phantom((48, 56, 48), 4.0).structure
    flair, t1w = (torch.ones(structure.shape) for _ in range(2))
    flair[structure == number("thalamus")] = 1.25
    t1w[structure == number("csf")] = 0.25
    tissues = len(sd.LEVEL_TISSUES)
    levels = sd.tissue_levels(flair, t1w, structure)
    assert levels.shape == (sd.EMBEDDING,)
    assert levels.tolist() == [0.25 if n == 1 else -0.75 if n == 2 * tissues - 1 else 0.0 for n in range(2 * tissues)]
    assert sd.tissue_levels(flair, None, structure)[tissues:].abs().max() == 0
    assert sd.tissue_levels(flair, t1w, torch.zeros_like(structure)).abs().max() == 0


def test_a_small_lesion_weighs_more_per_voxel_than_a_large_one() -> None:
    label = torch.zeros((20, 20, 40), dtype=torch.int16)
    label[5:10, 5:10, 2:6] = 1  # 100 voxels
    label[5:15, 5:15, 20:24] = 2  # 400
    lesions = Lesions(label, (label > 0).float(), torch.ones(3, 3), ("deep", "deep"))
    found = weigh_lesions(lesions)
    assert found[7, 7, 3] == pytest.approx(1.0)
    assert found[7, 7, 21] == pytest.approx(0.5)
    assert found[0, 0, 0] == 0


def test_borders_are_off_by_little_and_the_same_for_the_same_seed() -> None:
    structure = make_phantom((64, 72, 64), 3.0).structure
    found = [displace_labels(structure, 0.8, recipe.WARP_CELLS, seeded(seed)) for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    for moved in found:
        same = float((moved == structure).float().mean())
        assert 0.85 < same <= 1
        inside = ndimage.binary_erosion(structure.numpy() > 0, iterations=5)
        assert (moved.numpy()[inside] > 0).all()
