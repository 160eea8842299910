"""Doubts about a version before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dicomnode.cli.model_doubts import doubt_comparisons, doubt_metrics
from dicomnode.config import Config
from dicomnode.config.quality import QualityConfig
from dicomnode.execution.reference import PSNR_MEASURED
from model_zoo import registry
from model_zoo.bundle import BundleFacts

pytestmark = pytest.mark.fast

SIX_STEPS: list[dict[str, Any]] = [{"psnr_db": -10.2}, {"psnr_db": 39.0}, {"psnr_db": None}]


def test_a_prior_far_from_the_current_version_is_warned_of_by_the_limit_of_the_gate() -> None:
    words = doubt_comparisons(SIX_STEPS, "mri_reconstruction", Config())
    assert words == "1 of 2 images are below 38 dB against the current version, the worst -10.2 dB"
    assert doubt_comparisons([{"psnr_db": 38.0}], "mri_reconstruction", Config()) == ""


def test_images_from_another_contrast_may_differ_more() -> None:
    assert doubt_comparisons([{"psnr_db": 22.0}], "synthetic_dir", Config()) == ""
    assert "below 20 dB" in doubt_comparisons([{"psnr_db": 12.0}], "synthetic_dir", Config())


def test_the_limit_of_the_site_counts() -> None:
    config = Config(quality=QualityConfig(hold_below={PSNR_MEASURED: 30.0}))
    assert doubt_comparisons([{"psnr_db": 35.0}], "standard_dose_pet", config) == ""


def test_a_version_that_was_never_compared_is_warned_of() -> None:
    assert "try it first with --shadow" in doubt_comparisons([], "mri_reconstruction", Config())


@pytest.mark.parametrize(("lost_db", "warns"), [(0.5, False), (8.0, True)])
def test_a_version_that_fits_its_validation_worse_is_warned_of(tmp_path: Path, lost_db: float, warns: bool) -> None:
    shipped = registry.find("mri_prior")
    metrics = {key: value - lost_db for key, value in shipped.metadata["metrics"].items()}
    ours = BundleFacts(tmp_path, "mri_prior", "0.1.0", shipped.digest, {"metrics": metrics})
    words = doubt_metrics(ours, shipped)
    assert bool(words) is warns
    if warns:
        assert "8.0 dB below that of mri_prior@1.0.0" in words
