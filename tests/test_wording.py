"""Descriptions of results: whole words that fit, and twins that differ."""

from __future__ import annotations

import numpy as np
import pytest

from dicomnode import results
from dicomnode.config.results import ResultsConfig
from dicomnode.results.wording import cut_words
from pipelines.contract import Image, Volume
from tests.findings import NOW, PROVENANCE, source
from tests.scanner import make_grid


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("short", "short"),
        ("Standard deviation of DIR: 20 passes and the learned error", "Standard deviation of DIR: 20 passes"),
        ("Mean, of all regions of the brain, with more words than fit", "Mean, of all regions of the brain"),
        ("x" * 50, "x" * 40),
        ("one (two three four five six seven eight nine)", "one (two three four five six seven eight"),
    ],
)
def test_a_text_ends_with_a_whole_word(text: str, cut: str) -> None:
    assert cut_words(text, 40) == cut


def test_the_labelled_twin_of_a_long_name_says_so() -> None:
    grid = make_grid("axial", (3, 24, 32), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    volume = Volume(np.linspace(0, 1, 3 * 24 * 32, dtype=np.float32).reshape(grid.shape), grid)
    words = "Amyloid PET (florbetapir) from T1w, SUVR with the whole cerebellum as reference"
    found = results.write([Image("PET", volume, words, 2.0)], [source()], PROVENANCE, ResultsConfig(report=False), NOW)
    clean, labelled = (ds.SeriesDescription for ds in found)
    assert clean == "SYN Amyloid PET (florbetapir) from T1w, SUVR with the whole"
    assert labelled == "SYN Amyloid PET (florbetapir) from T1w, SUVR (labelled)"
    assert all(len(each) <= 64 for each in (clean, labelled))
