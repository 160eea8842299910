"""Simulated MR volumes against closed forms: nulls, the tissue table's signals, noise, resolution, seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from model_zoo.physics import mr
from model_zoo.physics.sequences import Dir, Flair, Mprage, Sequence, SpinEcho, dir_nulls, flair_null
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import acquisition, axes, heads, volumes
from model_zoo.simulate.contrasts import draw_sequence
from model_zoo.simulate.lesions import SEVERITIES
from model_zoo.simulate.phantom import make_phantom
from model_zoo.structures import COUNT, number

TABLE = {
    "white matter": (850, 70, 0.70, 0.032, 0.091, 0.000),
    "normal-appearing white matter": (900, 75, 0.72, 0.031, 0.101, 0.003),
    "cortex": (1350, 90, 0.82, 0.022, 0.098, 0.022),
    "thalamus": (1150, 78, 0.78, 0.026, 0.092, 0.014),
    "caudate": (1250, 80, 0.81, 0.024, 0.090, 0.017),
    "putamen": (1200, 72, 0.80, 0.025, 0.079, 0.013),
    "pallidum": (950, 55, 0.75, 0.031, 0.056, 0.003),
    "csf": (4300, 1800, 1.0, 0.006, 0.000, 0.000),
    "mild": (*SEVERITIES["mild"], 0.027, 0.151, 0.023),
    "typical": (*SEVERITIES["typical"], 0.022, 0.152, 0.038),
    "black hole": (*SEVERITIES["black hole"], 0.015, 0.121, 0.043),
    "cortical": (*SEVERITIES["cortical"], 0.019, 0.109, 0.031),
}
"""T1, T2, PD and the magnitude of MPRAGE, FLAIR (TR 5000) and DIR (TR 5500): model specification, section 8.2."""


def _uniform_parameters() -> mr.TissueParameters:
    """Return the table's values for every region, without spread."""
    return mr.TissueParameters.table().draw_regional(
        torch.Generator().manual_seed(0), COUNT + 1, subject_spread=0.0, region_spread=0.0
    )


def _median(x: torch.Tensor, head: heads.Head, structure: str) -> float:
    """Return the median well inside a structure, away from partial volume."""
    inside = (head.structure == number(structure)).float()
    return float(x[axes.blur(inside, (1.5, 1.5, 1.5)) > 0.95].median())


@pytest.mark.parametrize("tissue", TABLE)
def test_signals_are_those_of_the_tissue_table(tissue: str) -> None:
    t1, t2, pd, *expected = TABLE[tissue]
    p = mr.TissueParameters(*(torch.tensor([float(v)]) for v in (t1, t2, pd)))
    sequences: tuple[Sequence, ...] = (Mprage(), Flair(), Dir())
    found = [abs(float(s.signal(p))) for s in sequences]
    assert found == pytest.approx(expected, abs=0.00065)


def test_cortical_lesions_stand_out_four_times_more_on_dir_than_on_flair() -> None:
    def signal(sequence: Sequence, values: tuple[float, ...]) -> float:
        return float(sequence.signal(mr.TissueParameters(*(torch.tensor([float(v)]) for v in values))))

    contrast = {s: signal(s, SEVERITIES["cortical"]) / signal(s, TABLE["cortex"][:3]) - 1 for s in (Flair(), Dir())}
    assert contrast[Flair()] == pytest.approx(0.11, abs=0.01)
    assert contrast[Dir()] == pytest.approx(0.41, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("tr_ms", "ti_ms"), [(5000, 1660), (8000, 2273), (9000, 2410)])
def test_a_flair_volume_nulls_csf_at_the_stated_times(tr_ms: float, ti_ms: float) -> None:
    assert flair_null(tr_ms) == pytest.approx(ti_ms, abs=1)
    head = make_phantom((96, 112, 96), 2.0)
    maps = volumes.draw_tissue_maps(head, _uniform_parameters(), torch.Generator().manual_seed(1), texture_sd=0.0)
    x = volumes.render_signal(maps, Flair(tr_ms, ti_ms), head)
    white = _median(x, head, "cerebral white matter")
    assert _median(x, head, "lateral ventricles") < 0.01 * white


