"""The reconstruction pipeline on an object larger than the field of view: its wrapped image, by every solver."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dicomnode.picture import classical_images
from model_zoo import masks
from model_zoo.operators import centred_fft
from pipelines import inversion, spread
from pipelines.contract import KSpace, Measurement, Refused
from tests.test_mri_reconstruction import QUICK, acquire, grid, image, number, randn, receive_maps, reconstruct, truth

pytestmark = pytest.mark.training


def fold(x: torch.Tensor) -> torch.Tensor:
    """Return images (..., 64, 60) as a field of view of half their width shows them."""
    return x[..., 15:45] + torch.cat([x[..., 45:], x[..., :15]], dim=-1)


def acquire_folded() -> KSpace:
    """Return k-space of the phantom with six coils, half as wide as it, every third sample missing."""
    y = centred_fft(fold(receive_maps(6) * truth()[:, None]))
    mask = masks.poisson_2d((64, 30), 1.5, 16, np.random.default_rng(3))[None].repeat(2, axis=0)
    samples = (y + 2.0 * randn(*y.shape, seed=2)).numpy() * mask[:, None]
    return replace(
        acquire(6, prescan=False), samples=samples.astype(np.complex64), mask=mask, grid=grid((2, 64, 30)),
        encoded_fov_mm=(192.0, 90.0), calibration=((24, 40), (7, 23)),
    )  # fmt: skip


def _count_held_out(options: inversion.Options) -> int:
    return inversion.count_evaluations(options.model_copy(update={"samples": spread.SAMPLES}))


@pytest.mark.parametrize("solver", ["dds", "dps", "score_mri", "ald", "adadiff"])
def test_an_object_larger_than_the_field_of_view_gives_its_wrapped_image_by_every_solver(solver: str) -> None:
    options = inversion.Options().model_copy(
        update={"solver": solver, "steps": 3, "mean_steps": 6, "samples": 2, "adaptation_steps": 2, "rapid_steps": 6}
    )
    found = reconstruct(acquire_folded(), options)
    wrapped = fold(receive_maps(6) * truth()[:, None]).abs().pow(2).sum(1).sqrt().numpy()
    assert np.linalg.norm(image(found) - wrapped) < 0.15 * np.linalg.norm(wrapped)
    (used,) = (f for f in found if isinstance(f, Measurement) and f.name == "coils used")
    assert "2 sets (soft SENSE)" in used.description
    assert number(found, "folded share") > 0.1
    assert number(found, "unexplained coil energy") < 0.1
    if solver != "adadiff":
        expected = inversion.count_evaluations(options) + _count_held_out(options)
        assert number(found, "denoiser evaluations") == 2 * expected


def test_slices_that_fold_are_not_coupled() -> None:
    with pytest.raises(Refused, match="across_slices = 0"):
        reconstruct(
            replace(acquire_folded(), grid=grid((2, 64, 30), (1.0, 3.0, 3.0)), slice_thickness_mm=1.0),
            QUICK.model_copy(update={"across_slices": 3.0}),
        )


def test_the_comparison_picture_shows_one_wrapped_image_per_method() -> None:
    assert [image.shape for image in classical_images(acquire_folded())] == [(64, 30), (64, 30)]
