"""Semi-supervised standard-dose PET: the loss of both stages, the parts that each trains, rows without a partner."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import typer
from torch import Tensor

from dicomnode.cli.train import override_fields
from model_zoo import ct_tissues, registry, standard_dose
from model_zoo.simulate.pet import low_dose
from model_zoo.simulate.pet.torso import ORGANS, draw_torso
from model_zoo.training import (
    bundle,
    checkpoint,
    dose_items,
    load,
    loop,
    manifest,
    recipe,
    standard_dose_pet,
    standard_dose_semi,
)
from model_zoo.training.pet_losses import structural_consistency
from model_zoo.training.recipe import seeded
from model_zoo.training.standard_dose_semi import RECIPE, Configuration, compute_loss, draw_batch, make_network

SMOKE = standard_dose_semi.CONFIGURATIONS["smoke"]
PHANTOM = recipe.make_simulated_sources(phantom=True).train
FIRST, SECOND = {"progress": torch.tensor(0.2)}, {"progress": torch.tensor(0.5)}


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    return draw_batch(SMOKE, PHANTOM, seeded(1))


def test_blocks_that_share_an_error_are_not_alike() -> None:
    target = torch.randn(2, 3, 16, 16, 16, generator=seeded(1))
    same = structural_consistency(target, target, vertex_weight=1.0)
    moved = structural_consistency(target + 2.0, target, vertex_weight=0.0)
    scaled = structural_consistency(3.0 * target, target)
    turned = structural_consistency(-target, target)
    assert (float(same), float(moved), float(scaled)) == pytest.approx((0, 0, 0), abs=1e-5)
    assert float(turned) == pytest.approx(2, abs=1e-5)
    errors = torch.ones(2, 3, 16, 16, 16)
    errors[:, :, 8:] = 3.0  # all of one direction: eq. 11.7 as printed gives no error
    assert float(structural_consistency(target + errors, target)) > 0.05
    vertex = structural_consistency(target + 2.0, target, vertex_weight=0.5, line_weight=0.0)
    assert float(vertex) == pytest.approx(0.5 * 4.0, rel=1e-5)


def test_a_vertex_pulls_each_block_towards_its_target() -> None:
    estimated = torch.zeros(1, 1, 8, 8, 8, requires_grad=True)
    structural_consistency(estimated, torch.ones(1, 1, 8, 8, 8), vertex_weight=1.0, line_weight=0.0).backward()  # type: ignore[no-untyped-call]
    assert estimated.grad is not None
    pulled = estimated.grad != 0
    assert int(pulled.sum()) == 7 * 2**3
    assert torch.allclose(estimated.grad[pulled], torch.tensor(-2 / 56))


@pytest.mark.slow
def test_the_first_stage_asks_for_the_image_less_its_widest_blur(batch: dict[str, Tensor]) -> None:
    network = make_network(SMOKE)
    for weights in (*network.decode_low.parameters(), *network.decode_standard.parameters()):  # type: ignore[union-attr]
        torch.nn.init.zeros_(weights)
    low = batch["low"]
    widest = batch["copies"][:, 3:4]
    detail = (low - widest) / batch["amplitude"]
    assert torch.allclose(batch["inputs_low"][: len(low), :3].sum(dim=1, keepdim=True), detail, atol=1e-3)
    expected = sum(float(batch[f"inputs_{name}"][:, :3].sum(dim=1).square().mean()) for name in ("low", "standard"))
    assert float(compute_loss(network, batch | FIRST, SMOKE).detach()) == pytest.approx(expected, rel=1e-5)


def _find_trained_parts(batch: dict[str, Tensor], progress: dict[str, Tensor], c: Configuration = SMOKE) -> set[str]:
    network = make_network(c)
    compute_loss(network, batch | progress, c).backward()  # type: ignore[no-untyped-call]
    return {name for name, part in network.named_children() if any(p.grad is not None for p in part.parameters())}


def test_each_stage_trains_its_own_parts_only(batch: dict[str, Tensor]) -> None:
    encoders = {"encode_low", "encode_standard"}
    assert _find_trained_parts(batch, FIRST) == encoders | {"decode_low", "decode_standard"}
    assert _find_trained_parts(batch, SECOND) == {"encode_low", "transfer", "decode_standard"}


def test_images_without_a_partner_count_in_the_first_stage_only(batch: dict[str, Tensor]) -> None:
    network = make_network(SMOKE)
    pairs = len(batch["target"])
    other = {name: value.clone() for name, value in batch.items()}
    for name in ("inputs_low", "inputs_standard"):
        assert len(other[name]) == pairs + SMOKE.lone
        other[name][pairs:] += 1.0
    first, second = (
        [float(compute_loss(network, d | stage, SMOKE).detach()) for d in (batch, other)] for stage in (FIRST, SECOND)
    )
    assert first[0] != first[1]
    assert second[0] == second[1]


def test_the_second_stage_is_the_fidelity_of_the_pairs_and_the_structure_of_their_features(
    batch: dict[str, Tensor],
) -> None:
    network = make_network(SMOKE)
    for parameter in network.parameters():  # the transfer must not be near the standard dose's features by chance
        torch.nn.init.normal_(parameter, std=0.1, generator=seeded(4))
    pairs = {"inputs": batch["inputs_low"][:2], "embedding": batch["embedding_low"][:2]}
    supervised = float(standard_dose_pet.compute_loss(network, batch | pairs, SMOKE).detach())
    none, one, two = (
        float(compute_loss(network, batch | SECOND, replace(SMOKE, struc_weight=w)).detach()) for w in (0.0, 1.0, 2.0)
    )
    assert none == pytest.approx(supervised, rel=1e-5)
    assert one - none > 1e-4
    assert two - one == pytest.approx(one - none, rel=1e-3)


@pytest.mark.slow
def test_the_stage_changes_at_its_step_and_the_bundle_restores_an_image(tmp_path: Path) -> None:
    c, before = replace(SMOKE, checkpoint_every=1), {}

    def keep(line: dict[str, float]) -> None:
        if line["step"] > 1:  # the checkpoint of this step is not yet written
            found = checkpoint.read(tmp_path / checkpoint.NAME)
            before[found.step] = found.network

    run = loop.train(RECIPE, c, tmp_path, sources=recipe.make_simulated_sources(phantom=True), report=keep)
    states = [before[step] for step in sorted(before)] + [checkpoint.read(run).network]
    changes = [
        {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])} for one, two in pairwise(states)
    ]
    first = {"encode_low", "encode_standard", "decode_low", "decode_standard"}
    assert changes == [first] * 2 + [{"encode_low", "transfer", "decode_standard"}] * 3
    bundle.write(RECIPE, run, tmp_path / "bundle", version="0.0.0", made_on=date(2026, 1, 2), commit="c0ffee")
    model = registry.load_from(registry.read_facts(tmp_path / "bundle"))
    low = 4000 * torch.rand(16, 20, 24, generator=seeded(2))
    mean, sd = standard_dose.restore(model.network, low, 0.1, spacing_mm=8.0)
    assert mean.shape == sd.shape == low.shape
    assert bool(mean.isfinite().all())


def _write_table(folder: Path, *rows: str) -> manifest.Cohort:
    (folder / "pet.csv").write_text("\n".join(["subject,split,low,standard,dose", *rows]) + "\n")
    return manifest.read(folder / "pet.csv", RECIPE.columns)


def test_a_users_rows_may_lack_a_partner_and_every_stage_reads_what_it_can(tmp_path: Path) -> None:
    levels = {"low": 1.0, "standard": 1.1, "alone-low": 5.0, "alone-standard": 9.0}
    for at, name in enumerate(levels):
        image = (1 + 0.2 * np.random.default_rng(at).normal(size=(20, 20, 20))).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.diag([-8.0, -8.0, 8.0, 1.0])), tmp_path / f"{name}.nii")
    rows = ["a,train,low.nii,standard.nii,0.1", "b,train,alone-low.nii,,0.1", "c,train,,alone-standard.nii,"]
    found = manifest.make_sources(_write_table(tmp_path, *rows, "d,validation,low.nii,standard.nii,0.1"))
    lines = {
        name: [row.line for row in _find_rows(standard_dose_semi.select_rows(found.train, *name.split()))]
        for name in _SIDES
    }
    assert lines == {"low": [2, 3], "standard": [2, 4], "low standard": [2]}
    batch = draw_batch(SMOKE, found.train, seeded(4))
    assert batch["inputs_low"].shape == (3, 9, 16, 16, 16)
    for stage in (FIRST, SECOND):
        assert bool(compute_loss(make_network(SMOKE), batch | stage, SMOKE).isfinite())
    with pytest.raises(ValueError, match="no row of a split has low and standard"):
        draw_batch(
            SMOKE,
            manifest.make_sources(_write_table(tmp_path, *rows[1:], "d,validation,low.nii,,0.1")).train,
            seeded(4),
        )
    no_dose = manifest.make_sources(
        _write_table(tmp_path, "a,train,low.nii,standard.nii,", "d,validation,low.nii,standard.nii,0.1")
    )
    with pytest.raises(ValueError, match="line 2, column dose: it is blank, but the row has a low-dose image"):
        draw_batch(SMOKE, no_dose.train, seeded(4))


_SIDES = ("low", "standard", "low standard")


def _find_rows(source: recipe.Source) -> tuple[manifest.Row, ...]:
    assert source.cohort is not None
    return source.cohort.rows


def test_labels_by_ct_are_those_of_the_attenuation_map_and_the_bundle_names_them() -> None:
    body = draw_torso(seeded(3), shape=(24, 96, 128), spacing_mm=4.0, middle_mm=(0, 0, 400), lesions=0)
    found = low_dose.label_by_attenuation(low_dose.make_torso(body, 1))
    lungs = body.organ == ORGANS.index("lungs")
    assert float((found.regions[lungs] == 1).float().mean()) > 0.95
    assert float((found.regions[body.organ == 0] == 0).float().mean()) > 0.98
    c = replace(standard_dose_pet.CONFIGURATIONS["smoke"], labels="ct", regions_share=1.0)
    batch = standard_dose_pet.draw_batch(c, PHANTOM, seeded(1))
    assert int(batch["regions"].max()) in range(1, 5)
    assert bool(torch.isfinite(standard_dose_pet.compute_loss(standard_dose_pet.make_network(c), batch, c)))
    settings = standard_dose_pet.describe_inference(c)
    assert settings["regions"] == list(ct_tissues.NAMES)
    assert settings["network_def"]["maps"] == 4
    both = replace(c, labels="both")
    numbers = {int(dose_items.label_torso(both, body, 1, seeded(n)).regions.max()) for n in range(8)}
    assert numbers == {int(low_dose.make_torso(body, 1).regions.max()), len(low_dose.REGIONS) + 4}
    assert standard_dose_pet.describe_inference(both)["regions"] == [*low_dose.REGIONS, *ct_tissues.NAMES]


def test_fields_of_a_configuration_are_set_by_name_and_kind() -> None:
    c = load("standard-dose-pet-semi").configurations["smoke"]
    found = override_fields(c, ["first_stage=0.25", "labels=ct", "lone=3", "spacings_mm=[4, 6]", "learning_rate=1"])
    assert found == replace(
        c, first_stage=0.25, labels="ct", lone=3, spacings_mm=(4, 6), learning_rate=1.0
    )  # fmt: skip
    assert json.loads(found.to_json())["lone"] == 3
    assert override_fields(c, []) == c
    for setting, words in (
        ("depth=3", "no field 'depth'"),
        ("lone=many", "lone is 1, a int"),
        ("lone=0.5", "lone is 1"),
    ):
        with pytest.raises(typer.BadParameter, match=words):
            override_fields(c, [setting])
