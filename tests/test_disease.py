"""The latent model of disease: its group means, its discordant cases, and its posterior against simulation."""

from __future__ import annotations

import pytest
import torch

from model_zoo.physics.tracers import TRACERS, composite_uptake
from model_zoo.simulate.heads import Atrophy
from model_zoo.simulate.pet.disease import (
    DIAGNOSES,
    MAXIMUM,
    Observed,
    Population,
    draw_patient,
    draw_population,
    sample_posterior,
)

ANCHORS = {"CN": (1.12, 1.18, 29.1), "MCI": (1.22, 1.33, 28.0), "AD": (1.40, 1.60, 23.0)}
"""Amyloid SUVR, tau SUVR and MMSE by group: ResDM paper, table 1."""


def make_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def large_population() -> Population:
    return draw_population(60_000, make_generator(1))


@pytest.mark.parametrize("diagnosis", DIAGNOSES)
def test_groups_have_the_published_means(large_population: Population, diagnosis: str) -> None:
    group = large_population.where(large_population.diagnosis == DIAGNOSES.index(diagnosis))
    amyloid, tau, mmse = ANCHORS[diagnosis]
    assert float(composite_uptake(TRACERS["florbetapir"], group.amyloid_cl).mean()) == pytest.approx(amyloid, abs=0.04)
    assert float(composite_uptake(TRACERS["flortaucipir"], group.tau_stage).mean()) == pytest.approx(tau, abs=0.10)
    assert float(group.mmse.mean()) == pytest.approx(mmse, abs=0.6)
    assert 70 <= float(group.age_years.mean()) <= 77.5


def test_discordant_cases_have_the_stated_frequencies(large_population: Population) -> None:
    a, n = large_population.amyloid_cl >= 24.0, large_population.neurodegeneration >= 0.40
    for group, share in ((a & ~n, 0.18), (~a & n, 0.14), (a & n, 0.24), (~a & ~n, 0.44)):
        assert float(group.float().mean()) == pytest.approx(share, abs=0.02)


def test_every_patient_is_within_the_ranges_that_its_fields_promise(large_population: Population) -> None:
    assert bool(
        (
            (large_population.mmse >= 0)
            & (large_population.mmse <= 30)
            & (large_population.mmse == large_population.mmse.round())
        ).all()
    )
    assert bool(((large_population.tau_stage >= 0) & (large_population.tau_stage <= 6)).all())
    for part, most in MAXIMUM.items():
        value = getattr(large_population, part)
        assert bool(((value > 0) & (value < most)).all())


def test_the_same_seed_gives_the_same_patient_and_another_seed_another() -> None:
    assert draw_patient(make_generator(3)) == draw_patient(make_generator(3))
    assert draw_patient(make_generator(3)) != draw_patient(make_generator(4))


def test_a_patient_says_its_group() -> None:
    p = draw_population(300, make_generator(5))
    patients = [p.patient(i) for i in range(len(p))]
    assert {patient.group for patient in patients} == {"A+N+", "A+N-", "A-N+", "A-N-"}
    assert all((patient.amyloid_cl >= 24.0) == patient.group.startswith("A+") for patient in patients)


def test_causes_that_are_given_are_held() -> None:
    p = draw_population(100, make_generator(2), age_years=66.0, sex="F", e4=2)
    assert bool((p.age_years == 66.0).all() and p.female.all() and (p.e4 == 2).all())


def test_knowing_nothing_gives_the_prior(large_population: Population) -> None:
    found = sample_posterior(Observed(), make_generator(6), count=60_000)
    assert found.effective_size == pytest.approx(60_000, rel=1e-6)
    assert found.mean(found.population.amyloid_cl) == pytest.approx(float(large_population.amyloid_cl.mean()), abs=0.7)


def test_the_posterior_agrees_with_rejection_sampling() -> None:
    """Patients of the prior with about this MMSE and p-tau217 have the loads of the posterior."""
    prior = draw_population(600_000, make_generator(7), age_years=74.0)
    near = (prior.mmse == 27) & (prior.ptau217_pg_ml.log() - torch.tensor(0.5).log()).abs().lt(0.04)
    accepted = prior.where(near)
    found = sample_posterior(Observed(age_years=74.0, mmse=27, ptau217_pg_ml=0.5), make_generator(8), count=200_000)
    assert len(accepted) > 800
    assert found.effective_size > 2000
    assert found.mean(found.population.amyloid_cl) == pytest.approx(float(accepted.amyloid_cl.mean()), abs=2.5)
    low, high = found.quantiles(found.population.amyloid_cl, (0.1, 0.9))
    assert float(((accepted.amyloid_cl >= low) & (accepted.amyloid_cl <= high)).float().mean()) == pytest.approx(
        0.8, abs=0.04
    )


@pytest.mark.slow
def test_posterior_intervals_cover_the_truth_as_often_as_they_say() -> None:
    patients = draw_population(250, make_generator(9))
    inside_80 = inside_95 = 0
    for index in range(len(patients)):
        patient = patients.patient(index)
        observed = Observed(
            patient.age_years, patient.sex, patient.e4, patient.mmse, patient.ptau217_pg_ml, patient.atrophy
        )
        found = sample_posterior(observed, make_generator(1000 + index), count=8_000)
        truth = float(composite_uptake(TRACERS["florbetapir"], patient.amyloid_cl))
        q = found.quantiles(found.suvr("florbetapir"), (0.025, 0.1, 0.9, 0.975))
        inside_80 += q[1] <= truth <= q[2]
        inside_95 += q[0] <= truth <= q[3]
    assert inside_80 / len(patients) == pytest.approx(0.80, abs=0.07)
    assert inside_95 / len(patients) == pytest.approx(0.95, abs=0.04)


def test_plasma_narrows_the_amyloid_interval_and_atrophy_alone_hardly() -> None:
    def width(observed: Observed) -> float:
        found = sample_posterior(observed, make_generator(11), count=50_000)
        low, high = found.quantiles(found.suvr("florbetapir"), (0.1, 0.9))
        return high - low

    nothing = width(Observed(age_years=74.0))
    atrophy = width(Observed(age_years=74.0, atrophy=Atrophy(hippocampus=0.15, ventricles=0.4, cortex=0.06)))
    assert width(Observed(age_years=74.0, ptau217_pg_ml=0.35)) < 0.6 * nothing
    assert atrophy > 0.75 * nothing
