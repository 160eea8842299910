"""The reconstruction pipeline with the shipped prior: its results and its refusals."""

from dataclasses import replace
from functools import cache

import numpy as np
import pydantic
import pytest
import torch
from numpy.typing import NDArray

import pipelines
from model_zoo import masks, registry, uncertainty
from model_zoo.bundle import BundleError, Model
from model_zoo.operators import centred_fft, centred_ifft
from pipelines import encoding, inversion
from pipelines import mri_reconstruction as recon
from pipelines.contract import Case, Finding, Grid, Image, KSpace, Measurement, ParametricMap, Refused, Segmentation
from pipelines.spread import Spread

pytestmark = pytest.mark.training

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

SHAPE = (64, 60)
QUICK = inversion.Options(steps=4, mean_steps=4, samples=3)
LEAST = inversion.Options(steps=2, mean_steps=2, samples=2)
FEW_SAMPLES = inversion.Options(steps=2, samples=2)


@cache
def prior() -> Model:
    try:
        return registry.load("mri_prior")
    except BundleError as error:
        pytest.skip(f"the prior is not installed: {error}")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed)))


def grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] = (5.0, 3.0, 3.0)) -> Grid:
    return Grid(shape, np.diag([spacing_mm[2], spacing_mm[1], spacing_mm[0], 1.0]))


@cache
def truth(slices: int = 2) -> torch.Tensor:
    a, b = torch.meshgrid(torch.linspace(-1.2, 1.2, SHAPE[0]), torch.linspace(-1.2, 1.2, SHAPE[1]), indexing="ij")
    skull = ((a**2 + (b / 0.8) ** 2) < 1).float() - 0.4 * ((a**2 + (b / 0.8) ** 2) < 0.8).float()
    lesions = [0.5 * (((a - 0.2 * i) ** 2 + (b - 0.1) ** 2) < 0.05).float() for i in range(slices)]
    return torch.stack([torch.polar(200 * (skull + lesion), 0.8 * a + 0.3 * b) for lesion in lesions])


def acquire(coils: int = 4, noise_sd: float = 3.0, acceleration: float = 2.0, prescan: bool = True) -> KSpace:
    """Return undersampled k-space of two slices of a phantom with ``coils`` smooth coils."""
    x = truth()
    y = centred_fft(receive_maps(coils) * x[:, None])
    y = y + noise_sd * randn(*y.shape, seed=2)
    mask = masks.gaussian_1d(SHAPE, acceleration, 16, np.random.default_rng(3))
    full_mask = np.broadcast_to(mask, (len(x), *SHAPE)).copy()
    return KSpace(
        samples=(y.numpy() * full_mask[:, None]).astype(np.complex64),
        mask=full_mask,
        encoded_fov_mm=(192.0, 180.0),
        grid=grid((len(x), *SHAPE)),
        slice_thickness_mm=4.0,
        calibration=((0, SHAPE[0]), (22, 38)),
        noise=(noise_sd * randn(coils, 2000, seed=4)).numpy() if prescan else None,
    )


def receive_maps(coils: int) -> torch.Tensor:
    if coils == 1:
        return torch.ones(1, 1, *SHAPE, dtype=torch.complex64)
    a, b = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
    angle = (torch.arange(coils) * 2 * torch.pi / coils)[:, None, None]
    S = torch.polar(torch.exp(-((a - torch.cos(angle)) ** 2) - (b - torch.sin(angle)) ** 2), angle + 0.5 * a)
    return (S / S.abs().pow(2).sum(0).sqrt())[None]


def reconstruct(k: KSpace, options: inversion.Options = QUICK, seed: int = 5) -> list[Finding]:
    return recon.PIPELINE.run(Case({"kspace": k}), prior(), options, seed, lambda done, step: None)


@cache
def reconstruct_once(coils: int, *, prescan: bool = True, options: inversion.Options = QUICK) -> list[Finding]:
    """Return the findings of one acquisition for all tests that only look at them."""
    return reconstruct(acquire(coils, prescan=prescan), options)


def image(findings: list[Finding]) -> NDArray[np.float32]:
    (found,) = (f for f in findings if isinstance(f, Image))
    return found.volume.data


