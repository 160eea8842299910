"""Registration of an MR of the head to a PET: the motion is found, its tissues are given to the network, its structures
are measured; an MR that does not fit is not used.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from model_zoo import registry
from model_zoo.bundle import Model
from model_zoo.simulate.pet.low_dose import REGIONS
from model_zoo.standard_dose import OUT_CHANNELS
from model_zoo.structures import TISSUE_GROUPS
from pipelines import head_regions, standard_dose_pet
from pipelines.contract import Case, Measurement, Note, Volume
from tests.bundles import phantom, phantom_grid, write_anatomy_bundle
from tests.pet_series import write_pet_bundle

pytestmark = pytest.mark.slow

FACTS = {"modality": "PT", "units": "BQML", "corrections": ("ATTN", "DECY"), "suv_bw_per_unit": 2.5e-4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    root: Path = tmp_path_factory.mktemp("models")
    write_pet_bundle(root)
    write_anatomy_bundle(root)
    return replace(
        registry.load("standard_dose_pet", root=root), helpers={"anatomy": registry.load("anatomy", root=root)}
    )


def _head_pet(movement: NDArray[np.float64] | None = None, levels_of: tuple[float, ...] = (8.0, 2.0, 0.5)) -> Volume:
    """Return a PET of the phantom's tissues at 4 mm, blurred, with the head moved."""
    _, structure = phantom()
    tissues = np.select([np.isin(structure, own) for own in TISSUE_GROUPS.values()], levels_of, 0.2)
    k, j, i = np.indices(structure.shape)
    back = np.linalg.inv(phantom_grid().affine_mm) @ np.linalg.inv(np.eye(4) if movement is None else movement)
    at = np.einsum("xn,n...->x...", back @ phantom_grid().affine_mm, np.stack([i, j, k, np.ones_like(i)]))
    moved = ndimage.map_coordinates(tissues, at[2::-1], order=1, cval=0.2)
    return Volume(ndimage.gaussian_filter(1e3 * moved, 0.7).astype(np.float32), phantom_grid(), "Bq/ml")


@pytest.mark.parametrize("levels_of", [(8.0, 2.0, 0.5), (1.0, 1.6, 0.5)], ids=["FDG", "amyloid tracer"])
def test_the_registration_finds_how_the_head_moved(levels_of: tuple[float, ...]) -> None:
    _, structure = phantom()
    middle = head_regions.centre_of_mass_mm(structure, phantom_grid())
    true = head_regions.rigid_motion(np.array([0.7, -0.5, 0.9, 0.8, -0.5, 0.6]), middle)
    found, explained, shift_mm = head_regions.register_to_pet(structure, phantom_grid(), _head_pet(true, levels_of))
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-70, 70) for z in (-50, 50)]).T + [[0]] * 4
    corners[:3] += middle[:, None].astype(int)
    assert float(np.linalg.norm((found - true) @ corners, axis=0).max()) < 2.5
    assert explained > 0.8
    assert shift_mm == pytest.approx(12.4, abs=1.5)


class Recorder(nn.Module):
    """Network that returns its image and records the region maps that it received."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.received: list[Tensor | None] = []

    def forward(self, x: Tensor, embedding: Tensor, tokens: None, maps: Tensor | None) -> Tensor:
        self.received.append(maps)
        answer = torch.zeros(len(x), OUT_CHANNELS, *x.shape[2:])
        answer[:, 2] = 60.0
        return answer


def _run_with_mr(model: Model, pet: Volume) -> tuple[list[Any], Recorder]:
    image, _ = phantom()
    recorder = Recorder()
    case = Case({"pet": pet, "mr": Volume(image, phantom_grid())}, FACTS)
    recording_model = replace(model, network=recorder)
    options = standard_dose_pet.Options()
    return standard_dose_pet.run(case, recording_model, options, 0, lambda done, step: None), recorder


def test_an_mr_of_the_head_tells_the_network_its_tissues_and_the_report_its_structures(model: Model) -> None:
    findings, recorder = _run_with_mr(model, _head_pet())
    (maps,) = recorder.received
    assert maps is not None
    assert maps.shape[1] == len(REGIONS)
    structure = phantom()[1]
    truth = torch.from_numpy(np.isin(structure, TISSUE_GROUPS["grey matter"]))
    grey = maps[0, REGIONS.index("grey matter"), : len(structure)] > 0.5
    assert float((grey & truth).sum() * 2 / (grey.sum() + truth.sum())) > 0.9
    assert not maps[0, REGIONS.index("liver")].any()
    means = {f.group: f.value for f in findings if isinstance(f, Measurement) and f.name == "SUVmean"}
    assert {"body", "brain", "thalamus", "frontal cortex"} <= set(means)
    assert means["frontal cortex"] > 1.5 * means["cerebral white matter"]
    assert any("registered rigidly" in f.text for f in findings if isinstance(f, Note))


def test_an_mr_that_does_not_fit_the_pet_is_not_used_and_that_is_said(model: Model) -> None:
    structure = phantom()[1]
    generator = np.random.default_rng(2)
    noise = ndimage.gaussian_filter(generator.normal(size=structure.shape), 2)
    findings, recorder = _run_with_mr(model, Volume((1 + noise).astype(np.float32) * 1000, phantom_grid(), "Bq/ml"))
    assert recorder.received == [None]
    assert {f.group for f in findings if isinstance(f, Measurement)} == {"", "body"}
    assert any("could not be laid upon the PET" in f.text for f in findings if isinstance(f, Note))
