"""MRD from k-space arrays, so that data without a header can be sent; arguments give what an array does not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ismrmrd
import numpy as np
from ismrmrd import xsd
from numpy.typing import NDArray

from dicomnode.mrd.acquisitions import HEAD, MRD
from pipelines.contract import Grid, Refused

__all__ = ["Layout", "convert", "from_array", "make_axial_grid"]

Layout = Literal["2d", "3d plane"]
"""``2d``: axis b is the readout, lines are acquired whole. ``3d plane``: one slice of a 3D acquisition after the
transform along its readout, a and b both phase-encoded; each position is an acquisition of one sample."""

_LARMOR_HZ_PER_T = 42_577_478.5


@dataclass(frozen=True)
class _Axes:
    read: NDArray[np.float64]
    phase: NDArray[np.float64]
    slice: NDArray[np.float64]


def make_axial_grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Grid:
    """Return an axial grid (k, j, i) about the isocentre: columns to the left, rows to the back, slices upwards."""
    k, j, i = shape
    affine = np.diag([spacing_mm[2], spacing_mm[1], spacing_mm[0], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ np.array([i // 2, j // 2, (k - 1) / 2])
    return Grid(shape, affine)


def from_array(
    samples: NDArray[np.complexfloating[Any, Any]],
    *,
    grid: Grid,
    slice_thickness_mm: float,
    mask: NDArray[np.bool_] | None = None,
    layout: Layout = "2d",
    noise: NDArray[np.complexfloating[Any, Any]] | None = None,
    calibration: tuple[int, int] | None = None,
    field_strength_t: float | None = None,
    identity: Mapping[str, Mapping[str, Any]] | None = None,
    user_parameters: Mapping[str, str] | None = None,
) -> MRD:
    """Return the MRD of the array (slice, coil, a, b), whose centre of k-space is sample ``n // 2``.

    ``grid`` (k, j, i) is the grid that the array encodes, rows along a and columns along b. ``mask`` (slice, a, b)
    or (a, b) defaults to where any coil is not zero. ``calibration``: lines a0 to a1 to flag ("2d" only). ``noise``
    (coil, n). ``identity``: fields of the header's subjectInformation and studyInformation. ``user_parameters``: what
    else the header should tell.
    """
    data = np.asarray(samples, np.complex64)
    if data.ndim != 4 or (data.shape[0], *data.shape[2:]) != grid.shape:
        raise Refused(f"k-space array: shape {data.shape} is not (slice, coil, a, b) on a grid of {grid.shape}")
    acquired: NDArray[np.bool_] = np.any(data, axis=1)
    if mask is not None:
        acquired = np.broadcast_to(np.asarray(mask, np.bool_), grid.shape)
    if layout == "3d plane" and data.shape[0] != 1:
        raise Refused(f"k-space array: {data.shape[0]} slices; one plane of a 3D acquisition was announced")
    columns = grid.affine_mm[:3, :3]
    i, j, k = (columns[:, n] / np.linalg.norm(columns[:, n]) for n in range(3))
    axes = _Axes(i, j, k) if layout == "2d" else _Axes(k, j, i)
    rows = list(_lines(data, acquired) if layout == "2d" else _points(data, acquired))
    heads = np.zeros(len(rows), HEAD)
    for number, (head, (k_index, a, b, line)) in enumerate(zip(heads, rows, strict=True)):
        _fill(head, number, line, axes, _centre_mm(grid, k_index))
        head["idx"]["kspace_encode_step_1"], head["idx"]["kspace_encode_step_2"] = a, b
        head["idx"]["slice"] = k_index
        if calibration and calibration[0] <= a < calibration[1]:
            head["flags"] = 1 << (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING - 1)
    lines = [line for *_, line in rows]
    if noise is not None:
        heads, lines = _with_noise(heads, lines, np.asarray(noise, np.complex64), axes)
    header = _header(data.shape, grid, slice_thickness_mm, layout, field_strength_t, user_parameters or {})
    _identify(header, identity or {})
    return MRD(header, heads, lines)


def convert(
    source: Path, *, voxel_mm: tuple[float, float, float] | None = None, slice_thickness_mm: float | None = None
) -> MRD:
    """Return the MRD of an array file.

    ``.npy`` (coil, ky, kz): one plane of a 3D scan; ``.mat`` with ``kspace`` (readout, phase, slice): one channel.

    Field of view and place in the patient are not stated by such files: ``voxel_mm`` (slice, row, column) is taken, or
    1 mm in plane (plane of 3D: 1 mm thick) and 5 mm from slice to slice, axial about the isocentre; the header's user
    parameters say that they were assumed. A ``.mat`` is rolled so that its strongest sample is at the centre: a
    linear phase of the image, which leaves its magnitude as it was.
    """
    array, layout = _array(source)
    is_given = voxel_mm is not None
    voxel = voxel_mm or ((5.0, 1.0, 1.0) if layout == "2d" else (1.0, 1.0, 1.0))
    notes = {
        "voxel_size": f"{'given by the operator' if is_given else 'assumed'}: {voxel[0]} x {voxel[1]} x {voxel[2]} "
        "mm (slice, row, column); not stated by the source",
        "orientation": "assumed: axial about the isocentre; not stated by the source",
    }
    if layout == "2d":
        array, shift = _centred(array)
        notes["kspace_roll"] = f"{shift[0]} phase, {shift[1]} readout samples"
    shape = (array.shape[0], array.shape[2], array.shape[3])
    return from_array(
        array,
        grid=make_axial_grid(shape, voxel),
        slice_thickness_mm=slice_thickness_mm or voxel[0],
        layout=layout,
        user_parameters=notes,
    )


def _array(source: Path) -> tuple[NDArray[np.complex64], Layout]:
    if source.suffix == ".npy":
        plane = np.load(source, allow_pickle=False)
        _check_array(plane, "an array (coil, ky, kz)")
        return plane[None].astype(np.complex64), "3d plane"
    if source.suffix == ".mat":
        from scipy.io import loadmat

        content = loadmat(source)
        if "kspace" not in content:
            raise Refused("k-space array: the .mat file holds no variable 'kspace'")
        stack = content["kspace"]
        _check_array(stack, "'kspace' (readout, phase, slice)")
        return stack.transpose(2, 1, 0)[:, None].astype(np.complex64), "2d"
    raise Refused(f"k-space array: '{source.suffix}' is not a known kind (.npy, .mat)")


def _check_array(array: NDArray[Any], what: str) -> None:
    if array.ndim != 3 or not np.iscomplexobj(array):
        raise Refused(f"k-space array: {what} was expected, the file holds {array.dtype} of shape {array.shape}")


def _centred(array: NDArray[np.complex64]) -> tuple[NDArray[np.complex64], tuple[int, int]]:
    energy = (np.abs(array) ** 2).sum(axis=(0, 1))
    a, b = np.unravel_index(int(energy.argmax()), energy.shape)
    shift = (energy.shape[0] // 2 - int(a), energy.shape[1] // 2 - int(b))
    return np.roll(array, shift, axis=(2, 3)), shift


def _lines(data: NDArray[np.complex64], acquired: NDArray[np.bool_]) -> Any:
    for k, a in np.argwhere(acquired.any(axis=2)):
        yield int(k), int(a), 0, data[k, :, a] * acquired[k, a]


def _points(data: NDArray[np.complex64], acquired: NDArray[np.bool_]) -> Any:
    for k, a, b in np.argwhere(acquired):
        yield int(k), int(a), int(b), data[k, :, a, b][:, None]


def _centre_mm(grid: Grid, k: int) -> NDArray[np.float64]:
    """Return the place of voxel (n // 2, n // 2) of slice ``k``, which an acquisition's position states."""
    index = np.array([grid.shape[2] // 2, grid.shape[1] // 2, k, 1], np.float64)
    centre: NDArray[np.float64] = (grid.affine_mm @ index)[:3]
    return centre


def _fill(head: np.void, number: int, line: NDArray[np.complex64], axes: _Axes, centre_mm: NDArray[np.float64]) -> None:
    coils, length = line.shape
    head["version"], head["scan_counter"] = 1, number
    head["number_of_samples"], head["center_sample"] = length, length // 2
    head["active_channels"] = head["available_channels"] = coils
    head["position"] = centre_mm
    head["read_dir"], head["phase_dir"], head["slice_dir"] = axes.read, axes.phase, axes.slice


def _with_noise(
    heads: NDArray[np.void], lines: list[NDArray[np.complex64]], noise: NDArray[np.complex64], axes: _Axes
) -> tuple[NDArray[np.void], list[NDArray[np.complex64]]]:
    scans = np.array_split(noise, -(-noise.shape[1] // 0xFFFF), axis=1)  # number_of_samples has 16 bits
    extra = np.zeros(len(scans), HEAD)
    for number, (head, scan) in enumerate(zip(extra, scans, strict=True)):
        _fill(head, number, scan, axes, np.zeros(3))
        head["flags"] = 1 << (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1)
    return np.concatenate([extra, heads]), [*scans, *lines]


def _header(
    shape: tuple[int, ...],
    grid: Grid,
    thickness_mm: float,
    layout: Layout,
    field_strength_t: float | None,
    notes: Mapping[str, str],
) -> xsd.ismrmrdHeader:
    slices, coils, na, nb = shape
    _, row_mm, column_mm = grid.spacing_mm
    n = (nb, na, 1) if layout == "2d" else (1, na, nb)
    fov = (nb * column_mm, na * row_mm, thickness_mm) if layout == "2d" else (thickness_mm, na * row_mm, nb * column_mm)
    limits = xsd.encodingLimitsType(
        kspace_encoding_step_1=_limit(n[1]),
        kspace_encoding_step_2=_limit(n[2]),
        slice=xsd.limitType(minimum=0, maximum=slices - 1, center=slices // 2),
    )
    encoding = xsd.encodingType(
        encodedSpace=_space(n, fov),
        reconSpace=_space(n, fov),
        encodingLimits=limits,
        trajectory=xsd.trajectoryType.CARTESIAN,
    )
    parameters = xsd.userParametersType(
        userParameterString=[xsd.userParameterStringType(name=name, value=value) for name, value in notes.items()]
    )
    return xsd.ismrmrdHeader(
        experimentalConditions=xsd.experimentalConditionsType(
            H1resonanceFrequency_Hz=round((field_strength_t or 0) * _LARMOR_HZ_PER_T)
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            receiverChannels=coils, systemFieldStrength_T=field_strength_t
        ),
        encoding=[encoding],
        userParameters=parameters,
    )


def _limit(n: int) -> xsd.limitType:
    return xsd.limitType(minimum=0, maximum=n - 1, center=n // 2)


def _space(n: tuple[int, int, int], fov_mm: tuple[float, float, float]) -> xsd.encodingSpaceType:
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=n[0], y=n[1], z=n[2]),
        fieldOfView_mm=xsd.fieldOfViewMm(x=fov_mm[0], y=fov_mm[1], z=fov_mm[2]),
    )


def _identify(header: xsd.ismrmrdHeader, identity: Mapping[str, Mapping[str, Any]]) -> None:
    kinds = {
        "subjectInformation": xsd.subjectInformationType,
        "studyInformation": xsd.studyInformationType,
        "measurementInformation": xsd.measurementInformationType,
    }
    for part, fields in identity.items():
        setattr(header, part, kinds[part](**fields))