def number(findings: list[Finding], name: str) -> float:
    (found,) = (f for f in findings if isinstance(f, Measurement) and f.name == name)
    return found.value


@pytest.mark.parametrize("coils", [1, 4])
def test_a_study_gives_image_deviation_region_and_measurements_on_the_asked_grid(coils: int) -> None:
    k = acquire(coils)
    found = reconstruct_once(coils)
    (sd,) = (f for f in found if isinstance(f, ParametricMap))
    (region,) = (f for f in found if isinstance(f, Segmentation))
    assert image(found).shape == sd.volume.data.shape == region.labels.shape == k.grid.shape
    assert image(found).dtype == sd.volume.data.dtype == np.float32
    assert np.isfinite(image(found)).all()
    assert (sd.volume.data >= 0).all()
    assert sd.volume.data.max() > 0
    assert number(found, "acceleration") == pytest.approx(2.0, rel=0.02)
    assert number(found, "denoiser evaluations") == 4 + 3 * 4 + (4 + 4 * 4)
    assert number(found, "noise level") == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("coils", [1, 4])
def test_the_image_is_in_the_units_of_the_samples_and_nearer_to_the_truth_than_zero_filling(coils: int) -> None:
    k = acquire(coils)
    reference = truth().abs().numpy()
    zero_filled = centred_ifft(torch.from_numpy(k.samples)).abs().pow(2).sum(1).sqrt().numpy()
    x = image(reconstruct_once(coils, options=FEW_SAMPLES))
    assert np.linalg.norm(x - reference) < 0.9 * np.linalg.norm(zero_filled - reference)
    assert x.sum() / reference.sum() == pytest.approx(1.0, abs=0.06)


def test_the_same_seed_gives_the_same_result_however_the_work_is_split() -> None:
    k = acquire()
    first, second = reconstruct(k, QUICK.model_copy(update={"batch": 1})), reconstruct_once(4)
    for one, other in zip(first, second, strict=True):
        if isinstance(one, ParametricMap | Image) and isinstance(other, ParametricMap | Image):
            np.testing.assert_allclose(one.volume.data, other.volume.data, atol=0.02, rtol=1e-3)
    other_seed = reconstruct(k, seed=6)
    change = np.linalg.norm(image(first) - image(other_seed)) / np.linalg.norm(image(first))
    assert 0 < change < 0.05


@pytest.mark.parametrize("coils", [1, 4])
def test_the_image_is_the_share_of_the_estimate_and_the_mean_of_the_samples(
    coils: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reconstruct_with(share: float) -> list[Finding]:
        monkeypatch.setattr(recon, "measure_spread", lambda *_, **__: Spread(2.0, share, 0))
        return reconstruct(acquire(coils), LEAST)

    alone, samples, mixed = (reconstruct_with(share) for share in (1.0, 0.0, 0.25))
    assert number(mixed, "share of the estimate") == 0.25
    difference = np.linalg.norm(image(alone) - image(samples))
    assert difference > 0
    # magnitudes of complex images: the mean of magnitudes is near, not equal
    expected = 0.25 * image(alone) + 0.75 * image(samples)
    assert np.linalg.norm(image(mixed) - expected) < 0.1 * difference


def test_without_held_out_samples_estimate_and_samples_have_equal_shares() -> None:
    found = reconstruct(acquire(1), LEAST.model_copy(update={"held_out": 0.0}))
    assert number(found, "share of the estimate") == uncertainty.USUAL_SHARE


def test_a_slice_is_the_same_alone_and_in_its_volume() -> None:
    k = acquire(1)
    alone = replace(k, samples=k.samples[:1], mask=k.mask[:1], grid=grid((1, *SHAPE)))
    np.testing.assert_allclose(image(reconstruct(alone))[0], image(reconstruct_once(1))[0], rtol=0.02, atol=2.0)


@pytest.mark.parametrize("solver", ["dds", "dps", "score_mri", "ald", "adadiff"])
def test_every_solver_runs_and_counts_its_evaluations(solver: str) -> None:
    calls = 0
    model = prior()

    class Counting(torch.nn.Module):
        stride = model.denoiser.stride

        def __init__(self) -> None:
            super().__init__()
            self.inner = model.network

        def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += len(x)
            found: torch.Tensor = self.inner(x, c_noise)
            return found

    options = inversion.Options().model_copy(
        update={"solver": solver, "steps": 3, "mean_steps": 2, "samples": 2, "adaptation_steps": 2, "rapid_steps": 2}
    )
    k = acquire(1)
    options = options.model_copy(update={"held_out": 0.0})
    counted = replace(model, network=Counting())
    found = recon.run(Case({"kspace": k}), counted, options, 1, lambda done, step: None)
    assert calls == 2 * number(found, "denoiser evaluations")
    if solver != "adadiff":
        assert calls == 2 * inversion.count_evaluations(options)


@pytest.mark.parametrize(
    ("solver", "steps"), [("dds", 5), ("adadiff", 5), ("dps", 100), ("score_mri", 100), ("ald", 60)]
)
def test_each_solver_takes_the_steps_it_needs_unless_a_route_states_others(solver: str, steps: int) -> None:
    assert inversion.Options.model_validate({"solver": solver}).steps == steps
    assert inversion.Options.model_validate({"solver": solver, "steps": 7}).steps == 7


@pytest.mark.parametrize(
    "given",
    [
        {"sigma_min": 0.5},
        {"mean_sigma_min": 0.4},
        {"solver": "ald", "sigma_max": 0.001},
        {"sigma_max": 2.0},
        {"solver": "dps", "dds_sigma_max": 0.5},
        {"solver": "adadiff", "mean_sigma_max": 0.4},
        {"solver": "adadiff", "momentum": 0.5},
    ],
)
def test_options_that_contradict_each_other_or_the_solver_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"is not above|does not read"):
        inversion.Options.model_validate(given)