@pytest.mark.slow
@pytest.mark.parametrize(("tr_ms", "ti1_ms", "ti2_ms"), [(5500, 2078, 515), (7500, 2601, 549), (11000, 3154, 568)])
def test_a_dir_volume_nulls_csf_and_white_matter_at_the_stated_times(
    tr_ms: float, ti1_ms: float, ti2_ms: float
) -> None:
    assert dir_nulls(tr_ms) == pytest.approx((ti1_ms, ti2_ms), abs=1)
    head = make_phantom((96, 112, 96), 2.0)
    maps = volumes.draw_tissue_maps(head, _uniform_parameters(), torch.Generator().manual_seed(1), texture_sd=0.0)
    x = volumes.render_signal(maps, Dir(tr_ms, ti1_ms, ti2_ms), head)
    cortex = _median(x, head, "frontal cortex")
    assert _median(x, head, "lateral ventricles") < 0.02 * cortex
    assert _median(x, head, "cerebral white matter") < 0.02 * cortex


def test_nulling_another_white_matter_moves_the_times() -> None:
    p = mr.TissueParameters(torch.tensor([950.0, 4000.0]), torch.tensor([75.0, 1500.0]), torch.tensor([0.7, 1.0]))
    signal = Dir.nulling(7500.0, 950.0, 4000.0).signal(p)
    assert float(signal.abs().max()) < 1e-5


def test_a_subject_s_tissues_move_together() -> None:
    table = mr.TissueParameters.table()
    white, cortex = (list(TISSUES).index(name) for name in ("white matter", "cortex"))
    t1 = torch.stack([table.draw_regional(torch.Generator().manual_seed(s), COUNT + 1).t1_ms[:, 1] for s in range(300)])
    assert float((t1[:, cortex] / t1[:, white]).log().std()) == pytest.approx(0.06, rel=0.15)
    assert float(t1[:, white].log().std()) == pytest.approx(0.09, rel=0.15)


def test_regions_of_one_tissue_spread_less_than_subjects_do() -> None:
    table = mr.TissueParameters.table()
    cortex = list(TISSUES).index("cortex")
    draws = torch.stack(
        [table.draw_regional(torch.Generator().manual_seed(s), COUNT + 1).t1_ms[cortex] for s in range(300)]
    ).log()
    assert float(draws.std(dim=1).mean()) == pytest.approx(0.03, rel=0.1)
    assert float(draws.mean(dim=1).std()) == pytest.approx(0.08, rel=0.15)


def test_texture_has_the_stated_strength_and_is_correlated_over_millimetres() -> None:
    n = torch.stack([acquisition.draw_texture((64, 64, 64), 1.0, torch.Generator().manual_seed(s)) for s in range(6)])
    assert float(n.std()) == pytest.approx(1.0, rel=0.05)
    assert 0.3 < float((n[..., 2:] * n[..., :-2]).mean()) < 0.95
    assert abs(float((n[..., 10:] * n[..., :-10]).mean())) < 0.1


def test_background_noise_is_rayleigh_and_bright_noise_gaussian() -> None:
    sd, g = 0.1, torch.Generator().manual_seed(2)
    dark = acquisition.add_rician_noise(torch.zeros(60, 60, 60), sd, g)
    bright = acquisition.add_rician_noise(torch.full((60, 60, 60), 2.0), sd, g)
    assert float(dark.mean()) == pytest.approx(sd * math.sqrt(math.pi / 2), rel=0.01)
    assert float(dark.std()) == pytest.approx(sd * math.sqrt(2 - math.pi / 2), rel=0.02)
    assert float(bright.std()) == pytest.approx(sd, rel=0.02)
    assert float(bright.mean()) == pytest.approx(2.0 + sd**2 / 4, rel=0.001)


