"""Simulated lesions: counts, sizes, places, changes of tissue, and the rule for a lesion's location."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_zoo.lesion_locations import find_lesions as located
from model_zoo.physics import mr
from model_zoo.simulate import heads, lesions, patient_lesions
from model_zoo.simulate.phantom import make_phantom
from model_zoo.structures import CORTEX, COUNT, number

SHAPE = (96, 112, 96)


@pytest.fixture(scope="module")
def head() -> heads.Head:
    return make_phantom(SHAPE, 1.6)


def _draw_lesions(head: heads.Head, seed: int, count: int | None = 30) -> lesions.Lesions:
    return lesions.draw_lesions(head, torch.Generator().manual_seed(seed), count=count)


def test_counts_are_negative_binomial_with_mean_25() -> None:
    g = torch.Generator().manual_seed(0)
    counts = np.array([lesions.draw_count(g) for _ in range(4000)])
    assert counts.mean() == pytest.approx(25, rel=0.08)  # the few above 90 are cut
    assert counts.std() == pytest.approx((25 + 25**2 / 1.5) ** 0.5, rel=0.12)


def test_volumes_are_log_normal_with_median_60_mm3_and_at_least_10() -> None:
    g = torch.Generator().manual_seed(0)
    volumes = np.array([lesions.draw_volume_mm3(g) for _ in range(4000)])
    assert np.median(volumes) == pytest.approx(60, rel=0.06)
    assert volumes.min() == 10


def test_shares_of_the_places_add_to_one() -> None:
    assert sum(lesions.SHARES.values()) == pytest.approx(1.0)


@pytest.mark.slow
def test_the_same_seed_paints_the_same_lesions(head: heads.Head) -> None:
    first, again, other = (_draw_lesions(head, seed) for seed in (1, 1, 2))
    assert torch.equal(first.extent, again.extent)
    assert first.place == again.place
    assert not torch.equal(first.extent, other.extent)


@pytest.mark.slow
def test_white_matter_lesions_stay_in_white_matter_and_cortical_ones_touch_cortex(head: heads.Head) -> None:
    simulated = _draw_lesions(head, 3, 60)
    white = torch.isin(head.structure, torch.tensor([number("cerebral white matter")], dtype=torch.uint8))
    cortex = torch.isin(head.structure, torch.tensor(CORTEX, dtype=torch.uint8))
    cortical = [n + 1 for n, place in enumerate(simulated.place) if place == "cortical"]
    assert cortical
    for n, place in enumerate(simulated.place, start=1):
        voxels = simulated.label == n
        if place in ("periventricular", "juxtacortical", "deep"):
            assert bool(white[voxels].all())
        elif place == "cortical":
            assert bool(cortex[voxels].any())


def test_lesions_change_tissue_inside_their_rims_only(head: heads.Head) -> None:
    simulated = _draw_lesions(head, 4)
    p = mr.TissueParameters.table().draw_regional(torch.Generator().manual_seed(0), COUNT + 1)
    before = p.at(lesions.remove_lesions(head).tissue, head.structure)
    after = simulated.apply_to(before)
    outside = simulated.label == 0
    assert torch.equal(after.t1_ms[outside], before.t1_ms[outside])
    core = (simulated.extent > 0.9) & (head.structure == number("cerebral white matter"))
    assert float((after.t1_ms / before.t1_ms)[core].min()) > 1.0
    assert float((after.t2_ms / before.t2_ms)[core].median()) > 1.3


def test_a_lesion_s_core_lies_between_mild_and_black_hole() -> None:
    g = torch.Generator().manual_seed(5)
    t1 = np.array([lesions.draw_core("deep", g)[0] for _ in range(2000)])
    assert t1.min() > 1150 * 0.85
    assert t1.max() < 2000 * 1.17
    assert np.median(t1) == pytest.approx(1450, rel=0.03)


@pytest.mark.slow
def test_artefacts_brighten_flair_and_change_no_tissue(head: heads.Head) -> None:
    added = torch.stack([lesions.draw_artefacts(head, torch.Generator().manual_seed(s)) for s in range(5)])
    assert float(added.max()) <= 0.8
    assert float(added.max()) > 0.1
    assert float(added[:, head.structure == 0].mean()) < 0.01


def test_no_lesions_where_none_are_asked_for(head: heads.Head) -> None:
    simulated = _draw_lesions(head, 6, 0)
    assert set(simulated.place) <= {"mask"}  # the label map's own


def test_a_mask_is_kept_where_it_is_white_matter_and_large_enough(head: heads.Head) -> None:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    white = torch.nonzero(head.structure == number("cerebral white matter"))
    k, j, i = white[len(white) // 2].tolist()
    mask[k - 2 : k + 3, j - 2 : j + 3, i - 2 : i + 3] = True
    mask[1:5, 1:5, 1:5] = True  # air
    mask[k, j, i + 9] = True  # one voxel: 4 mm3
    simulated = lesions.draw_lesions_from_mask(head, mask, torch.Generator().manual_seed(0))
    assert not bool(simulated.mask[:6, :6, :6].any())
    assert bool(simulated.mask[k, j, i])
    assert not bool(simulated.mask[k, j, i + 9])


def _structure() -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Return white matter with ventricle at one side (i < 5), cortex at the other (i > 35) and brain stem below."""
    structure = np.full((40, 40, 40), number("cerebral white matter"), np.uint8)
    structure[:, :, :5] = number("lateral ventricles")
    structure[:, :, 35:] = number("frontal cortex")
    structure[:8] = number("brain stem")
    return structure


