"""Recipe pet-synthesis: the content of its batches, the minimum of its loss, and a run from nothing to a bundle."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model_zoo import pet_synthesis, residual_shift
from model_zoo.pet_synthesis import COVARIATES, TARGETS, Covariates
from model_zoo.simulate.pet.disease import draw_patient
from model_zoo.structures import COUNT
from model_zoo.training import pet_synthesis as training
from model_zoo.training.recipe import Source, make_simulated_sources, seeded

pytestmark = pytest.mark.training

SMOKE = training.CONFIGURATIONS["smoke"]
SOURCE = make_simulated_sources(phantom=True).train


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    return training.draw_batch(replace(SMOKE, batch=4), SOURCE, seeded(1))


def test_a_batch_has_every_tensor_in_the_shape_it_promises(batch: dict[str, Tensor]) -> None:
    k, j, i = SMOKE.shape
    assert batch["x0"].shape == batch["noise"].shape == (4, 2, k, j, i)
    assert batch["y0"].shape == (4, 1, k, j, i)
    assert batch["maps"].shape == (4, COUNT, k, j, i)
    assert batch["tokens"].shape == (4, len(COVARIATES), pet_synthesis.TOKEN_WIDTH)
    assert all(bool(torch.isfinite(value).all()) for value in batch.values())
    assert float(batch["y0"].min()) == 0.0
    assert float(batch["y0"].max()) == 1.0


def test_the_same_seed_gives_the_same_batch() -> None:
    first, again = (training.draw_batch(SMOKE, SOURCE, seeded(5)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["x0"], training.draw_batch(SMOKE, SOURCE, seeded(6))["x0"])


def test_quiet_items_carry_no_noise_and_are_at_the_end() -> None:
    batch = training.draw_batch(replace(SMOKE, batch=16), SOURCE, seeded(2))
    quiet = batch["quiet"] > 0
    assert bool(quiet.any())
    assert bool((batch["eta"][quiet] == 1.0).all())
    assert float(batch["noise"][quiet].abs().max()) == 0.0
    assert float(batch["noise"][~quiet].std()) > 0.9


def test_unknown_covariates_are_told_apart_from_average_ones() -> None:
    unknown = pet_synthesis.covariate_tokens(Covariates(None, None))
    average = pet_synthesis.covariate_tokens(Covariates("PiB", "MK-6240", 73.0, "M", 0, 27.0, 0.5))
    assert float(unknown[:, -2:].abs().max()) == 0.0
    assert bool((average[:, -2] == 1.0).all())
    assert float(average[COVARIATES.index("age"), -1]) == 0.0


@pytest.mark.parametrize(
    ("covariates", "rejected"),
    [({"sex": "X"}, "X"), ({"amyloid_tracer": "MK-6240"}, "MK-6240"), ({"e4": 3}, "e4")],
)
def test_covariates_that_do_not_exist_are_refused(covariates: dict[str, str | int], rejected: str) -> None:
    with pytest.raises(ValueError, match=rejected):
        pet_synthesis.covariate_tokens(Covariates(**covariates))  # type: ignore[arg-type]


def test_covariates_are_dropped_as_often_as_stated() -> None:
    every = pet_synthesis.covariate_tokens(Covariates("PiB", "MK-6240", 70.0, "F", 1, 28.0, 0.4))
    kept_share = training.drop_covariates(every.expand(4000, -1, -1), seeded(3))[..., -2].mean(dim=0)
    for name, share in zip(COVARIATES, kept_share.tolist(), strict=True):
        assert share == pytest.approx(0.95 * (1 - training.DROPPED[name]), abs=0.03)


def test_patients_who_share_a_head_share_its_atrophy_and_nothing_else() -> None:
    first, second, third = training.draw_patients_sharing_atrophy(3, seeded(4))
    assert first.atrophy == second.atrophy == third.atrophy
    assert len({first.amyloid_cl, second.amyloid_cl, third.amyloid_cl}) == 3


def test_painted_noise_varies_by_structure_and_is_shared_within_it(batch: dict[str, Tensor]) -> None:
    maps = batch["maps"]
    noise = pet_synthesis.anatomical_noise(maps, seeded(7))
    levels = torch.einsum("brv,bcv->bcr", maps.flatten(2), noise.flatten(2)) / maps.flatten(2).sum(2)[:, None]
    assert float(levels.std()) > 0.5
    outside = (maps.sum(dim=1, keepdim=True) == 0).expand_as(noise)
    assert float(noise[outside].std()) == pytest.approx(1.0, abs=0.05)


class _StatingNetwork(nn.Module):
    """A network whose prediction is stated beforehand."""

    def __init__(self, x0_hat: Tensor, log_sd: Tensor) -> None:
        super().__init__()
        self.x0_hat, self.log_sd = x0_hat, log_sd

    def forward(self, *_: Tensor) -> tuple[Tensor, Tensor]:
        return self.x0_hat, self.log_sd


def _compute_loss_of(
    residual: Tensor, log_sd: Tensor, batch: dict[str, Tensor], c: training.Configuration = SMOKE
) -> Tensor:
    """Return the loss of a prediction that is off by ``residual``."""
    return training.compute_loss(_StatingNetwork(batch["x0"] + residual, log_sd), batch, c)


def test_the_loss_is_least_for_the_truth(batch: dict[str, Tensor]) -> None:
    log_sd = torch.zeros(4, len(TARGETS), COUNT)
    true = _compute_loss_of(torch.zeros_like(batch["x0"]), log_sd, batch)
    biased = _compute_loss_of(torch.full_like(batch["x0"], 0.1), log_sd, batch)
    assert float(true) == pytest.approx(0.0, abs=1e-6)
    assert float(biased) > 0.5


def test_the_learned_sd_is_best_where_it_matches_the_errors(batch: dict[str, Tensor]) -> None:
    residual = 0.1 * torch.ones_like(batch["x0"])

    def nll(sd: float) -> float:
        log_sd = torch.full((4, len(TARGETS), COUNT), math.log(sd))
        return float(_compute_loss_of(residual, log_sd, batch, replace(SMOKE, image_weight=0.0)))

    assert nll(0.1) < min(nll(0.03), nll(0.3))


def test_a_missing_tracer_has_no_say(batch: dict[str, Tensor]) -> None:
    only = batch | {"known": torch.tensor([[1.0, 0.0]]).expand(4, -1)}
    log_sd = torch.zeros(4, len(TARGETS), COUNT)
    residual = torch.zeros_like(batch["x0"])
    residual[:, 1] = 1.0
    assert float(_compute_loss_of(residual, log_sd, only)) == pytest.approx(0.0, abs=1e-6)


def test_network_gives_samples_that_differ_and_one_mean(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    network = training.make_network(SMOKE).eval()
    conditions = training.select_conditions(batch)
    with torch.no_grad():
        a, b = (pet_synthesis.draw_samples(network, conditions, pet_synthesis.SCHEDULES[4], seeded(s)) for s in (1, 2))
        mean, again = (pet_synthesis.predict_mean(network, conditions) for _ in range(2))
    assert a.shape == mean.shape == batch["x0"].shape
    assert torch.equal(mean, again)
    assert not torch.equal(a, b)


def test_schedules_start_where_nothing_is_known_of_the_pet() -> None:
    for steps, etas in pet_synthesis.SCHEDULES.items():
        assert len(etas) == steps
        assert etas[-1] == 1.0
    x0, y0, e = torch.zeros(3), torch.ones(3), torch.zeros(3)
    assert torch.equal(residual_shift.shift(x0, y0, 1.0, pet_synthesis.KAPPA, e), y0)


def test_the_recipe_runs_from_nothing_to_a_bundle_that_the_registry_loads(tmp_path: Path) -> None:
    from datetime import date

    from model_zoo import registry
    from model_zoo.training import bundle, loop

    checkpoint = loop.train(
        training.RECIPE, SMOKE, tmp_path / "run", sources=make_simulated_sources(phantom=True), report=lambda line: None
    )
    bundle.write(
        training.RECIPE, checkpoint, tmp_path / "bundles" / "pet_synthesis", version="0.0.1", made_on=date(2026, 1, 1)
    )
    model = registry.load("pet_synthesis", root=tmp_path / "bundles")
    batch = training.draw_batch(SMOKE, SOURCE, seeded(1))
    with torch.no_grad():
        assert pet_synthesis.predict_mean(model.network, training.select_conditions(batch)).shape == batch["x0"].shape


def test_simulated_subjects_on_real_anatomy_carry_their_patients_state(kit: Path) -> None:
    c = replace(training.CONFIGURATIONS["cpu"], batch=1)
    source = Source(("01",), kit)
    patient = draw_patient(seeded(8))
    head = training.draw_head(c, source, patient, seeded(9))
    low, high = (
        training.simulate_subjects(
            head, [replace(patient, amyloid_cl=cl)], seeded(10), tracers=("PiB", "flortaucipir")
        )[0]
        for cl in (0.0, 100.0)
    )
    assert head.atrophy == patient.atrophy
    assert low.x0.shape == (2, *c.shape)
    cortex = low.structure == 2
    assert float((high.pet[0][cortex] - low.pet[0][cortex]).mean()) > 0.6
    assert float((high.pet[1] - low.pet[1]).abs().max()) == 0.0


def test_the_quick_evaluation_fills_every_table_and_picture(tmp_path: Path) -> None:
    from model_zoo.bundle import Model
    from model_zoo.evaluation.pet_synthesis import METHODS, evaluate

    c = replace(SMOKE, spacing_mm=6.0, shape=(24, 32, 24))
    torch.manual_seed(0)
    network = training.make_network(c).eval()
    model = Model("pet_synthesis", "0", "", {}, network, training.describe_inference(c), "cpu")
    shares: list[float] = []
    found = evaluate(model, root=None, quick=True, progress=lambda share, step: shares.append(share))
    assert [table.title.split()[0] for table in found.tables[:2]] == list(TARGETS)
    assert [row[0] for row in found.tables[0].rows][: len(METHODS)] == list(METHODS)
    assert {"amyloid_psnr_db", "tau_coverage_80"} <= set(found.metrics)
    assert len(found.pictures) == 2
    assert shares == sorted(shares)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Write a user's data set: one subject with amyloid only, in Bq/ml and not SUVR; one with both tracers."""
    import nibabel
    import numpy as np

    from model_zoo.physics.tracers import TRACERS
    from model_zoo.simulate.pet.activity import render_activity
    from model_zoo.simulate.phantom import make_phantom

    head = make_phantom((44, 52, 44), 5.0)
    pet = render_activity(head, TRACERS["PiB"], 80.0, seeded(1))
    volumes = {"t1w": head.structure.float() * 10, "structures": head.structure, "amyloid": 4321.0 * pet, "tau": pet}
    for name, volume in volumes.items():
        ras = volume.numpy().transpose(2, 1, 0)[::-1, ::-1]
        nibabel.save(
            nibabel.Nifti1Image(ras.astype(np.float32), np.diag([5.0, 5.0, 5.0, 1.0])), tmp_path / f"{name}.nii"
        )
    path = tmp_path / "table.csv"
    path.write_text(
        "subject,split,t1w,structures,amyloid,tau,amyloid_tracer,age,sex,e4\n"
        "s1,train,t1w.nii,structures.nii,amyloid.nii,,PiB,71,F,1\n"
        "s2,validation,t1w.nii,structures.nii,amyloid.nii,tau.nii,PiB,,,\n"
    )
    return path


