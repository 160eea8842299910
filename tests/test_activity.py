"""Simulated PET: regional means of the table, off-target binding in its regions, SUVR by its reference region."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_zoo.physics.suvr import composite_suvr, compute_suvr
from model_zoo.physics.tracers import REGIONS, TRACERS, composite_uptake, uptake
from model_zoo.simulate import heads
from model_zoo.simulate.pet.activity import (
    EXTRA,
    compute_block_fractions,
    compute_true_uptake,
    draw_uptake,
    label_binding_regions,
    render_activity,
    take_majority,
)
from model_zoo.simulate.phantom import make_phantom
from model_zoo.structures import COUNT, number


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def phantom() -> heads.Head:
    return make_phantom((64, 72, 64), 2.5)


def image(head: heads.Head, name: str, state: float, seed: int = 0, **options: float) -> Tensor:
    return render_activity(head, TRACERS[name], state, make_generator(seed), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TRACERS)
def test_an_image_has_a_reference_region_of_one(phantom: heads.Head, name: str) -> None:
    regional = compute_suvr(image(phantom, name, TRACERS[name].knots[-1]), phantom.structure, TRACERS[name])
    assert regional.reference == pytest.approx(1.0, abs=1e-5)


def test_a_rescaled_image_gives_the_same_ratios_and_tells_the_factor(phantom: heads.Head) -> None:
    tracer = TRACERS["florbetapir"]
    pet = image(phantom, "florbetapir", 60.0)
    plain, scaled = compute_suvr(pet, phantom.structure, tracer), compute_suvr(1.07 * pet, phantom.structure, tracer)
    assert torch.allclose(plain.suvr, scaled.suvr, equal_nan=True, atol=1e-5)
    assert scaled.reference == pytest.approx(1.07, abs=1e-4)


def test_without_a_reference_region_there_is_no_ratio(phantom: heads.Head) -> None:
    with pytest.raises(ValueError, match="cerebellar"):
        compute_suvr(torch.ones(4, 4, 4), torch.ones(4, 4, 4, dtype=torch.uint8), TRACERS["PiB"])


def test_only_the_target_grows_with_the_state(phantom: heads.Head) -> None:
    tracer = TRACERS["florbetapir"]
    low, high = (
        compute_suvr(image(phantom, "florbetapir", s, spread=0.0), phantom.structure, tracer).suvr for s in (0, 90)
    )
    assert float(high[number("frontal cortex") - 1] - low[number("frontal cortex") - 1]) > 0.25
    assert float(high[number("cerebellar cortex") - 1] - low[number("cerebellar cortex") - 1]) < 0.02


def test_one_seed_gives_one_image_and_another_seed_another(phantom: heads.Head) -> None:
    assert torch.equal(image(phantom, "PiB", 20.0, 1), image(phantom, "PiB", 20.0, 1))
    assert not torch.equal(image(phantom, "PiB", 20.0, 1), image(phantom, "PiB", 20.0, 2))


def test_a_wider_point_spread_function_lowers_contrast(phantom: heads.Head) -> None:
    def grey_to_white(fwhm_mm: float) -> float:
        pet = image(phantom, "FDG", 0.0, noise=0.0, spread=0.0, fwhm_mm=fwhm_mm)
        means = compute_suvr(pet, phantom.structure, TRACERS["FDG"]).suvr
        return float(means[number("frontal cortex") - 1] / means[number("cerebral white matter") - 1])

    assert grey_to_white(4.0) > 1.05 * grey_to_white(8.0)


def test_the_plexus_is_in_the_ventricle_and_meninges_are_in_the_outer_csf(phantom: heads.Head) -> None:
    regions = label_binding_regions(phantom)
    plexus, meninges = regions == EXTRA["choroid plexus"], regions == EXTRA["meninges"]
    assert bool(plexus.any())
    assert bool((phantom.structure[plexus] == number("lateral ventricles")).all())
    assert bool(meninges.any())
    assert bool((phantom.structure[meninges] == number("csf")).all())


def test_meninges_bind_mk6240_in_about_half_of_the_subjects() -> None:
    found = [
        float(draw_uptake(TRACERS["MK-6240"], 0.0, make_generator(s), 1.0)[REGIONS.index("meninges")])
        for s in range(200)
    ]
    assert 0.4 < sum(value > 1.0 for value in found) / 200 < 0.6


def test_block_fractions_sum_to_one_and_majority_is_their_largest(phantom: heads.Head) -> None:
    shares = compute_block_fractions(phantom.structure, COUNT + 1, 2)
    assert torch.allclose(shares.sum(0), torch.ones(32, 36, 32))
    assert torch.equal(take_majority(phantom.structure, 2), shares.argmax(0).to(torch.uint8))


def test_true_uptake_of_a_measured_table_has_more_contrast_than_the_table() -> None:
    cortex, white = REGIONS.index("frontal cortex"), REGIONS.index("cerebral white matter")
    table, true = uptake(TRACERS["florbetapir"], 0.0), compute_true_uptake(TRACERS["florbetapir"], 0.0)
    assert float(true[white] - true[cortex]) > 1.5 * float(table[white] - table[cortex])
    assert torch.equal(compute_true_uptake(TRACERS["FDG"], 0.0), uptake(TRACERS["FDG"], 0.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "state"), [("florbetapir", 0), ("florbetapir", 80), ("flortaucipir", 1), ("flortaucipir", 5)]
)
def test_on_real_anatomy_the_image_has_the_composite_of_the_table(kit: Path, name: str, state: int) -> None:
    head = heads.draw_head("01", make_generator(), shape=(112, 144, 112), spacing_mm=1.5, root=kit)
    pet = render_activity(head, TRACERS[name], state, make_generator(), shrink=2, spread=0.0, fwhm_mm=6.0)
    regional = compute_suvr(pet, take_majority(head.structure, 2), TRACERS[name]).suvr
    found = float(composite_suvr(regional, TRACERS[name].target))
    assert found == pytest.approx(float(composite_uptake(TRACERS[name], state)), rel=0.05)