@pytest.mark.parametrize(
    ("place", "box"),
    [
        ("periventricular", (slice(20, 24), slice(20, 24), slice(6, 10))),
        ("deep", (slice(20, 24), slice(20, 24), slice(18, 22))),
        ("juxtacortical", (slice(20, 24), slice(20, 24), slice(31, 35))),
        ("cortical", (slice(20, 24), slice(20, 24), slice(34, 39))),
        ("infratentorial", (slice(2, 6), slice(20, 24), slice(18, 22))),
    ],
)
def test_locations_follow_the_distance_to_ventricles_and_cortex(place: str, box: tuple[slice, ...]) -> None:
    mask = np.zeros((40, 40, 40), bool)
    mask[box] = True
    labels, found = located(mask, _structure())
    assert [lesion.location for lesion in found] == [place]
    assert found[0].volume_mm3 == mask.sum()
    assert (labels[box] == 1).all()


def test_specks_are_no_lesions_and_neighbours_are_one() -> None:
    mask = np.zeros((40, 40, 40), bool)
    mask[20, 20, 18:20] = True
    mask[25:28, 25:28, 18:21] = True
    mask[28:31, 28:31, 21:24] = True  # touches the box before at a corner
    labels, found = located(mask, _structure())
    assert len(found) == 1
    assert found[0].volume_mm3 == 54
    assert labels[20, 20, 18] == 0


def test_a_mask_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="not on one grid"):
        located(np.zeros((4, 4, 4), bool), _structure())


@pytest.mark.slow
def test_drawn_lesions_are_found_where_they_were_meant_to_be(kit: Path) -> None:
    head = heads.make_plain_head("01", shape=(160, 192, 160), root=kit)
    simulated = lesions.draw_lesions(head, torch.Generator().manual_seed(2), count=60)
    labels, found = located(simulated.mask.numpy(), head.structure.numpy(), smallest_mm3=5)
    agreeing, compared = 0, 0
    for lesion in found:
        number_here = int(simulated.label.numpy()[labels == lesion.label].max())
        intended = simulated.place[number_here - 1]
        if intended != "mask":
            compared += 1
            agreeing += intended == lesion.location
    assert compared > 40
    assert agreeing / compared > 0.7


@pytest.mark.slow
def test_patients_masks_fall_into_the_head_s_white_matter(kit: Path) -> None:
    head = heads.make_plain_head("01", shape=(160, 192, 160), root=kit)
    assert len(patient_lesions.list_patients(kit)) == 20
    mask = patient_lesions.place_patient_mask(head, "19", kit)
    assert float((head.structure[mask] == number("cerebral white matter")).float().mean()) > 0.45
    simulated = lesions.draw_lesions_from_mask(head, mask, torch.Generator().manual_seed(0))
    assert float(simulated.mask.sum()) > 0.4 * float(mask.sum())
