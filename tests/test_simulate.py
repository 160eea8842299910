"""Simulated signals, coils and k-space against closed forms and independent computation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from model_zoo.operators import centred_fft, centred_ifft
from model_zoo.physics import mr
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import anatomy, coils, slices
from model_zoo.simulate.kspace import simulate_scan


def _make_brain(t1: float, t2: float, pd: float) -> mr.TissueParameters:
    return mr.TissueParameters(torch.tensor([t1]), torch.tensor([t2]), torch.tensor([pd]))


@pytest.mark.parametrize(("tr_ms", "ti_ms"), [(5000, 1660), (8000, 2273), (9000, 2410)])
def test_flair_nulls_csf_at_the_stated_inversion_time(tr_ms: float, ti_ms: float) -> None:
    csf = mr.flair(_make_brain(4300, 1800, 1.0), tr_ms, ti_ms, 120)
    white = mr.flair(_make_brain(850, 70, 0.7), tr_ms, ti_ms, 120)
    assert abs(float(csf)) < 1e-3
    assert abs(float(white)) > 0.05


@pytest.mark.parametrize(("tr_ms", "ti1_ms", "ti2_ms"), [(5500, 2078, 515), (7500, 2601, 549), (11000, 3154, 568)])
def test_dir_nulls_csf_and_white_matter_together(tr_ms: float, ti1_ms: float, ti2_ms: float) -> None:
    for t1, t2, pd in ((4300, 1800, 1.0), (850, 70, 0.7)):
        assert abs(float(mr.double_inversion_recovery(_make_brain(t1, t2, pd), tr_ms, ti1_ms, ti2_ms, 0.001))) < 2e-3
    assert abs(float(mr.double_inversion_recovery(_make_brain(1350, 90, 0.82), tr_ms, ti1_ms, ti2_ms, 0.001))) > 0.05


def test_mprage_equals_its_cycle_played_until_steady() -> None:
    t1, pd, tr, ti, flip, tau, n = 850.0, 0.7, 2300.0, 900.0, math.radians(9), 7.1, 176
    mz = 1.0
    centre = 0.0
    for _ in range(30):
        mz = 1 + (-mz - 1) * math.exp(-(ti - n * tau / 2) / t1)
        for pulse in range(n):
            if pulse == n // 2:
                centre = mz
            mz = 1 + (mz * math.cos(flip) - 1) * math.exp(-tau / t1)
        mz = 1 + (mz - 1) * math.exp(-(tr - ti - n * tau / 2) / t1)
    expected = pd * centre * math.sin(flip)
    assert float(mr.mprage(_make_brain(t1, 70, pd), tr, ti, flip, tau, n)) == pytest.approx(expected, rel=1e-4)


def test_signals_of_the_tissue_table_order_as_stated() -> None:
    p = mr.TissueParameters.table()
    names = list(TISSUES)
    t1w = mr.mprage(p, 2300, 900, math.radians(9), 7.1, 176)
    flair = mr.flair(p, 5000, 1660, 120)
    t1 = dict(zip(names, t1w.tolist(), strict=True))
    fl = dict(zip(names, flair.tolist(), strict=True))
    assert t1["white matter"] > t1["thalamus"] > t1["cortex"] > abs(t1["csf"])
    assert fl["lesion"] > fl["cortex"] > fl["white matter"] > abs(fl["csf"])
    assert t1["white matter"] == pytest.approx(0.032, abs=0.002)
    assert fl["cortex"] == pytest.approx(0.098, abs=0.002)


def test_spoiled_gradient_echo_peaks_at_the_ernst_angle() -> None:
    p, tr = _make_brain(850, 1e9, 1.0), 20.0
    angles = torch.linspace(0.02, 1.5, 2000)
    signal = torch.tensor([float(mr.spgr(p, tr, 0.0, float(a))) for a in angles])
    assert float(angles[signal.argmax()]) == pytest.approx(math.acos(math.exp(-tr / 850)), abs=2e-3)


def test_loop_field_on_its_axis_is_the_textbook_one() -> None:
    z = np.linspace(-200, 200, 41)
    b_rho, b_z = coils.compute_loop_field(np.zeros_like(z), z, 60.0)
    expected = math.pi / 2 * 60.0**2 / (60.0**2 + z**2) ** 1.5  # B = mu0 I a^2 / 2 (a^2 + z^2)^(3/2), in mu0 I / pi
    assert np.allclose(b_z, expected, rtol=1e-6)
    assert np.allclose(b_rho, 0, atol=1e-9)


def test_loop_field_off_axis_equals_the_sum_over_its_wire() -> None:
    a, rho, z = 60.0, 45.0, 30.0
    b_rho, b_z = coils.compute_loop_field(np.array([rho]), np.array([z]), a)
    phi = np.linspace(0, 2 * np.pi, 20001)[:-1]
    wire = np.stack([a * np.cos(phi), a * np.sin(phi), 0 * phi], axis=1)
    current = np.stack([-a * np.sin(phi), a * np.cos(phi), 0 * phi], axis=1) * (2 * np.pi / len(phi))
    r = np.array([rho, 0, z]) - wire
    field = np.sum(np.cross(current, r) / np.linalg.norm(r, axis=1, keepdims=True) ** 3, axis=0) / 4  # mu0/(4 pi)
    assert b_rho[0] == pytest.approx(field[0], rel=1e-6)
    assert b_z[0] == pytest.approx(field[2], rel=1e-6)


def test_sensitivities_are_normalised_and_smooth() -> None:
    y, x = np.meshgrid(np.linspace(-80, 80, 40), np.linspace(-70, 70, 36), indexing="ij")
    points = np.stack([x, y, np.zeros_like(x)], axis=-1)
    s = coils.compute_sensitivities(points, 8, np.random.default_rng(0))
    assert s.shape == (8, 40, 36)
    assert np.allclose(np.sum(np.abs(s) ** 2, axis=0), 1, atol=1e-5)
    assert np.abs(np.diff(s, axis=1)).max() < 0.2


def test_cropping_kspace_keeps_the_amplitude_of_a_smooth_object() -> None:
    y, x = torch.meshgrid(torch.arange(96) - 48, torch.arange(96) - 48, indexing="ij")
    fine = torch.exp(-(x**2 + y**2) / (2 * 12.0**2)).to(torch.complex64)
    coarse = slices.crop_kspace(fine, (64, 64))
    assert float(coarse.abs().max()) == pytest.approx(1.0, abs=1e-3)


def test_smooth_phase_differs_by_seed_and_repeats_by_seed() -> None:
    first, again, other = (slices.draw_smooth_phase((32, 32), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_split_holds_four_subjects_out() -> None:
    assert len(anatomy.TEST) == len(anatomy.VALIDATION) == 2
    assert not set(anatomy.TRAIN) & (set(anatomy.TEST) | set(anatomy.VALIDATION))
    assert not set(anatomy.TEST) & set(anatomy.VALIDATION)


def test_a_simulated_slice_is_complex_scaled_and_band_limited(kit: Path) -> None:
    x = slices.draw_slice(anatomy.read_tissue_map("01", kit), torch.Generator().manual_seed(3))
    assert x.dtype == torch.complex64
    assert 0.4 < float(torch.quantile(x.abs().flatten(), 0.99)) < 2.0
    assert float(x.imag.abs().max()) > 0.01


def test_simulated_kspace_holds_the_reference_and_the_stated_noise(kit: Path) -> None:
    scan = simulate_scan("13", coils=4, snr=30.0, shape=(128, 112), pixel_mm=1.9, seed=5)
    noise_power = np.mean(np.abs(scan.noise) ** 2, axis=1)
    assert np.allclose(noise_power, np.real(np.diag(scan.covariance)), rtol=0.1)
    images = centred_ifft(torch.from_numpy(scan.samples))
    combined = images.abs().square().sum(1).sqrt().numpy()
    brain = np.abs(scan.reference) > 0.1
    assert np.abs(combined - np.abs(scan.reference))[brain].mean() < 0.1 * np.abs(scan.reference)[brain].mean()
    corner = centred_fft(images)[0, :, :6, :6].abs().square().mean()
    assert float(corner) == pytest.approx(float(noise_power.mean()), rel=0.5)
