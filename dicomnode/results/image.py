"""Multi-frame Grayscale Word Secondary Capture (PS3.3 A.8.4) of an image, in the patient's geometry.

On request one Secondary Capture (A.8.1) per slice instead, with the geometry of the Image Plane module: an extension of
that class which older readers ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage, SecondaryCaptureImageStorage

from dicomnode.errors import InputRefused
from dicomnode.results import label
from dicomnode.results.display_scale import choose_factor, scale_window, set_mapping, set_rescale
from dicomnode.results.frame_geometry import FrameGeometry, decimal
from dicomnode.results.header import Context, Series, add_common_modules
from dicomnode.results.provenance import LONGEST_COMMENT
from dicomnode.results.wording import LONGEST_LO, cut_words
from pipelines.contract import Image, StoredSlices

__all__ = ["DERIVATION", "check_values", "display_window", "set_window", "state_synthetic_frames", "write"]

DERIVATION = ("SYNTHESIS", "99DICOMNODE", "Image computed by a trained generative model")
SYNTHETIC_FRAME = "SYNTHETIC SLICE: estimated from its neighbours, not measured"
MEASURED_FRAME = "Measured slice: the stored values of the source"
_WHITE = 65535
_LONGEST_LABELLED = LONGEST_LO - len("SYN  (labelled)")
_OF_SEVERAL_FRAMES = (
    "NumberOfFrames", "FrameIncrementPointer", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationType", "DimensionOrganizationSequence", "DimensionIndexSequence", "PixelData",
)  # fmt: skip
_WINDOW_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class _Stored:
    """``frames`` uint16; modality value = ``slope`` * stored + ``intercept`` = ``factor`` * value.

    ``window``: in modality values.
    """

    frames: NDArray[np.uint16]
    slope: str
    intercept: str
    window: tuple[float, float]
    factor: int


def write(image: Image, context: Context, number: int, *, labelled: bool, single: bool = False) -> list[Dataset]:
    """Return the instances of one series, one in all or one per slice; labels stand in new rows below the anatomy.

    Raises ``GeometryError`` or ``InputRefused`` for what cannot be stored truly.
    """
    geometry = FrameGeometry.from_grid(image.volume.grid)
    values = geometry.arrange(check_values(image))
    slices = image.volume.slices
    stored = _keep_stored_values(values, slices, image.name) if slices else _quantise(values, image.volume.unit)
    frames = label.enlarge(stored.frames, _ink(stored)) if labelled else stored.frames
    kind = "labelled" if labelled else "clean"
    ds = Dataset()
    ds.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    ds.Modality = context.modality
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY", "SYNTHETIC", kind.upper()]
    ds.BurnedInAnnotation = "YES" if labelled else "NO"
    ds.PatientOrientation = ""
    ds.LossyImageCompression = "00"
    _pixels(ds, frames, stored, image.volume.unit)
    set_mapping(ds, image.volume.unit, stored.factor, cut_words(image.description), (0, _WHITE))
    _functional_groups(ds, geometry, image.slice_thickness_mm)
    state_synthetic_frames(ds, image, geometry.arrange(np.arange(image.volume.grid.shape[0])).tolist())
    words = f"{cut_words(image.description, _LONGEST_LABELLED)} (labelled)" if labelled else image.description
    note = " The label lies in added rows below the image." if labelled else ""
    name = f"{image.name}/{kind}/single" if single else f"{image.name}/{kind}"
    add_common_modules(ds, context, Series(name, number, words, f"{image.description}.{note}", DERIVATION))
    return _slices(ds, context, name) if single else [ds]


def check_values(image: Image) -> NDArray[np.float32]:
    """Return the array (k, j, i). Raises InputRefused unless it fits its grid and all values are finite numbers."""
    data = image.volume.data
    if data.shape != image.volume.grid.shape:
        raise InputRefused(f"result '{image.name}': array {data.shape} on a grid of {image.volume.grid.shape}")
    if not np.isfinite(data).all():
        raise InputRefused(f"result '{image.name}': {int((~np.isfinite(data)).sum())} voxels are not finite numbers")
    return data


def _slices(ds: Dataset, context: Context, name: str) -> list[Dataset]:
    """Return the frames of a complete multi-frame object as single-frame ones of the same series."""
    shared, frames = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence
    pixels = np.frombuffer(ds.PixelData, "<u2").reshape(ds.NumberOfFrames, -1)
    header = deepcopy(ds)
    for keyword in _OF_SEVERAL_FRAMES:
        if keyword in header:
            delattr(header, keyword)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    header.update(shared.PixelMeasuresSequence[0])
    header.update(shared.PlaneOrientationSequence[0])
    slices = []
    for number, (frame, stored) in enumerate(zip(frames, pixels, strict=True), 1):
        one = deepcopy(header)
        one.update(frame.PlanePositionSequence[0])
        if comment := frame.FrameContentSequence[0].get("FrameComments"):
            one.ImageComments = f"{comment}\r\n{one.ImageComments}"[:LONGEST_COMMENT]
        one.InstanceNumber = number
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = context.uid("instance", name, str(number))
        one.PixelData = stored.tobytes()
        one["PixelData"].VR = "OW"
        slices.append(one)
    return slices


def _quantise(data: NDArray[np.float32], unit: str) -> _Stored:
    window = display_window(data)
    factor = choose_factor(unit, window)
    low, high = factor * float(data.min()), factor * float(data.max())
    slope, intercept = decimal((high - low) / _WHITE if high > low else 1.0), decimal(low)
    values = np.round((factor * data.astype(np.float64) - float(intercept)) / float(slope))
    frames = np.clip(values, 0, _WHITE).astype(np.uint16)
    return _Stored(frames, slope, intercept, scale_window(window, factor), factor)


def _keep_stored_values(data: NDArray[np.float32], slices: StoredSlices, name: str) -> _Stored:
    """Return the whole numbers n of value = slope n + intercept; negative ones are moved up by a whole number.

    Raises InputRefused where more than 65536 of them are needed.
    """
    numbers = np.rint((data.astype(np.float64) - slices.intercept) / slices.slope)
    lowest = min(0.0, float(numbers.min()))
    if numbers.max() - lowest > _WHITE:
        raise InputRefused(f"result '{name}': its stored values take more than 16 bits")
    intercept = slices.intercept + slices.slope * lowest
    frames = (numbers - lowest).astype(np.uint16)
    return _Stored(frames, decimal(slices.slope), decimal(intercept), display_window(data), 1)


def state_synthetic_frames(ds: Dataset, image: Image, slices: Sequence[int]) -> None:
    """Write whether each frame was measured into Frame Comments (PS3.3 C.7.6.16.2.2), where only some were not.

    ``slices``: for each frame of ``ds``, its slice of the image.
    """
    if not image.synthetic_slices:
        return
    for frame, k in zip(ds.PerFrameFunctionalGroupsSequence, slices, strict=True):
        is_synthetic = k in image.synthetic_slices
        frame.FrameContentSequence[0].FrameComments = SYNTHETIC_FRAME if is_synthetic else MEASURED_FRAME


def display_window(data: NDArray[np.float32]) -> tuple[float, float]:
    """Return the values that a viewer shows as black and as white."""
    dark, bright = (float(value) for value in np.percentile(data, _WINDOW_PERCENTILES))
    return dark, bright


def _ink(stored: _Stored) -> int:
    """Return the stored value that the window shows as white."""
    value = (stored.window[1] - float(stored.intercept)) / float(stored.slope)
    return int(np.clip(np.ceil(value), 1, _WHITE))


def _pixels(ds: Dataset, frames: NDArray[np.uint16], stored: _Stored, unit: str) -> None:
    ds.NumberOfFrames, ds.Rows, ds.Columns = frames.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PresentationLUTShape = "IDENTITY"
    set_rescale(ds, stored.slope, stored.intercept, unit, stored.factor)
    set_window(ds, stored.window, float(stored.slope))
    ds.PixelData = frames.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"


def set_window(ds: Dataset, window: tuple[float, float], slope: float) -> None:
    """Set the window from ``low`` to ``high`` in modality values, no narrower than one stored step.

    LINEAR runs from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2 (PS3.3 C.11.2.1.2.1). That half matters where a
    window is a few units wide or less, and viewers draw a width below 1 black although LINEAR_EXACT would allow it
    (OHIF 3.13): so half a unit is added to the centre, and one to the width.
    """
    low, high = window
    ds.WindowCenter, ds.WindowWidth = decimal((low + high) / 2 + 0.5), decimal(max(high - low, slope) + 1)


def _functional_groups(ds: Dataset, geometry: FrameGeometry, thickness_mm: float) -> None:
    between, rows, columns = geometry.spacing_mm
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [decimal(rows), decimal(columns)]
    measures.SliceThickness = decimal(thickness_mm)
    measures.SpacingBetweenSlices = decimal(between)
    orientation.ImageOrientationPatient = [decimal(value) for value in geometry.orientation]
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = [_frame(n, position) for n, position in enumerate(geometry.positions_mm, 1)]
    if len(geometry.positions_mm) > 1:
        ds.FrameIncrementPointer = Tag("PerFrameFunctionalGroupsSequence")  # PS3.3 C.7.6.6
    organization, index = Dataset(), Dataset()
    index.DimensionIndexPointer = Tag("ImagePositionPatient")
    index.FunctionalGroupPointer = Tag("PlanePositionSequence")
    index.DimensionDescriptionLabel = "Slice position"
    ds.DimensionOrganizationType = "3D"
    ds.DimensionOrganizationSequence = [organization]
    ds.DimensionIndexSequence = [index]


def _frame(number: int, position_mm: NDArray[np.float64]) -> Dataset:
    content, position, frame = Dataset(), Dataset(), Dataset()
    content.StackID = "1"
    content.InStackPositionNumber = number
    content.DimensionIndexValues = [number]
    position.ImagePositionPatient = [decimal(value) for value in position_mm]
    frame.FrameContentSequence = [content]
    frame.PlanePositionSequence = [position]
    return frame