def test_written_options_are_read_back() -> None:
    for solver in ("dds", "adadiff", "ald"):
        options = inversion.Options.model_validate({"solver": solver})
        assert inversion.Options.model_validate(options.model_dump()) == options


def test_an_adapted_prior_is_told_of_and_the_model_stays_as_it_was() -> None:
    model = prior()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    options = LEAST.model_copy(update={"solver": "adadiff", "adaptation_steps": 3, "rapid_steps": 2})
    found = reconstruct(acquire(1), options)
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert number(found, "adaptation steps") == 3
    chi_squares = [number(found, f"held-out chi-square {when} adaptation") for when in ("before", "after")]
    assert chi_squares[1] <= chi_squares[0]
    np.testing.assert_array_equal(image(found), image(reconstruct(acquire(1), options)))


def thin(k: KSpace, spacing_mm: float = 1.0, thickness_mm: float = 1.0) -> KSpace:
    return replace(k, grid=grid((2, *SHAPE), (spacing_mm, 3.0, 3.0)), slice_thickness_mm=thickness_mm)


def test_only_thin_slices_without_gaps_are_coupled() -> None:
    k = acquire(1)
    assert not inversion.is_volume(k)
    assert inversion.is_volume(thin(k))
    assert not inversion.is_volume(thin(k, spacing_mm=1.2))
    assert not inversion.is_volume(thin(k, spacing_mm=3.0, thickness_mm=3.0))


def test_coupling_changes_a_volume_and_can_be_switched_off() -> None:
    k = acquire(4)
    alone = QUICK.model_copy(update={"across_slices": 0.0})
    np.testing.assert_array_equal(image(reconstruct(thin(k), alone)), image(reconstruct_once(4)))
    coupled = image(reconstruct(thin(k), QUICK.model_copy(update={"across_slices": 20.0})))
    plain = image(reconstruct_once(4))
    assert np.abs(coupled[1] - coupled[0]).sum() < np.abs(plain[1] - plain[0]).sum()


def contrasts() -> tuple[KSpace, KSpace]:
    """Return two contrasts of one acquisition; the second is weaker and has no calibration lines of its own."""
    first = replace(acquire(4), label="contrast 1 of 2")
    weaker = (0.5 * acquire(4, noise_sd=6.0).samples).astype(np.complex64)
    return first, replace(first, samples=weaker, calibration=None, label="contrast 2 of 2")