def test_a_user_s_pet_becomes_suvr_by_its_own_reference_and_a_missing_tracer_is_marked(table: Path) -> None:
    from model_zoo.physics.suvr import composite_suvr
    from model_zoo.training import manifest

    sources = manifest.make_sources(manifest.read(table, training.RECIPE.columns))
    batch = training.draw_batch(replace(SMOKE, batch=1, patients=1), sources.train, seeded(1))
    assert batch["known"].tolist() == [[1.0, 0.0]]
    assert float(batch["x0"][:, 1].abs().max()) == 0.0
    maps = batch["maps"][0].flatten(1)
    means = (maps @ batch["x0"][0, 0].flatten()) / maps.sum(1) * 3.0
    assert 1.4 < float(composite_suvr(means, "amyloid")) < 2.6
    both = training.draw_batch(replace(SMOKE, batch=1), sources.validation, seeded(1))
    assert both["known"].tolist() == [[1.0, 1.0]]


def test_a_user_s_covariates_are_read_and_absent_ones_are_unknown(table: Path) -> None:
    from model_zoo.training import manifest

    sources = manifest.make_sources(manifest.read(table, training.RECIPE.columns))
    expected = pet_synthesis.covariate_tokens(Covariates("PiB", None, 71.0, "F", 1, None, None))
    tokens = training.draw_batch(replace(SMOKE, batch=12), sources.train, seeded(1))["tokens"]
    known = tokens[..., -2] > 0  # training drops some of them in each item
    assert torch.equal(known.any(dim=0), expected[:, -2] > 0)
    assert torch.equal(tokens[known], expected.expand_as(tokens)[known])