def test_simulation_keeps_its_precision_under_autocast() -> None:
    x = torch.rand((20, 24, 28), generator=torch.Generator().manual_seed(0))
    expected = axes.blur(x, (1.0, 1.0, 1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(axes.blur(x, (1.0, 1.0, 1.0)), expected)


def test_thick_slices_blur_their_axis_and_no_other() -> None:
    point = torch.zeros(61, 61, 61)
    point[30, 30, 30] = 1.0
    x = acquisition.reduce_resolution(point, (5.0, 1.0, 1.0), 0.0, torch.Generator().manual_seed(0))
    spread = [float(x.sum([a for a in range(3) if a != axis]).gt(0.005).sum()) for axis in range(3)]
    assert spread[0] >= 6
    assert spread[1:] == [1, 1]


def test_thick_slices_keep_a_constant_and_the_grid() -> None:
    x = acquisition.reduce_resolution(
        torch.full((40, 44, 48), 3.0), (1.0, 4.3, 2.0), 0.0, torch.Generator().manual_seed(5)
    )
    assert x.shape == (40, 44, 48)
    assert torch.allclose(x, torch.full_like(x, 3.0), atol=1e-4)


def test_a_cut_kspace_rings_at_edges_and_keeps_the_mean() -> None:
    box = torch.zeros(32, 64, 32)
    box[:, 20:44] = 1.0
    x = acquisition.truncate_kspace(box, (1.0, 0.5, 1.0))
    assert float(x.max()) == pytest.approx(1.09, abs=0.05)  # Gibbs overshoot: 9 % of the step
    assert float(x[16, 32, 16]) == pytest.approx(1.0, abs=0.05)


def test_a_head_that_stays_still_is_not_changed_and_one_that_moves_is() -> None:
    head = make_phantom((48, 56, 48), 4.0)
    x = (head.structure > 0).float()
    still, moving = (acquisition.simulate_motion(x, 4, mm, 1, torch.Generator().manual_seed(3)) for mm in (0.0, 1.0))
    assert torch.allclose(still, x, atol=1e-4)
    assert 0.01 < float((moving - x).abs().mean()) < 0.2


def test_a_scan_keeps_the_grid_and_its_noise_is_as_stated() -> None:
    head = make_phantom((96, 112, 96), 2.0)
    g = torch.Generator().manual_seed(4)
    x = volumes.render_signal(volumes.draw_tissue_maps(head, _uniform_parameters(), g), Mprage(), head)
    scan = volumes.Scan(spacing_mm=(2.0, 2.0, 2.0), noise_sd=0.05, bias=0.0)
    clean = volumes.simulate_scan(x, head, replace(scan, noise_sd=0.0), g)
    noisy = volumes.simulate_scan(x, head, scan, g)
    assert noisy.shape == head.tissue.shape
    white = head.structure == number("cerebral white matter")
    level = float(x[head.structure > 0].mean())
    assert float((noisy - clean)[white].std()) == pytest.approx(0.05 * level, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_contrast_agnostic_images_fill_zero_to_one_and_repeat_by_seed(seed: int) -> None:
    head = make_phantom((64, 80, 64), 3.0)
    first, again = (volumes.render_contrast_agnostic(head, torch.Generator().manual_seed(seed)) for _ in range(2))
    other = volumes.render_contrast_agnostic(head, torch.Generator().manual_seed(seed + 100))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == head.tissue.shape
    assert float(first.min()) >= 0
    assert float(first.max()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["mprage", "t2w", "pd", "flair", "dir"])
def test_random_protocols_give_signal_from_brain(name: str) -> None:
    p = mr.TissueParameters.table()
    cortex = list(TISSUES).index("cortex")
    signals = [abs(float(draw_sequence(name, torch.Generator().manual_seed(s)).signal(p)[cortex])) for s in range(20)]
    assert min(signals) > 0.005
    assert len(set(signals)) == 20


def test_an_unknown_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="no sequence 'epi'"):
        draw_sequence("epi", torch.Generator())


def test_t2w_shows_csf_brightest_and_t1w_white_matter() -> None:
    p = mr.TissueParameters.table()
    names = list(TISSUES)
    brain = [names.index(n) for n in ("white matter", "cortex", "csf")]
    t1w, t2w = (s.signal(p).abs()[brain].argmax() for s in (Mprage(), SpinEcho()))
    assert int(t1w) == 0
    assert int(t2w) == 2