def test_contrasts_are_images_of_their_own_with_maps_of_the_one_that_has_calibration_lines() -> None:
    first, second = contrasts()
    case = Case({"kspace": second, "kspace 2": first})
    found = recon.run(case, prior(), QUICK, 5, lambda done, step: None)
    pictures = [f for f in found if isinstance(f, Image)]
    assert [f.name for f in pictures] == ["reconstruction, contrast 2 of 2", "reconstruction, contrast 1 of 2"]
    weaker, stronger = (f.volume.data.sum() for f in pictures)
    assert weaker / stronger == pytest.approx(0.5, rel=0.1)
    for kind in (ParametricMap, Segmentation):
        assert [f.image_name for f in found if isinstance(f, kind)] == [f.name for f in pictures]
    fits = {f.group: f.value for f in found if isinstance(f, Measurement) and f.name == "chi-square"}
    assert fits[""] == max(fits["contrast 1 of 2"], fits["contrast 2 of 2"])


def test_a_contrast_with_lines_of_its_own_lends_its_maps_and_keeps_its_own_noise() -> None:
    first, second = contrasts()
    one, two = encoding.prepare_acquisition([first, second])
    (alone,) = encoding.prepare_acquisition([first])
    torch.testing.assert_close(one.A.maps, alone.A.maps)
    torch.testing.assert_close(two.A.maps, alone.A.maps)
    louder = replace(second, noise=2 * second.noise)  # type: ignore[operator, arg-type]  # it was sent
    quiet, loud = encoding.prepare_acquisition([first, second])[1], encoding.prepare_acquisition([first, louder])[1]
    torch.testing.assert_close(loud.sigma_y, 2 * quiet.sigma_y)
    torch.testing.assert_close(loud.gain, quiet.gain)


def test_a_contrast_on_another_grid_needs_calibration_lines_of_its_own() -> None:
    first, second = contrasts()
    encoding.check_acquisition([first, second])
    moved = replace(second, encoded_fov_mm=(150.0, 150.0))
    with pytest.raises(Refused, match="calibration"):
        encoding.check_acquisition([first, moved])


def test_measured_samples_are_kept_within_their_noise() -> None:
    assert number(reconstruct_once(1, options=FEW_SAMPLES), "chi-square") < 1.5


def test_one_coil_of_unknown_noise_keeps_its_samples_exactly() -> None:
    assert number(reconstruct_once(1, prescan=False), "chi-square") < 1e-3
    assert number(reconstruct_once(4, prescan=False), "chi-square") > 0.3


def test_folding_is_measured_only_where_espirit_can_see_it() -> None:
    names = [{f.name for f in reconstruct_once(coils, prescan=False) if isinstance(f, Measurement)} for coils in (1, 4)]
    assert ["folded share" in each for each in names] == [False, True]
    assert ["unexplained coil energy" in each for each in names] == [False, True]


def test_without_a_noise_scan_the_level_comes_from_the_data_and_the_result_says_so() -> None:
    found = reconstruct_once(1, prescan=False)
    assert number(found, "noise level") == pytest.approx(3.0, rel=0.35)
    (level,) = (f for f in found if isinstance(f, Measurement) and f.name == "noise level")
    assert "k-space" in level.description


def test_delivered_grid_may_crop_the_field_of_view_and_be_finer() -> None:
    k = acquire(1)
    fine = image(reconstruct(replace(k, grid=grid((2, 96, 80), (5.0, 1.5, 1.5)))))
    native = image(reconstruct_once(1))
    # Pixel n // 2 is the same point in both, and every second fine pixel lies on a native one.
    np.testing.assert_allclose(fine[:, 0::2, 0::2], native[:, 8:56, 10:50], atol=1e-2 * native.max())


def test_resampling_to_the_encoded_grid_changes_nothing() -> None:
    x = truth()
    y = recon.interpolate(x, (192.0, 180.0), grid((2, *SHAPE)))
    torch.testing.assert_close(y, x, atol=2e-3, rtol=1e-4)


def test_progress_rises_to_the_end() -> None:
    fractions: list[float] = []
    recon.run(Case({"kspace": acquire(1)}), prior(), LEAST, 1, lambda done, step: fractions.append(done))
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] >= 0.9


def read_refusal(k: KSpace) -> str:
    with pytest.raises(Refused) as info:
        encoding.check_kspace(k)
    return str(info.value)


