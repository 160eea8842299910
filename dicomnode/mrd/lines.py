"""Which acquisitions of an MRD file make the image, which calibrate, which are noise, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from dicomnode.mrd.acquisitions import MRD, flagged
from pipelines.contract import Refused

__all__ = ["COUNTERS", "Lines", "choose", "images", "noise"]

COUNTERS = ("contrast", "phase", "repetition", "set")
"""Counters of which one image has exactly one value."""

SEPARATE = ("contrast", "set")
MOST_IMAGES = 32

_NOT_IMAGE = (
    ismrmrd.ACQ_IS_NAVIGATION_DATA,
    ismrmrd.ACQ_IS_PHASECORR_DATA,
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
    ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION,
)
_CALIBRATION = (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)


@dataclass(frozen=True)
class Lines:
    """Row numbers of the acquisitions: those that fill k-space, and those among them flagged as calibration."""

    image: NDArray[np.intp]
    calibration: NDArray[np.intp]
    encoding: ismrmrd.xsd.encodingType
    coils: int
    facts: dict[str, Any]


def choose(mrd: MRD, wanted: dict[str, int | None]) -> Lines:
    """The acquisitions of one image; ``wanted`` holds "encoding" and the ``COUNTERS``, None for "the only one".

    Calibration-only lines fill k-space when they belong to this acquisition (mode embedded, interleaved or not
    stated); those of a separate scan may differ in contrast and are left out, and the facts say so.
    """
    heads = mrd.heads
    usable, number, left_out, silent = _usable(mrd, wanted.get("encoding"))
    encoding = mrd.header.encoding[number]
    for counter in COUNTERS:
        usable &= _chosen(heads, usable, counter, wanted.get(counter))
    image = np.flatnonzero(usable)
    if image.size == 0:
        raise Refused("k-space: the sampling mask is empty: no acquisition holds samples of an image")
    _check(mrd, image, encoding)
    facts = {
        "calibration_mode": _calibration_mode(encoding),
        "calibration_lines_of_separate_scan": left_out,
        "acquisitions": int(image.size),
        "acquisitions_all_zero": silent,
    }
    calibration = image[flagged(heads[image], *_CALIBRATION)]
    return Lines(image, calibration, encoding, int(heads["active_channels"][image[0]]), facts)


def images(mrd: MRD) -> list[dict[str, int]]:
    """The contrasts and sets of the file, each a choice for :func:`choose`; empty where one image needs no choice.

    Phases and repetitions are moments in time, and are not told apart here.
    """
    usable = _usable(mrd, None)[0]
    found = np.unique(np.stack([mrd.heads["idx"][name][usable] for name in SEPARATE], axis=1), axis=0).tolist()
    if len(found) > MOST_IMAGES:
        raise Refused(f"k-space: {len(found)} images (contrasts, sets) in one acquisition; {MOST_IMAGES} at most")
    return [dict(zip(SEPARATE, values, strict=True)) for values in found] if len(found) > 1 else []


def _usable(mrd: MRD, wanted: int | None) -> tuple[NDArray[np.bool_], int, int, int]:
    """Which acquisitions may fill k-space of the encoding, its number, and how many were left out as calibration of a
    separate scan and as zeros."""
    heads = mrd.heads
    silent = np.array([not samples.any() for samples in mrd.samples])
    usable = ~flagged(heads, ismrmrd.ACQ_IS_NOISE_MEASUREMENT, *_NOT_IMAGE) & ~silent
    number = _encoding_number(mrd, usable, wanted)
    usable &= heads["encoding_space_ref"] == number
    left_out = 0
    if _calibration_mode(mrd.header.encoding[number]) in ("separate", "external"):
        only_calibration = flagged(heads, _CALIBRATION[0]) & ~flagged(heads, _CALIBRATION[1])
        left_out = int((usable & only_calibration).sum())
        usable &= ~only_calibration
    return usable, number, left_out, int(silent.sum())


def noise(mrd: MRD, lines: Lines, averages: int) -> NDArray[np.complex64] | None:
    """Noise pre-scan, complex64 (coil, n), scaled to the variance of the image's samples; None when not sent.

    The variance of white noise grows with the receiver bandwidth, 1 / dwell time; the filter of the noise scan passes
    ``relativeReceiverNoiseBandwidth`` of it; an average of n has 1 / n of it.
    """
    flagged_rows = np.flatnonzero(flagged(mrd.heads, ismrmrd.ACQ_IS_NOISE_MEASUREMENT))
    rows = [row for row in flagged_rows.tolist() if mrd.samples[row].any()]
    if not rows:
        return None
    _check_finite(mrd, rows)
    _check_coils(mrd, rows, lines.coils)
    dwell_us = float(mrd.heads["sample_time_us"][lines.image[0]])
    system = mrd.header.acquisitionSystemInformation
    passed = (system.relativeReceiverNoiseBandwidth if system else None) or 1.0
    scans = []
    for row in rows:
        dwell_noise_us = float(mrd.heads["sample_time_us"][row])
        ratio = dwell_noise_us / dwell_us if dwell_noise_us > 0 and dwell_us > 0 else 1.0
        scans.append(mrd.samples[row] * np.float32(np.sqrt(ratio / passed / averages)))
    return np.concatenate(scans, axis=1)


def _encoding_number(mrd: MRD, usable: NDArray[np.bool_], wanted: int | None) -> int:
    numbers = np.unique(mrd.heads["encoding_space_ref"][usable]).tolist()
    if numbers and max(numbers) >= len(mrd.header.encoding):
        raise Refused(
            f"k-space: acquisitions refer to encoding {max(numbers)}, the header describes {len(mrd.header.encoding)}"
        )
    if not mrd.header.encoding:
        raise Refused("k-space: the header describes no encoding")
    if wanted is not None:
        if wanted not in numbers:
            raise Refused(f"k-space: no acquisition of encoding {wanted}; there are {numbers}")
        return wanted
    if len(numbers) > 1:
        raise Refused(f"k-space: {len(numbers)} encodings ({numbers}): each is an image of its own; say which")
    return int(numbers[0]) if numbers else 0


def _chosen(heads: NDArray[np.void], usable: NDArray[np.bool_], counter: str, wanted: int | None) -> NDArray[np.bool_]:
    values: NDArray[np.uint16] = heads["idx"][counter]
    present = np.unique(values[usable]).tolist()
    if wanted is None and len(present) > 1:
        raise Refused(
            f"k-space: {len(present)} values of the counter '{counter}' ({present[:8]}): each is an image of "
            "its own; say which"
        )
    if wanted is not None and wanted not in present:
        raise Refused(f"k-space: no acquisition with {counter} {wanted}; there are {present[:8]}")
    return values == wanted if wanted is not None else np.ones(len(values), np.bool_)


def _calibration_mode(encoding: ismrmrd.xsd.encodingType) -> str | None:
    parallel = encoding.parallelImaging
    return str(parallel.calibrationMode.value) if parallel and parallel.calibrationMode else None


def _check(mrd: MRD, image: NDArray[np.intp], encoding: ismrmrd.xsd.encodingType) -> None:
    heads = mrd.heads[image]
    if encoding.trajectory.value != "cartesian":
        raise Refused(f"k-space: trajectory '{encoding.trajectory.value}'; only Cartesian sampling is reconstructed")
    if heads["trajectory_dimensions"].any():
        raise Refused("k-space: the header says Cartesian, but acquisitions carry a trajectory of their own")
    multiband = encoding.parallelImaging.multiband if encoding.parallelImaging else None
    if multiband and multiband.multiband_factor > 1:
        raise Refused(f"k-space: {multiband.multiband_factor} slices excited at once (multiband) are not supported")
    if flagged(heads, ismrmrd.ACQ_IS_REVERSE).any():
        raise Refused("k-space: lines read backwards (ACQ_IS_REVERSE) need a phase correction that is not done here")
    system = mrd.header.acquisitionSystemInformation
    stated = system.receiverChannels if system else None
    _check_coils(mrd, image.tolist(), int(heads["active_channels"][0]))
    if stated is not None and stated != heads["active_channels"][0]:
        raise Refused(
            f"k-space: the header says {stated} receiver channels, the acquisitions hold {heads['active_channels'][0]}"
        )
    _check_finite(mrd, image.tolist())


def _check_coils(mrd: MRD, rows: Sequence[int], coils: int) -> None:
    for row in rows:
        if mrd.samples[row].shape[0] != coils:
            raise Refused(f"k-space: acquisition {row} has {mrd.samples[row].shape[0]} coils, others have {coils}")


def _check_finite(mrd: MRD, rows: Sequence[int]) -> None:
    for row in rows:
        if not np.isfinite(mrd.samples[row]).all():
            coil, sample = np.argwhere(~np.isfinite(mrd.samples[row]))[0]
            raise Refused(f"k-space: acquisition {row}, coil {coil}, sample {sample} is not a finite number")
