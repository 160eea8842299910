"""Comparison of the result of a share with that of the current version, for the output gate.

Images: the peak signal-to-noise ratio against the current version's image, whose largest magnitude is the peak; the
worst counts, of images that show what the input's scan measured (restored, reconstructed) and of images that were made
from another contrast. The former stay near their data whatever the weights, so their limit is higher. Segmentations:
the overlap of all labels together, 2 |A and B| / (|A| + |B|) (Dice 1945); regions of low confidence describe certainty
and do not count. An image or segmentation that only one version gives, or in another shape, agrees in nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.codes import LOW_CONFIDENCE
from pipelines.contract import Finding, Image, Measurement, Segmentation

__all__ = ["HOLD_BELOW", "OVERLAP", "PSNR_MADE", "PSNR_MEASURED", "compare_findings"]

PSNR_MEASURED = "PSNR of the measured image against the current version"
PSNR_MADE = "PSNR of the made image against the current version"
OVERLAP = "Dice against the current version"
HOLD_BELOW: Mapping[str, float] = {PSNR_MEASURED: 38.0, PSNR_MADE: 20.0, OVERLAP: 0.5}
"""Limits that [quality] hold_below replaces by name; docs/models.md has the measurements behind them."""
_IDENTICAL_DB = 100.0

Array = NDArray[Any]
Pairs = list[tuple[Array | None, Array | None]]


def compare_findings(reference: Sequence[Finding], findings: Sequence[Finding]) -> list[Measurement]:
    """Return the worst PSNR (dB) of each kind of image and the overlap of all segmentations, where there are any."""
    labels = _pair(_index_labels(reference), _index_labels(findings))
    compared = [Measurement(OVERLAP, _measure_overlap(labels), "1")] if labels else []
    for name, is_measured in ((PSNR_MEASURED, True), (PSNR_MADE, False)):
        images = _pair(_index_images(reference, is_measured), _index_images(findings, is_measured))
        if images:
            compared.append(Measurement(name, min(_measure_psnr(*pair) for pair in images), "dB"))
    return compared


def _index_images(findings: Sequence[Finding], is_measured: bool) -> dict[str, Array]:
    images = [each for each in findings if isinstance(each, Image) and bool(each.modality) is is_measured]
    return {each.name: each.volume.data for each in images}


def _index_labels(findings: Sequence[Finding]) -> dict[str, Array]:
    return {
        each.name: each.labels
        for each in findings
        if isinstance(each, Segmentation) and any(segment.type != LOW_CONFIDENCE for segment in each.segments)
    }


def _pair(reference: Mapping[str, Array], result: Mapping[str, Array]) -> Pairs:
    return [(reference.get(name), result.get(name)) for name in {**reference, **result}]


def _measure_psnr(reference: Array | None, image: Array | None) -> float:
    if reference is None or image is None or reference.shape != image.shape:
        return 0.0
    a, b = np.asarray(reference, np.float64), np.asarray(image, np.float64)
    rmse, peak = float(np.sqrt(np.mean((a - b) ** 2))), float(np.max(np.abs(a)))
    if rmse == 0:
        return _IDENTICAL_DB
    return 20 * math.log10(peak / rmse) if peak else 0.0


def _measure_overlap(pairs: Pairs) -> float:
    total = sum(int(np.count_nonzero(each)) for pair in pairs for each in pair if each is not None)
    both = sum(
        int(np.count_nonzero((a == b) & (a != 0)))
        for a, b in pairs
        if a is not None and b is not None and a.shape == b.shape
    )
    return 2 * both / total if total else 1.0
