"""Findings about lesions and the DIR that shows them, on estimates whose every voxel is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model_zoo.structures import number
from pipelines import dir_support, lesion_segments, lesions
from pipelines.contract import Finding, Grid, Measurement, Note
from pipelines.dir_estimate import DirEstimate
from pipelines.laterality import LEFT, RIGHT, find_midplane
from pipelines.lesions import Thresholds

SHAPE = (40, 40, 40)
GREY, WHITE = 1.2, 1.0


def _estimate(
    *boxes: tuple[slice, slice, slice], flair: float = 2.0, dir_: float = 1.5, sd: float = 0.2
) -> DirEstimate:
    """Return white matter in a shell of cortex, brain stem below, a ventricle in the middle, and lesions in boxes."""
    structure = np.full(SHAPE, number("cerebral white matter"), np.uint8)
    structure[:, :6], structure[:6] = number("frontal cortex"), number("brain stem")
    structure[18:24, 18:24, 18:24] = number("lateral ventricles")
    generator = np.random.default_rng(1)
    noise = generator.normal(0, 0.01, SHAPE)
    level = np.where(structure == number("frontal cortex"), GREY, WHITE) + noise
    dir_level = np.where(structure == number("frontal cortex"), 1.0, 0.0) + noise
    lesion = np.zeros(SHAPE)
    for box in boxes:
        level[box], dir_level[box], lesion[box] = flair, dir_, 0.9
    f32 = np.float32
    return DirEstimate(
        Grid(SHAPE, np.eye(4)), level.astype(f32), (2 - level).astype(f32), structure, dir_level.astype(f32),
        np.full(SHAPE, sd, f32), np.zeros(SHAPE, f32), lesion.astype(f32), np.zeros((3, *SHAPE), f32), None,
    )  # fmt: skip


def _box(k: int, j: int, i: int, size: int = 4) -> tuple[slice, slice, slice]:
    return slice(k, k + size), slice(j, j + size), slice(i, i + size)


def _values(findings: list[Finding], group: str = "") -> dict[str, float]:
    return {f.name: f.value for f in findings if isinstance(f, Measurement) and f.group == group}


@pytest.mark.parametrize(
    ("box", "place"),
    [
        (_box(30, 6, 30), "juxtacortical"),
        (_box(30, 2, 30), "juxtacortical"),
        (_box(26, 20, 20), "periventricular"),
        (_box(1, 20, 20), "infratentorial"),
        (_box(30, 30, 30), "deep"),
    ],
)
def test_a_lesion_has_the_place_where_it_lies(box: tuple[slice, slice, slice], place: str) -> None:
    found = lesions.find_lesions(_estimate(box), Thresholds())
    assert [lesion.place.name for lesion in found.lesions] == [place]
    assert _values(lesions.measure_lesions(found, Thresholds()))[f"{place} lesions"] == 1


def test_the_largest_comes_first_and_too_small_ones_never() -> None:
    e = _estimate(_box(30, 30, 30, 3), _box(30, 14, 30, 5), _box(12, 30, 12, 2))
    found = lesions.find_lesions(e, Thresholds())
    assert [lesion.volume_mm3 for lesion in found.lesions] == [125, 27]
    assert (found.labels == 1).sum() == 125
    assert found.labels[13, 31, 13] == 0


def test_contrast_and_its_probability_follow_from_the_values() -> None:
    findings = lesions.measure_lesions(
        lesions.find_lesions(_estimate(_box(30, 30, 30), sd=0.6), Thresholds()), Thresholds()
    )
    lesion = _values(findings, "lesion 1")
    assert lesion["contrast"] == pytest.approx(1.5, abs=0.01)
    assert lesion["mean standard deviation"] == pytest.approx(0.6, abs=1e-4)
    assert lesion["probability of contrast"] == pytest.approx(0.97725, abs=0.001)  # two standard deviations


def test_what_flair_does_not_show_is_counted_as_without_support() -> None:
    found = lesions.find_lesions(_estimate(_box(30, 30, 30), flair=1.02), Thresholds())
    assert (found.lesions, found.unsure, found.dropped) == ((), 0, 1)
    assert _values(lesions.measure_lesions(found, Thresholds()))["lesions without support"] == 1


def test_a_brain_stem_that_is_bright_as_a_whole_supports_no_lesion() -> None:
    e = _estimate(_box(1, 20, 20), flair=1.4)
    assert len(lesions.find_lesions(e, Thresholds()).lesions) == 1
    bright = np.where(e.structure == number("brain stem"), np.maximum(e.flair, 1.4), e.flair)
    found = lesions.find_lesions(replace(e, flair=bright), Thresholds())
    assert (found.lesions, found.dropped) == ((), 1)


def test_a_part_of_which_the_network_is_not_sure_is_told_but_no_lesion() -> None:
    e = _estimate(_box(1, 20, 20))
    found = lesions.find_lesions(replace(e, lesion=e.lesion * 0.8), Thresholds())
    assert (found.lesions, found.unsure, found.dropped) == ((), 1, 0)
    assert _values(lesions.measure_lesions(found, Thresholds()))["unsure parts"] == 1


def test_a_bright_core_deep_in_white_matter_needs_less_probability() -> None:
    e = _estimate(_box(30, 30, 30))
    found = lesions.find_lesions(replace(e, lesion=e.lesion * 0.4), Thresholds())
    assert [lesion.volume_mm3 for lesion in found.lesions] == [64]
    assert found.lesions[0].probability == pytest.approx(0.36)
    assert not lesions.find_lesions(replace(e, lesion=e.lesion * 0.2), Thresholds()).lesions


def test_without_lesions_the_answer_is_none_and_a_valid_segmentation() -> None:
    e = _estimate()
    found = lesions.find_lesions(e, Thresholds())
    assert _values(lesions.measure_lesions(found, Thresholds()))["lesions"] == 0
    segmentation = lesion_segments.make_segmentation(found, e, Thresholds(), e.grid, 1.0)
    assert not segmentation.labels.any()
    assert len(segmentation.segments) == 4


def test_a_lesion_thinner_than_a_slice_keeps_its_peak_in_the_segmentation() -> None:
    e = _estimate((slice(30, 32), slice(30, 34), slice(30, 34)))
    found = lesions.find_lesions(e, Thresholds())
    thick = Grid((8, 40, 40), np.diag([1.0, 1.0, 5.0, 1.0]) + np.array([[0, 0, 0, 0]] * 2 + [[0, 0, 0, 2], [0] * 4]))
    labels = lesion_segments.make_segmentation(found, e, Thresholds(), thick, 5.0).labels
    assert (labels > 0).sum() == 1
    assert labels[6, 30:34, 30:34].any()


def test_the_rest_of_a_long_list_is_a_sentence() -> None:
    e = _estimate(*(_box(30, j, i, 3) for j in (12, 20, 28) for i in (10, 20, 30)))
    findings = lesions.measure_lesions(lesions.find_lesions(e, Thresholds(max_listed=2)), Thresholds(max_listed=2))
    assert {f.group for f in findings if isinstance(f, Measurement)} == {"", "lesion 1", "lesion 2"}
    (note,) = [f for f in findings if isinstance(f, Note)]
    assert note.text == "7 further lesions of at most 27 mm3 are in the segmentation only"


def test_dir_that_is_bright_without_a_reason_is_found() -> None:
    honest = _estimate(_box(30, 30, 30))
    assert _values(dir_support.measure_support(honest))["bright without support"] == 0
    invented = _values(dir_support.measure_support(_estimate(_box(30, 30, 30), flair=WHITE)))
    assert invented["bright without support"] == 1
    assert invented["volume bright without support"] == pytest.approx(0.064)


def test_a_dark_t1w_is_support_enough() -> None:
    e = _estimate(_box(30, 30, 30), flair=WHITE)
    dark = (2 - e.flair).copy()
    dark[_box(30, 30, 30)] = 0.4
    assert _values(dir_support.measure_support(replace(e, t1w=dark)))["bright without support"] == 0
    assert _values(dir_support.measure_support(replace(e, t1w=None)))["bright without support"] == 1


def test_a_lesion_that_dir_does_not_show_lowers_the_share() -> None:
    e = _estimate(_box(30, 30, 30), _box(30, 14, 30))
    assert _values(dir_support.measure_support(e))["share of FLAIR's bright spots shown"] == 1
    e.dir[_box(30, 14, 30)] = 0.1
    assert _values(dir_support.measure_support(e))["share of FLAIR's bright spots shown"] == 0.5
    assert "share of FLAIR's bright spots shown" not in _values(dir_support.measure_support(_estimate()))


def test_dir_on_which_cortex_is_as_bright_as_the_lesion_adds_nothing_to_flair() -> None:
    lesion = _box(30, 8, 30)
    e = _estimate(lesion, flair=2.0, dir_=0.5)
    mask = np.zeros(SHAPE, np.bool_)
    mask[lesion] = True
    k, j, i = (np.abs(np.clip(x, a, a + 3) - x) for x, a in zip(np.indices(SHAPE), (30, 8, 30), strict=True))
    distance = np.sqrt(k**2 + j**2 + i**2)
    near = (distance > 1.5) & (distance <= 5)
    cortex = (near & (e.structure == number("frontal cortex"))).sum() / near.sum()
    values = _values(found := dir_support.compare_with_flair(e, mask))
    assert values["separation of lesions on FLAIR"] == 1.0
    assert 0.05 < cortex < 0.5
    assert values["separation of lesions on DIR"] == pytest.approx(1 - cortex)  # the cortex is at 1.0
    (note,) = [f for f in found if isinstance(f, Note)]
    assert note.text.startswith("The synthetic DIR adds nothing to FLAIR here")


def test_no_result_claims_that_dir_is_better_than_flair() -> None:
    e = _estimate(_box(30, 8, 30), flair=1.1, dir_=1.5)
    mask = e.lesion > 0
    values = _values(found := dir_support.compare_with_flair(e, mask))
    assert values["separation of lesions on DIR"] == 1.0 > values["separation of lesions on FLAIR"]
    assert not [f for f in found if isinstance(f, Note)]  # the lesions were found by the same model
    assert dir_support.compare_with_flair(_estimate(), np.zeros(SHAPE, np.bool_)) == []


def _make_turned_grid(shape: tuple[int, int, int], degrees: float) -> Grid:
    """Return a head's grid, turned about the feet-head axis, with its middle far from the origin."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:2, :2] = [[c, -s], [s, c]]
    affine[:3, 3] = [40.0, -70.0, 30.0]
    return Grid(shape, affine)