def test_several_coils_without_calibration_lines_are_refused() -> None:
    assert "calibration" in read_refusal(replace(acquire(), calibration=None))
    assert "calibration" in read_refusal(replace(acquire(), calibration=((0, 64), (29, 31))))


def test_numbers_that_are_not_finite_are_refused() -> None:
    k = acquire()
    bad = k.samples.copy()
    bad[0, 1, 3, 30] = np.nan
    assert "finite" in read_refusal(replace(k, samples=bad))


def test_sizes_that_contradict_each_other_are_refused() -> None:
    k = acquire()
    assert "contradict" in read_refusal(replace(k, mask=k.mask[:, :, :-1]))
    assert "slices" in read_refusal(replace(k, grid=grid((3, *SHAPE))))
    assert "pre-scan" in read_refusal(replace(k, noise=np.zeros((3, 100), np.complex64)))
    assert "calibration" in read_refusal(replace(k, calibration=((0, 64), (30, 90))))
    assert "field of view" in read_refusal(replace(k, encoded_fov_mm=(0.0, 100.0)))


def test_an_empty_mask_or_silent_slice_is_refused_by_number() -> None:
    k = acquire()
    empty = k.mask.copy()
    empty[1] = False
    assert "slice 2 of 2" in read_refusal(replace(k, mask=empty))
    assert "zero" in read_refusal(replace(k, samples=0 * k.samples))


def test_a_calibration_block_that_was_not_sampled_is_refused() -> None:
    k = acquire()
    holes = k.mask.copy()
    holes[:, :, 30] = False
    assert "calibration" in read_refusal(replace(k, mask=holes))


def silence_coil(array: NDArray[np.complex64], coil: int) -> NDArray[np.complex64]:
    array = array.copy()
    array[..., coil, :, :][:] = 0
    return array


def test_a_coil_without_signal_or_with_another_ones_is_refused_by_number() -> None:
    k = acquire()
    assert "coil 3 of 4 received nothing" in read_refusal(replace(k, samples=silence_coil(k.samples, 2)))
    copied = k.samples.copy()
    copied[:, 2] = copied[:, 1]
    assert "coils 2 and 3 hold the same samples" in read_refusal(replace(k, samples=copied))


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_samples_that_single_precision_cannot_square_are_refused(factor: float) -> None:
    k = acquire(prescan=False)
    assert "the largest sample is" in read_refusal(replace(k, samples=(k.samples * factor).astype(np.complex64)))


def test_a_noise_scan_that_cannot_be_of_this_image_is_refused() -> None:
    k = acquire()
    assert k.noise is not None
    silent, copied = k.noise.copy(), k.noise.copy()
    silent[2], copied[2] = 0, k.noise[1]
    assert "holds only zeros" in read_refusal(replace(k, noise=silent))
    assert "one coil repeats others" in read_refusal(replace(k, noise=copied))
    assert "times louder than the noise of the image can be" in read_refusal(replace(k, noise=100 * k.noise))


@pytest.mark.parametrize("rows", [slice(24, None), slice(0, 40)], ids=["late lines", "early lines"])
def test_partial_fourier_without_any_noise_is_reconstructed(rows: slice) -> None:
    """The noise found in such data is the rounding of single precision, which no solver can reach."""
    mask = np.zeros((2, *SHAPE), np.bool_)
    mask[:, rows] = True
    y = centred_fft(receive_maps(4) * truth()[:, None]).numpy()
    k = replace(
        acquire(prescan=False),
        samples=(y * mask[:, None]).astype(np.complex64),
        mask=mask,
        calibration=((24, 40), (0, SHAPE[1])),
    )
    reference = truth().abs().numpy()
    found = image(reconstruct(k, inversion.Options(steps=2, mean_steps=4, samples=2)))
    assert np.linalg.norm(found - reference) < 0.15 * np.linalg.norm(reference)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError):
        inversion.Options.model_validate({"sampler": "dds"})


def test_pipelines_are_found_by_name() -> None:
    assert pipelines.load("mri_reconstruction") is recon.PIPELINE
    with pytest.raises(KeyError, match="mri_reconstruction"):
        pipelines.load("unknown")
