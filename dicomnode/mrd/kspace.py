"""Cartesian k-space with its geometry from an MRD acquisition set, everything read from the data.

Each acquisition is put where its counters and the header's encoding limits say: line ``kspace_encode_step_1`` with
the value ``center`` at row ``n_y // 2``, sample ``center_sample`` at column ``n_x // 2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode.mrd.acquisitions import MRD
from dicomnode.mrd.calibration import find_calibration_block
from dicomnode.mrd.facts import acquisition_facts
from dicomnode.mrd.geometry import make_grid, read_directions, stack_slices
from dicomnode.mrd.lines import Lines, choose_lines, read_noise
from dicomnode.mrd.repeats import Place, check_repeats
from pipelines.contract import Grid, KSpace, Refused

__all__ = ["to_kspace"]

_FOV_TOLERANCE = 1e-3
_THICKNESS_TOLERANCE = 0.01
_MOST_OVERLAP = 1.5
"""Slice thickness over the distance of slices, at most."""
_OFF_CENTRE = 16.0
"""Energy of a sample far from the centre of k-space over the largest near it, at most."""

_MOST_LISTED = 8
_MOST_EMPTY = 64
"""Elements of a matrix over the samples acquired, at most: undersampling and zero filling stay far below."""


@dataclass(frozen=True)
class _Space:
    """Matrix and field of view (mm) as (x, y, z): readout, first and second phase encoding."""

    n: tuple[int, int, int]
    fov_mm: tuple[float, float, float]


@dataclass(frozen=True)
class _Raw:
    """``samples`` complex64 (slice, coil, z, y, x); ``count`` how often each (slice, z, y, x) was measured."""

    samples: NDArray[np.complex64]
    count: NDArray[np.uint16]


@dataclass(frozen=True)
class _Geometry:
    """The encoded and the reconstructed space, and where they lie; ``axes``: read, phase and slice direction."""

    encoded: _Space
    recon: _Space
    axes: tuple[NDArray[np.float64], ...]
    first_mm: NDArray[np.float64]
    spacing_mm: float


@dataclass(frozen=True)
class _PlanarKSpace:
    """Samples (slice, coil, a, b) with their mask, field of view (a, b), grid and slice thickness."""

    samples: NDArray[np.complex64]
    mask: NDArray[np.bool_]
    fov_mm: tuple[float, float]
    grid: Grid
    slice_thickness_mm: float


def to_kspace(
    mrd: MRD,
    *,
    encoding: int | None = None,
    contrast: int | None = None,
    phase: int | None = None,
    repetition: int | None = None,
    set: int | None = None,
) -> tuple[KSpace, dict[str, Any]]:
    """Return k-space of one image, and the facts of its acquisition (no patient data).

    2D: a = ky -> rows, b = kx -> columns, slices along slice_dir. 3D: inverse FFT along the fully sampled readout
    gives slices along read_dir, in-plane a = ky -> rows, b = kz -> columns. Averages that agree to within their noise
    are averaged. Readout oversampling is removed when every line is complete. A file with several encodings,
    contrasts, phases, repetitions or sets holds several images: the keyword says which, none said is refused. Raises
    ``Refused`` for whatever contradicts itself or cannot be reconstructed honestly.
    """
    lines = choose_lines(
        mrd, {"encoding": encoding, "contrast": contrast, "phase": phase, "repetition": repetition, "set": set}
    )
    encoded, recon = _spaces(lines)
    heads = mrd.heads[lines.image]
    _check_slices(lines, np.unique(heads["idx"]["slice"]).tolist())
    frame = read_directions(heads)
    counters, first_mm, spacing_mm = stack_slices(heads, frame["slice_dir"], encoded.fov_mm[2])
    is_3d = _has_partitions(encoded, heads)
    if is_3d and len(counters) > 1:
        raise Refused(f"k-space: {len(counters)} slabs of a 3D encoding; each is an image of its own")
    if not is_3d:
        _check_thickness(encoded, recon, spacing_mm if len(counters) > 1 else None)
    prescan = read_noise(mrd, lines)
    steps = np.stack([_steps(lines, heads, axis, encoded.n[axis]) for axis in (1, 2)], axis=1)
    _check_sizes(encoded, recon, int(heads["number_of_samples"].sum()))
    raw = _fill_kspace(mrd, lines, encoded, counters, steps, prescan)
    _check_centre(raw)
    build = _build_volume if is_3d else _build_slices
    found = build(raw, _Geometry(encoded, recon, tuple(frame.values()), first_mm, spacing_mm))
    times = raw.count[raw.count > 0]
    kspace = KSpace(
        found.samples,
        found.mask,
        found.fov_mm,
        found.grid,
        found.slice_thickness_mm,
        calibration=find_calibration_block(found.samples, found.mask),
        noise=None if prescan is None else prescan / np.float32(np.sqrt(times.min())),
    )
    facts = acquisition_facts(mrd.header, lines, kspace) | {
        "dimensions": "3D" if is_3d else "2D",
        "averages": (int(times.min()), int(times.max())),
        "encoded_matrix": encoded.n,
        "encoded_fov_mm": encoded.fov_mm,
        "recon_matrix": recon.n,
        "recon_fov_mm": recon.fov_mm,
        "readout_oversampling_removed": not is_3d and found.samples.shape[3] != encoded.n[0],
    }
    return kspace, facts


def _spaces(lines: Lines) -> tuple[_Space, _Space]:
    spaces = []
    for name in ("encodedSpace", "reconSpace"):
        space = getattr(lines.encoding, name)
        n = (space.matrixSize.x, space.matrixSize.y, space.matrixSize.z)
        fov = (space.fieldOfView_mm.x, space.fieldOfView_mm.y, space.fieldOfView_mm.z)
        if min(n) < 1 or not all(np.isfinite(fov)) or min(fov) <= 0:
            raise Refused(f"k-space header: {name} has matrix {n} and field of view {fov} mm")
        spaces.append(_Space(n, fov))
    encoded, recon = spaces
    axes = (0, 1, 2) if encoded.n[2] > 1 else (0, 1)
    for axis in axes:
        if recon.fov_mm[axis] > encoded.fov_mm[axis] * (1 + _FOV_TOLERANCE):
            raise Refused(
                f"k-space header: the image shall cover {recon.fov_mm[axis]} mm along {'xyz'[axis]}, only "
                f"{encoded.fov_mm[axis]} mm are encoded"
            )
    if encoded.n[2] == 1 and recon.n[2] > 1:
        raise Refused(f"k-space header: {recon.n[2]} partitions to reconstruct from a 2D encoding")
    return encoded, recon


def _check_sizes(encoded: _Space, recon: _Space, samples: int) -> None:
    """Refuse matrices that the samples of a coil cannot fill: memory and time would be for what a header says."""
    for name, space in (("encodedSpace", encoded), ("reconSpace", recon)):
        if math.prod(space.n) > _MOST_EMPTY * samples:
            raise Refused(f"k-space header: {name} has matrix {space.n}, but each coil has only {samples} samples")


def _has_partitions(encoded: _Space, heads: NDArray[np.void]) -> bool:
    """Return whether the acquisition is 3D. Raises Refused where header and acquisitions contradict each other."""
    for axis, n, name in ((1, encoded.n[1], "y"), (2, encoded.n[2], "z")):
        steps = np.unique(heads["idx"][f"kspace_encode_step_{axis}"])
        if n > 1 and len(steps) == 1:
            raise Refused(
                f"k-space: encodedSpace matrixSize {name} is {n}, but every acquisition has kspace_encode_step_{axis} "
                f"= {steps[0]}: the matrix contradicts what was acquired"
            )
    if encoded.n[1] == 1:
        raise Refused("k-space header: encodedSpace matrixSize y is 1: no phase encoding, no image")
    return encoded.n[2] > 1


def _check_thickness(encoded: _Space, recon: _Space, spacing_mm: float | None) -> None:
    """Check that fieldOfView_mm z of a 2D encoding is the thickness of a slice; some write the extent of the stack."""
    thickness, recon_thickness = encoded.fov_mm[2], recon.fov_mm[2]
    if abs(thickness - recon_thickness) > _THICKNESS_TOLERANCE * thickness:
        raise Refused(
            f"k-space header: the slice thickness (fieldOfView_mm z of a 2D encoding) is {thickness} mm in "
            f"encodedSpace and {recon_thickness} mm in reconSpace"
        )
    if spacing_mm is not None and thickness > _MOST_OVERLAP * spacing_mm:
        raise Refused(
            f"k-space header: fieldOfView_mm z is {thickness} mm, but the slices are {spacing_mm:.4g} mm apart: for a "
            "2D encoding it is the thickness of a slice, not the extent of the stack"
        )


def _check_centre(raw: _Raw) -> None:
    """Check that the energy lies about the stated centre of k-space; else counters or limits are wrong."""
    energy = (np.abs(raw.samples).astype(np.float64) ** 2).sum(axis=(0, 1))
    for axis, where in enumerate(("kspace_encoding_step_2", "kspace_encoding_step_1", "center_sample")):
        profile = energy.max(axis=tuple({0, 1, 2} - {axis}))
        n = len(profile)
        width = max(n // 8, 2)
        near = profile[max(n // 2 - width, 0) : n // 2 + width + 1].max()
        if profile.max() > _OFF_CENTRE * near:
            raise Refused(
                f"k-space: the strongest samples lie at {int(profile.argmax()) - n // 2:+d} from the stated centre of "
                f"k-space ({where}) in a matrix of {n}: the stated centre is wrong"
            )


def _check_slices(lines: Lines, counters: list[int]) -> None:
    limit = lines.encoding.encodingLimits.slice
    first, last = (0, max(counters)) if limit is None else (limit.minimum, limit.maximum)
    held = set(counters)
    missing = list(islice((number for number in range(first, last + 1) if number not in held), _MOST_LISTED))
    if not first <= min(counters) <= max(counters) <= last:
        raise Refused(
            f"k-space: slice counters {min(counters)} to {max(counters)}, the header allows {first} to {last}"
        )
    if missing:
        raise Refused(f"k-space: no samples, or zeros only, of slice {missing}")


def _steps(lines: Lines, heads: NDArray[np.void], axis: int, n: int) -> NDArray[np.intp]:
    """Return index in k-space of each acquisition along phase encoding ``axis`` (1 or 2)."""
    steps: NDArray[np.intp] = heads["idx"][f"kspace_encode_step_{axis}"].astype(np.intp)
    limit = getattr(lines.encoding.encodingLimits, f"kspace_encoding_step_{axis}")
    if limit is None and (steps.min() > 0 or steps.max() < n - 1):
        raise Refused(
            f"k-space: encodingLimits do not state kspace_encoding_step_{axis}, and the steps {steps.min()} to "
            f"{steps.max()} do not fill the matrix of {n}: which of them is the centre is not known"
        )
    low, high, centre = (limit.minimum, limit.maximum, limit.center) if limit else (0, n - 1, n // 2)
    if high - low + 1 > n or not low <= centre <= high:
        raise Refused(
            f"k-space header: encoding limits {low} to {high} with centre {centre} do not fit the matrix "
            f"of {n} (step {axis})"
        )
    if steps.min() < low or steps.max() > high:
        raise Refused(
            f"k-space: encoding step {axis} runs from {steps.min()} to {steps.max()}, the header allows {low} to {high}"
        )
    index = steps - centre + n // 2
    if index.min() < 0 or index.max() >= n:
        raise Refused(f"k-space: encoding step {axis} with centre {centre} leaves the matrix of {n}")
    return index


def _columns(mrd: MRD, lines: Lines, nx: int) -> tuple[slice, slice]:
    """Return the samples of every line to use, and the columns that they fill."""
    row = int(lines.image[0])
    head = mrd.heads[row]
    length, centre = int(head["number_of_samples"]), int(head["center_sample"])
    first, last = int(head["discard_pre"]), length - int(head["discard_post"])
    start = nx // 2 - centre + first
    stop = start + last - first
    if last <= first or start < 0 or stop > nx or not first <= centre < last:
        raise Refused(f"k-space: acquisition {row} covers columns {start} to {stop} of a matrix of {nx} columns")
    if nx // 2 - centre > 0 and nx // 2 - centre + length < nx:
        raise Refused(
            f"k-space: encodedSpace matrixSize x is {nx}, but lines of {length} samples with center_sample {centre} "
            "reach neither end of it: the matrix contradicts what was acquired"
        )
    return slice(first, last), slice(start, stop)


def _fill_kspace(
    mrd: MRD,
    lines: Lines,
    encoded: _Space,
    counters: list[int],
    steps: NDArray[np.intp],
    prescan: NDArray[np.complex64] | None,
) -> _Raw:
    """``steps`` (acquisition, 2): line and partition of each."""
    heads = mrd.heads[lines.image]
    nx, ny, nz = encoded.n
    place_of = {counter: place for place, counter in enumerate(counters)}
    slices = [place_of[int(counter)] for counter in heads["idx"]["slice"]]
    width, columns = _columns(mrd, lines, nx)
    rows_at: dict[Place, list[int]] = {}
    for row, k, (y, z) in zip(lines.image.tolist(), slices, steps.tolist(), strict=True):
        rows_at.setdefault((k, z, y), []).append(row)
    check_repeats(mrd.samples, rows_at, prescan)
    samples = np.zeros((len(counters), lines.coils, nz, ny, nx), np.complex64)
    count = np.zeros((len(counters), nz, ny, nx), np.uint16)
    for (k, z, y), rows in rows_at.items():
        samples[k, :, z, y, columns] = sum(mrd.samples[row][:, width] for row in rows) / np.float32(len(rows))
        count[k, z, y, columns] = len(rows)
    count *= samples.any(axis=(0, 1, 2, 3))  # columns that are zero in every line and coil were filled, not measured
    return _Raw(samples, count)


def _build_slices(raw: _Raw, geometry: _Geometry) -> _PlanarKSpace:
    encoded, recon = geometry.encoded, geometry.recon
    read, phase, normal = geometry.axes
    samples, mask = raw.samples[:, :, 0], raw.count[:, 0] > 0
    width = _columns_in_view(encoded, recon)
    complete = bool((mask.all(axis=2) == mask.any(axis=2)).all())
    fov_x = encoded.fov_mm[0]
    if width < encoded.n[0] and complete:
        samples = _crop_in_image(samples, width)
        mask = np.repeat(mask[:, :, :1], width, axis=2)
        fov_x = encoded.fov_mm[0] * width / encoded.n[0]
    shape = (samples.shape[0], recon.n[1], recon.n[0])
    steps = (geometry.spacing_mm, recon.fov_mm[1] / recon.n[1], recon.fov_mm[0] / recon.n[0])
    grid = make_grid(shape, steps, (normal, phase, read), geometry.first_mm, (0, shape[1] // 2, shape[2] // 2))
    return _PlanarKSpace(samples, mask, (encoded.fov_mm[1], fov_x), grid, encoded.fov_mm[2])


def _build_volume(raw: _Raw, geometry: _Geometry) -> _PlanarKSpace:
    encoded, recon = geometry.encoded, geometry.recon
    read, phase, normal = geometry.axes
    measured = raw.count[0] > 0
    mask: NDArray[np.bool_] = measured.all(axis=2)
    if (measured.any(axis=2) != mask).any():
        z, y = np.argwhere(measured.any(axis=2) != mask)[0]
        raise Refused(
            f"k-space: the readout of line {y}, partition {z} is incomplete; a 3D acquisition is "
            "reconstructed slice by slice along a complete readout only"
        )
    width = _columns_in_view(encoded, recon)
    image = _centred(np.fft.ifft, raw.samples[0])[..., _middle(encoded.n[0], width)]
    samples = np.ascontiguousarray(image.transpose(3, 0, 2, 1), np.complex64)
    mask = np.repeat(mask.T[None], width, axis=0)
    step_x = encoded.fov_mm[0] / encoded.n[0]
    shape = (width, recon.n[1], recon.n[2])
    steps = (step_x, recon.fov_mm[1] / recon.n[1], recon.fov_mm[2] / recon.n[2])
    grid = make_grid(shape, steps, (read, phase, normal), geometry.first_mm, (width // 2, shape[1] // 2, shape[2] // 2))
    return _PlanarKSpace(samples, mask, (encoded.fov_mm[1], encoded.fov_mm[2]), grid, step_x)


def _columns_in_view(encoded: _Space, recon: _Space) -> int:
    """Return the number of readout columns in the field of view: all, unless it is an exact part of the encoded one."""
    target = encoded.n[0] * recon.fov_mm[0] / encoded.fov_mm[0]
    rounded = round(target)
    return rounded if 1 <= rounded < encoded.n[0] and abs(target - rounded) < _FOV_TOLERANCE * rounded else encoded.n[0]


def _middle(n: int, width: int) -> slice:
    return slice(n // 2 - width // 2, n // 2 - width // 2 + width)


def _crop_in_image(samples: NDArray[np.complex64], width: int) -> NDArray[np.complex64]:
    """Crop the image to ``width`` columns; both transforms are orthonormal, so white noise keeps its variance."""
    image = _centred(np.fft.ifft, samples)[..., _middle(samples.shape[-1], width)]
    cropped = _centred(np.fft.fft, image).astype(np.complex64)
    cropped[~samples.any(axis=-1)] = 0
    return cropped


def _centred(transform: Any, data: NDArray[np.complexfloating[Any, Any]]) -> NDArray[np.complexfloating[Any, Any]]:
    result: NDArray[np.complexfloating[Any, Any]] = np.fft.fftshift(
        transform(np.fft.ifftshift(data, axes=-1), axis=-1, norm="ortho"), axes=-1
    )
    return result