def _with_putamina(e: DirEstimate, degrees: float = 0.0) -> DirEstimate:
    """Return a head twice as wide as that of ``_estimate``, with putamina of 1.3 ml whose middles are 48 mm apart."""
    arrays = ("flair", "t1w", "structure", "dir", "sd", "epistemic", "lesion")
    widened: dict[str, Any] = {name: np.concatenate([getattr(e, name)] * 2, axis=2) for name in arrays}
    for start in (12, 60):
        widened["structure"][14:26, 14:26, start : start + 9] = number("putamen")
    shape = widened["structure"].shape
    return replace(e, grid=_make_turned_grid((shape[0], shape[1], shape[2]), degrees), **widened)


@pytest.mark.parametrize("degrees", [0.0, 20.0, -35.0])
def test_a_lesion_has_a_side_however_the_head_is_turned(degrees: float) -> None:
    """+x is left, and a higher column lies farther left; the lesion stands in both halves of the doubled head."""
    e = _with_putamina(_estimate(_box(30, 30, 15)), degrees)
    found = lesions.find_lesions(e, Thresholds())
    sides = {lesion.peak[2] > 40: [m for m in lesion.site.modifiers if m in (LEFT, RIGHT)] for lesion in found.lesions}
    assert sides == {True: [LEFT], False: [RIGHT]}


