"""Roles of the acquisitions of an MRD file: those of the image, of calibration, of noise; refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from dicomnode.mrd.acquisitions import MRD, has_flag
from dicomnode.mrd.agreement import check_channels, check_flags, check_limits, check_shared
from pipelines.contract import Refused

__all__ = ["COUNTERS", "Lines", "choose_lines", "list_images", "read_noise"]

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
_WITHIN = ("embedded", "interleaved")
_APART = ("separate", "external")
_CALIBRATION = (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)


@dataclass(frozen=True)
class Lines:
    """Row numbers of the acquisitions that fill k-space, with their encoding."""

    image: NDArray[np.intp]
    encoding: ismrmrd.xsd.encodingType
    coils: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Usable:
    """Acquisitions that may fill k-space of one encoding; ``calibrate``: those among them for calibration only."""

    rows: NDArray[np.bool_]
    calibrate: NDArray[np.bool_]
    number: int
    zeros: int


def choose_lines(mrd: MRD, choice: dict[str, int | None]) -> Lines:
    """Return the acquisitions of one image; ``choice`` holds "encoding" and the ``COUNTERS``, None for "the only one".

    Lines that calibrate only fill k-space where the header says that they belong to this acquisition (calibration mode
    embedded or interleaved) and they have the image's counters. Those of a separate scan or of another contrast are
    left out, and the facts say so.
    """
    found = _usable(mrd, choice.get("encoding"))
    encoding = mrd.header.encoding[found.number]
    imaging, chosen = found.rows & ~found.calibrate, np.ones(len(mrd.heads), np.bool_)
    for counter in _counters(mrd):
        chosen &= _chosen(mrd.heads, imaging & chosen, counter, choice.get(counter))
    selected = found.rows & chosen
    if _calibration_mode(encoding) in _APART:
        selected &= ~found.calibrate
    image = np.flatnonzero(selected)
    if not (imaging & chosen).any():
        raise Refused("k-space: the sampling mask is empty: no acquisition holds samples of an image")
    _check(mrd, image, encoding)
    facts = {
        "calibration_mode": _calibration_mode(encoding),
        "calibration_lines_left_out": int((found.calibrate & ~selected).sum()),
        "acquisitions": int(image.size),
        "acquisitions_all_zero": found.zeros,
    }
    return Lines(image, encoding, int(mrd.heads["active_channels"][image[0]]), facts)


def list_images(mrd: MRD) -> list[dict[str, int]]:
    """Return the contrasts and sets of the file, each a choice for :func:`choose_lines`; empty for one image.

    Phases and repetitions are moments in time, and are not separated here.
    """
    usable = _usable(mrd, None)
    imaging = usable.rows & ~usable.calibrate
    found = np.unique(np.stack([mrd.heads["idx"][name][imaging] for name in SEPARATE], axis=1), axis=0).tolist()
    if len(found) > MOST_IMAGES:
        raise Refused(f"k-space: {len(found)} images (contrasts, sets) in one acquisition; {MOST_IMAGES} at most")
    return [dict(zip(SEPARATE, values, strict=True)) for values in found] if len(found) > 1 else []


def _usable(mrd: MRD, choice: int | None) -> _Usable:
    heads = mrd.heads
    silent = np.array([not samples.any() for samples in mrd.samples])
    usable = ~has_flag(heads, ismrmrd.ACQ_IS_NOISE_MEASUREMENT, *_NOT_IMAGE) & ~silent
    calibrate = has_flag(heads, _CALIBRATION[0]) & ~has_flag(heads, _CALIBRATION[1])
    number = _encoding_number(mrd, usable & ~calibrate, choice)
    usable &= heads["encoding_space_ref"] == number
    mode = _calibration_mode(mrd.header.encoding[number])
    if mode not in (*_WITHIN, *_APART) and (usable & calibrate).any():
        raise Refused(
            "k-space: the file holds lines for calibration only, and the header does not say whether they belong to "
            "the image; state parallelImaging calibrationMode (embedded or separate)"
        )
    return _Usable(usable, usable & calibrate, number, int(silent.sum()))


def _counters(mrd: MRD) -> tuple[str, ...]:
    """Return the counters of which one image has one value; the diffusion weighting may have a further counter."""
    sequence = mrd.header.sequenceParameters
    dimension = sequence.diffusionDimension.value if sequence and sequence.diffusionDimension else None
    return (*COUNTERS, dimension) if dimension in ("average", "segment") else COUNTERS


def read_noise(mrd: MRD, lines: Lines) -> NDArray[np.complex64] | None:
    """Return the noise pre-scan, complex64 (coil, n), scaled to the variance of one line of the image, or None.

    The variance of white noise grows with the receiver bandwidth, 1 / dwell time; the filter of the noise scan passes
    ``relativeReceiverNoiseBandwidth`` of it.
    """
    flagged_rows = np.flatnonzero(has_flag(mrd.heads, ismrmrd.ACQ_IS_NOISE_MEASUREMENT))
    rows = [row for row in flagged_rows.tolist() if mrd.samples[row].any()]
    if not rows:
        return None
    _check_coils(mrd, rows, lines.coils)
    _check_finite(mrd, rows)
    check_flags(mrd.heads, rows)
    check_channels(mrd.heads, int(lines.image[0]), rows)
    dwell_us, passed = float(mrd.heads["sample_time_us"][lines.image[0]]), _bandwidth(mrd)
    scales = [np.sqrt(_dwell_ratio(float(mrd.heads["sample_time_us"][row]), dwell_us) / passed) for row in rows]
    return np.concatenate([mrd.samples[row] * np.float32(scale) for row, scale in zip(rows, scales, strict=True)], 1)


def _bandwidth(mrd: MRD) -> float:
    system = mrd.header.acquisitionSystemInformation
    value = system.relativeReceiverNoiseBandwidth if system else None
    if value is not None and not 0 < value < np.inf:
        raise Refused(f"k-space header: relativeReceiverNoiseBandwidth {value} is not a positive number")
    return 1.0 if value is None else value


def _dwell_ratio(of_noise_us: float, of_image_us: float) -> float:
    """Return the ratio of two dwell times; zero stands for one that is not stated, and two of them count as equal."""
    if of_noise_us == of_image_us == 0:
        return 1.0
    if not (0 < of_noise_us < np.inf and 0 < of_image_us < np.inf):
        raise Refused(
            f"k-space: sample_time_us is {of_noise_us:g} in the noise scan and {of_image_us:g} in the image; the level "
            "of the noise cannot be told from it"
        )
    return of_noise_us / of_image_us


def _encoding_number(mrd: MRD, usable: NDArray[np.bool_], choice: int | None) -> int:
    numbers = np.unique(mrd.heads["encoding_space_ref"][usable]).tolist()
    if numbers and max(numbers) >= len(mrd.header.encoding):
        raise Refused(
            f"k-space: acquisitions refer to encoding {max(numbers)}, the header describes {len(mrd.header.encoding)}"
        )
    if not mrd.header.encoding:
        raise Refused("k-space: the header describes no encoding")
    if choice is not None:
        if choice not in numbers:
            raise Refused(f"k-space: no acquisition of encoding {choice}; there are {numbers}")
        return choice
    if len(numbers) > 1:
        raise Refused(f"k-space: {len(numbers)} encodings ({numbers}): each is an image of its own; say which")
    return int(numbers[0]) if numbers else 0


def _chosen(heads: NDArray[np.void], usable: NDArray[np.bool_], counter: str, choice: int | None) -> NDArray[np.bool_]:
    values: NDArray[np.uint16] = heads["idx"][counter]
    present = np.unique(values[usable]).tolist()
    if choice is None and len(present) > 1:
        raise Refused(
            f"k-space: {len(present)} values of the counter '{counter}' ({present[:8]}): each is an image of "
            "its own; say which"
        )
    if choice is not None and choice not in present:
        raise Refused(f"k-space: no acquisition with {counter} {choice}; there are {present[:8]}")
    if choice is None and not present:
        return np.ones(len(values), np.bool_)
    chosen: NDArray[np.bool_] = values == (present[0] if choice is None else choice)
    return chosen


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
    if has_flag(heads, ismrmrd.ACQ_IS_REVERSE).any():
        raise Refused("k-space: lines read backwards (ACQ_IS_REVERSE) need a phase correction that is not done here")
    system = mrd.header.acquisitionSystemInformation
    value = system.receiverChannels if system else None
    _check_coils(mrd, image.tolist(), int(heads["active_channels"][0]))
    if value is not None and value != heads["active_channels"][0]:
        raise Refused(
            f"k-space: the header says {value} receiver channels, the acquisitions hold {heads['active_channels'][0]}"
        )
    _check_finite(mrd, image.tolist())
    check_flags(mrd.heads, image.tolist())
    check_shared(mrd.heads, image.tolist())
    check_limits(encoding, heads)


def _check_coils(mrd: MRD, rows: Sequence[int], coils: int) -> None:
    for row in rows:
        if mrd.samples[row].shape[0] != coils:
            raise Refused(f"k-space: acquisition {row} has {mrd.samples[row].shape[0]} coils, others have {coils}")


def _check_finite(mrd: MRD, rows: Sequence[int]) -> None:
    for row in rows:
        if not np.isfinite(mrd.samples[row]).all():
            coil, sample = np.argwhere(~np.isfinite(mrd.samples[row]))[0]
            raise Refused(f"k-space: acquisition {row}, coil {coil}, sample {sample} is not a finite number")
