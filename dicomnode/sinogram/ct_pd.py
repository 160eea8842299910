"""DICOM-CT-PD, the projection format of Mayo Clinic and AAPM: one CT image object a view, geometry in private groups.

Chen et al., Med. Phys. 42 (2015) 6964. The reader takes axial scans of one turn or less at each position of the table,
from a cylindrical detector and a focal spot that does not jump. The format does not say, in the words of this reader,
to which side of the patient its axes point, nor in which direction columns are counted. The direction of columns is
found from rays that were measured twice; the side of the patient is an assumption that the result states.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicomnode.reading.unreadable import UNDECODABLE
from dicomnode.sinogram.checking import check_line_integrals, check_projections, find_reach
from dicomnode.sinogram.geometry_file import AXIAL, make_plane_grid
from dicomnode.sinogram.opposite_rays import find_direction
from model_zoo.ct_geometry import WATER_PER_MM, CtGeometry
from pipelines.contract import Projections, Refused

__all__ = ["is_ct_pd", "read"]

_TAGS = {
    "DetectorElementTransverseSpacing": (0x70291002, "f"),
    "DetectorElementAxialSpacing": (0x70291006, "f"),
    "DetectorShape": (0x7029100B, "s"),
    "NumberofDetectorRows": (0x70291010, "H"),
    "NumberofDetectorColumns": (0x70291011, "H"),
    "DetectorFocalCenterAngularPosition": (0x70311001, "f"),
    "DetectorFocalCenterAxialPosition": (0x70311002, "f"),
    "DetectorFocalCenterRadialDistance": (0x70311003, "f"),
    "ConstantRadialDistance": (0x70311031, "f"),
    "DetectorCentralElement": (0x70311033, "f"),
    "SourceAngularPositionShift": (0x7033100B, "f"),
    "SourceAxialPositionShift": (0x7033100C, "f"),
    "SourceRadialDistanceShift": (0x7033100D, "f"),
    "FlyingFocalSpotMode": (0x7033100E, "s"),
    "NumberofSpectra": (0x70331061, "H"),
    "PhotonStatistics": (0x70331065, "f"),
    "TypeofProjectionData": (0x70371009, "s"),
    "TypeofProjectionGeometry": (0x7037100A, "s"),
    "BeamHardeningCorrectionFlag": (0x70391003, "s"),
    "ScatterCorrectionFlag": (0x70391008, "s"),
    "LogFlag": (0x70391009, "s"),
    "WaterAttenuationCoefficient": (0x70411001, "s"),
}
_DETECTOR = _TAGS["NumberofDetectorRows"][0]
_SAME = (
    "DetectorElementTransverseSpacing", "DetectorElementAxialSpacing", "DetectorShape", "NumberofDetectorRows",
    "NumberofDetectorColumns", "DetectorFocalCenterRadialDistance", "ConstantRadialDistance", "DetectorCentralElement",
    "FlyingFocalSpotMode", "TypeofProjectionData", "TypeofProjectionGeometry", "LogFlag",
)  # fmt: skip
"""Elements that every view of a scan states, and alike."""
_SEVERAL = ("DetectorCentralElement", "PhotonStatistics")
"""Elements of several values."""
_POSITIVE = (
    "DetectorElementTransverseSpacing", "DetectorElementAxialSpacing", "NumberofDetectorRows",
    "NumberofDetectorColumns", "DetectorFocalCenterRadialDistance", "ConstantRadialDistance", "PhotonStatistics",
)  # fmt: skip
_STATED = (
    ("TypeofProjectionData", ("AXIAL", "SEQUENCED"), "rebin a helical scan to fans first"),
    ("TypeofProjectionGeometry", ("FANBEAM",), "rebin other beams to fans first"),
    ("DetectorShape", ("CYLINDRICAL",), "rebin its views to equal angles first"),
    ("FlyingFocalSpotMode", ("FFSNONE",), "one place of the focal spot is supported"),
    ("LogFlag", ("YES",), "line integrals are expected, after the logarithm"),
)
_SHIFTS = ("SourceAngularPositionShift", "SourceAxialPositionShift", "SourceRadialDistanceShift")
_WATER_PER_MM = (0.015, 0.03)
_TOGETHER_MM = 0.01
_MOST_PIXELS = 512


@dataclass(frozen=True)
class _View:
    """One view: angle in radians, place along the axis in mm, line integrals and photons without object (row, bin)."""

    angle: float
    z_mm: float
    values: NDArray[np.float32]
    photons: NDArray[np.float32]


def is_ct_pd(ds: Dataset) -> bool:
    """Return whether a data set is a view in this format."""
    return _DETECTOR in ds


def read(instances: Sequence[Dataset]) -> tuple[Projections, dict[str, Any]]:
    """Return the projections of the views of one scan and their facts. Raises Refused that names what is wrong."""
    first = instances[0]
    for name, accepted, advice in _STATED:
        if str(_get(first, name)).upper() not in accepted:
            raise Refused(f"projections: {name} is {_get(first, name)}, not {' or '.join(accepted)}: {advice}")
    _check_agreement(instances)
    _check_position(instances)
    groups = _group_by_position([_read_view(ds) for ds in instances])
    line_integrals, photons = (
        np.concatenate([np.stack([getattr(view, name) for view in group], axis=1) for group in groups])
        for name in ("values", "photons")
    )
    check_line_integrals(line_integrals)
    beam = _make_beam(first, groups)
    planes_mm = np.array([group[0].z_mm for group in groups])
    projections = _arrange(first, beam, planes_mm, line_integrals, photons)
    check_projections(projections)
    return projections, {"modality": "CT"}


def _get(ds: Dataset, name: str) -> Any:
    """Return the value of an element, one number or a tuple; elements of unknown VR are decoded as the format says.

    Raises Refused where it is missing, no number, or out of range.
    """
    tag, kind = _TAGS[name]
    if tag not in ds:
        raise Refused(f"projections: {name} ({tag >> 16:04X},{tag & 0xFFFF:04X}) is missing")
    value = ds[tag].value
    if isinstance(value, bytes):
        if kind == "s":
            return value.decode("ascii", "replace").strip(" \0")
        if not value or len(value) % struct.calcsize(kind):
            raise Refused(f"projections: {name} has {len(value)} bytes")
        value = struct.unpack(f"<{len(value) // struct.calcsize(kind)}{kind}", value)
    if kind == "s":
        return str(value).strip()
    try:
        numbers = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError) as error:
        raise Refused(f"projections: {name} is not a number") from error
    if not numbers.size or not np.isfinite(numbers).all():
        raise Refused(f"projections: {name} is not a number")
    if numbers.size != 1 and name not in _SEVERAL:
        raise Refused(f"projections: {name} has {numbers.size} values; it has one")
    if name in _POSITIVE and not (numbers > 0).all():
        raise Refused(f"projections: {name} is {numbers[0]:g}; it has to be above 0")
    return tuple(numbers.tolist()) if name in _SEVERAL else float(numbers[0])


def _check_agreement(instances: Sequence[Dataset]) -> None:
    """Refuse views that state different scanners, several spectra, and a focal spot that jumps."""
    first = {name: _get(instances[0], name) for name in _SAME}
    for number, ds in enumerate(instances, 1):
        for name, value in first.items():
            if _get(ds, name) != value:
                raise Refused(f"projections: {name} is {value} in view 1 and {_get(ds, name)} in view {number}")
        for name in _SHIFTS:
            if _TAGS[name][0] in ds and _get(ds, name) != 0:
                raise Refused(f"projections: {name} is {_get(ds, name)} in view {number}; no shift is supported")
        if _TAGS["NumberofSpectra"][0] in ds and _get(ds, "NumberofSpectra") > 1:
            raise Refused("projections: several spectra in one series; one energy is supported")


def _check_position(instances: Sequence[Dataset]) -> None:
    """Refuse a cone beam, whose rows leave their plane, and patients that do not lie head first on their back."""
    if (rows := _get(instances[0], "NumberofDetectorRows")) != 1:
        raise Refused(
            f"projections: {rows:g} rows of the detector; one is supported, since the format does not say, in "
            "the words of this reader, in which direction rows are counted: rebin them to fans of one row"
        )
    for position in {str(ds.get("PatientPosition") or "HFS") for ds in instances} - {"HFS"}:
        raise Refused(f"projections: PatientPosition is {position}; HFS is supported, head first on the back")


def _read_view(ds: Dataset) -> _View:
    rows, columns = int(_get(ds, "NumberofDetectorRows")), int(_get(ds, "NumberofDetectorColumns"))
    try:
        pixels = np.asarray(ds.pixel_array, np.float32)
        slope, intercept = float(ds.RescaleSlope), float(ds.RescaleIntercept)
    except UNDECODABLE as error:
        raise Refused("projections: the pixels of a view, or Rescale Slope and Intercept, cannot be read") from error
    if pixels.shape == (columns, rows):
        pixels = pixels.T
    if pixels.shape != (rows, columns):
        raise Refused(f"projections: pixels {pixels.shape}, but a detector of {rows} rows and {columns} columns")
    values = pixels * slope + intercept
    photons = np.atleast_1d(np.asarray(_get(ds, "PhotonStatistics"), np.float32))
    if photons.size not in (1, columns):
        raise Refused(
            f"projections: PhotonStatistics has {photons.size} numbers for {columns} columns, or some not above 0"
        )
    angle, z_mm = (_get(ds, f"DetectorFocalCenter{name}Position") for name in ("Angular", "Axial"))
    return _View(angle, z_mm, values.astype(np.float32), np.broadcast_to(photons, values.shape))


def _group_by_position(views: Sequence[_View]) -> list[list[_View]]:
    """Return the views at each position of the table, by ascending angle from the same first one, which all must have.

    Raises Refused where positions differ in their angles, and where views are missing or do not have equal steps.
    """
    order = sorted(views, key=lambda view: view.z_mm)
    groups: list[list[_View]] = []
    for view in order:
        if groups and abs(view.z_mm - groups[-1][0].z_mm) <= _TOGETHER_MM:
            groups[-1].append(view)
        else:
            groups.append([view])
    if any(len(group) != len(groups[0]) for group in groups) or len(groups[0]) < 2:
        raise Refused(
            f"projections: {len(views)} views at {len(groups)} positions of the table, not the same number at each: a "
            "helical scan, or views are missing"
        )
    first, *others = [_sort_by_angle(group) for group in groups]
    return [first, *(_begin_near(group, first[0].angle) for group in others)]


def _sort_by_angle(group: list[_View]) -> list[_View]:
    """Return the views from the one after the largest gap on; their steps must be equal."""
    by_angle = sorted(group, key=lambda view: view.angle % (2 * np.pi))
    angles = np.array([view.angle % (2 * np.pi) for view in by_angle])
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    last = int(gaps.argmax()) if gaps.max() > 1.5 * np.median(gaps) else len(gaps) - 1
    steps = np.delete(gaps, last)
    if np.abs(steps - steps.mean()).max() > 0.02 * steps.mean():
        raise Refused(
            f"projections: views are {np.rad2deg(steps.min()):.4g} to {np.rad2deg(steps.max()):.4g} degrees apart: "
            "some are missing or were measured twice"
        )
    return by_angle[last + 1 :] + by_angle[: last + 1]


def _begin_near(group: list[_View], angle: float) -> list[_View]:
    """Return the views of a full turn from the one nearest to ``angle`` on, and those of a shorter arc as they are."""
    step = _find_step(group)
    if step * len(group) < 2 * np.pi - step / 2:
        return group
    begin = int(np.argmin([np.abs(np.angle(np.exp(1j * (view.angle - angle)))) for view in group]))
    return group[begin:] + group[:begin]


def _make_beam(ds: Dataset, groups: Sequence[Sequence[_View]]) -> CtGeometry:
    """Return bins and views, without an image yet: its pixels are those that the field of view needs."""
    starts = np.array([group[0].angle for group in groups])
    step = _find_step(groups[0])
    if np.abs(np.angle(np.exp(1j * (starts - starts[0])))).max() > 0.02 * step:
        raise Refused("projections: the positions of the table begin at different angles")
    source_mm, detector_mm = _get(ds, "DetectorFocalCenterRadialDistance"), _get(ds, "ConstantRadialDistance")
    if not 0 < source_mm < detector_mm:
        raise Refused(
            f"projections: DetectorFocalCenterRadialDistance {source_mm:g} mm is not below ConstantRadialDistance "
            f"{detector_mm:g} mm, from focal spot to detector"
        )
    bins, views = int(_get(ds, "NumberofDetectorColumns")), len(groups[0])
    central = _get(ds, "DetectorCentralElement")
    if len(central) != 2:
        raise Refused("projections: DetectorCentralElement is not a column and a row")
    bin_mm = _get(ds, "DetectorElementTransverseSpacing") * source_mm / detector_mm
    offset = (bins - 1) / 2 - (central[0] - 1)
    arc_deg, first_deg = min(np.rad2deg(step) * views, 360.0), float(np.rad2deg(groups[0][0].angle))
    try:
        beam = CtGeometry((1, 1), 1.0, views, bins, bin_mm, arc_deg, first_deg, source_mm, offset)
        width_mm = min(_read_diameter(ds), 2 * find_reach(beam))
        if width_mm < bin_mm:
            raise Refused("projections: the detector, or the image, does not reach a bin from the axis on both sides")
        n = min(int(width_mm / bin_mm), _MOST_PIXELS)
        return CtGeometry((n, n), width_mm / n, views, bins, bin_mm, arc_deg, first_deg, source_mm, offset)
    except ValueError as error:
        raise Refused(f"projections: {error}") from error


def _read_diameter(ds: Dataset) -> float:
    """Return the diameter of the image in mm, infinity where none is stated. Raises Refused for what is none."""
    for keyword in ("ReconstructionDiameter", "DataCollectionDiameter"):
        value = ds.get(keyword)
        if value is None or value == "":
            continue
        if isinstance(value, MultiValue) or not 0 < float(value) < np.inf:
            raise Refused(f"projections: {keyword} is {value}; it is one number above 0")
        return float(value)
    return np.inf


def _find_step(group: Sequence[_View]) -> float:
    """Return the angle between views in radians."""
    angles = np.unwrap([view.angle for view in group])
    return float((angles[-1] - angles[0]) / (len(angles) - 1))


def _arrange(
    ds: Dataset,
    beam: CtGeometry,
    planes_mm: NDArray[np.float64],
    line_integrals: NDArray[np.float32],
    photons: NDArray[np.float32],
) -> Projections:
    """Return evenly spaced slices in the order of their place, with columns in the right direction."""
    order = np.argsort(planes_mm)
    steps = np.diff(planes_mm[order])
    row_mm = _get(ds, "DetectorElementAxialSpacing") * beam.source_mm / _get(ds, "ConstantRadialDistance")
    if steps.size and np.abs(steps - steps.mean()).max() > _TOGETHER_MM:
        raise Refused(f"projections: slices are {steps.min():.4g} to {steps.max():.4g} mm apart: a gap or an overlap")
    spacing = float(steps.mean()) if steps.size else row_mm
    line_integrals, photons = line_integrals[order], photons[order]
    counts = (photons * np.exp(-line_integrals)).astype(np.float32)
    if find_direction(beam, line_integrals, counts).is_mirrored:
        line_integrals, counts = line_integrals[..., ::-1], counts[..., ::-1]
        beam = CtGeometry(
            beam.shape, beam.pixel_mm, beam.views, beam.bins, beam.bin_mm, beam.arc_deg, beam.first_deg, beam.source_mm,
            -beam.offset_bins,
        )  # fmt: skip
    grid = make_plane_grid(
        (len(order), *beam.shape), (spacing, beam.pixel_mm, beam.pixel_mm), AXIAL,
        (0.0, 0.0, float(planes_mm[order][0])),
    )  # fmt: skip
    water, assumptions = _find_water(ds)
    for name in ("BeamHardeningCorrectionFlag", "ScatterCorrectionFlag"):
        if _TAGS[name][0] not in ds or _get(ds, name).upper() != "YES":
            assumptions.append(f"{name} is not YES: CT numbers may be too low in thick parts")
    return Projections(
        np.ascontiguousarray(line_integrals), np.ascontiguousarray(counts), beam, grid, row_mm, water,
        tuple(assumptions),
    )  # fmt: skip


def _find_water(ds: Dataset) -> tuple[float, list[str]]:
    """Return the attenuation of water in 1/mm, and what is assumed."""
    side = (
        "orientation: the format's x to the left and y to the back of the patient, z to the head, and angles from y "
        "towards negative x: compare left and right, and the order of slices"
    )
    place = "place: the axis of rotation at x = y = 0, and the position along it as the format states it"
    if _TAGS["WaterAttenuationCoefficient"][0] not in ds:
        return WATER_PER_MM, [side, place, f"attenuation of water: {WATER_PER_MM:g} per mm (70 keV)"]
    text = _get(ds, "WaterAttenuationCoefficient")
    low, high = _WATER_PER_MM
    try:
        water = float(text)
    except ValueError:
        water = 0.0
    if not low <= water <= high:
        raise Refused(f"projections: WaterAttenuationCoefficient is {text}; {low:g} to {high:g} per mm are possible")
    return water, [side, place]