def test_a_lesion_on_the_midline_has_no_side() -> None:
    e = _with_putamina(_estimate())
    e.lesion[30:34, 30:34, 36:46], e.flair[30:34, 30:34, 36:46] = 0.9, 2.0
    (lesion,) = lesions.find_lesions(e, Thresholds()).lesions
    assert not {LEFT, RIGHT} & set(lesion.site.modifiers)


def test_without_two_putamina_nothing_has_a_side() -> None:
    e = _with_putamina(_estimate())
    assert find_midplane(e.structure, e.grid) is not None
    e.structure[:, :, 60:][e.structure[:, :, 60:] == number("putamen")] = number("cerebral white matter")
    assert find_midplane(e.structure, e.grid) is None
    assert find_midplane(_estimate().structure, e.grid) is None


def test_the_middle_of_a_lesion_is_one_of_its_voxels() -> None:
    e = _estimate(_box(30, 26, 14, 3), _box(30, 26, 17, 3), _box(30, 29, 17, 3))
    (lesion,) = lesions.find_lesions(e, Thresholds()).lesions
    i, j, k = (round(each) for each in lesion.centre_mm)
    assert lesions.find_lesions(e, Thresholds()).labels[k, j, i] == 1


def test_each_lesion_is_a_segment_with_the_name_of_its_measurements() -> None:
    e = _estimate(_box(30, 30, 30, 3), _box(30, 14, 30, 5), _box(26, 20, 20))
    found = lesions.find_lesions(e, Thresholds(max_listed=2))
    segmentation = lesion_segments.make_segmentation(found, e, Thresholds(max_listed=2), e.grid, 1.0)
    assert [segment.label for segment in segmentation.segments] == ["Lesion 1", "Lesion 2", "Further deep lesions"]
    groups = {
        m.group
        for m in lesions.measure_lesions(found, Thresholds(max_listed=2))
        if isinstance(m, Measurement) and m.group
    }
    assert groups == {segment.label.lower() for segment in segmentation.segments[:2]}
    for lesion in found.lesions:
        assert (segmentation.labels[found.labels == lesion.number] == lesion.number).all()
    assert (segmentation.segments[0].site, segmentation.segments[0].centre_mm) == (
        found.lesions[0].site,
        found.lesions[0].centre_mm,
    )
    assert segmentation.segments[0].color == found.lesions[0].place.color


def test_of_two_lesions_in_one_thick_voxel_the_larger_keeps_it() -> None:
    e = _estimate((slice(30, 34), slice(30, 34), slice(30, 34)), (slice(30, 33), slice(30, 33), slice(26, 29)))
    thick = Grid((8, 4, 4), np.diag([10.0, 10.0, 5.0, 1.0]))
    segmentation = lesion_segments.make_segmentation(lesions.find_lesions(e, Thresholds()), e, Thresholds(), thick, 5.0)
    assert segmentation.labels[6, 3, 3] == 1
    assert (segmentation.labels > 0).sum() == 1
