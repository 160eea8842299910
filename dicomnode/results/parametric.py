"""ParametricMap -> Parametric Map Storage (PS3.3 A.75): float pixels with a real-world value mapping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomnode.errors import GeometryError, InputRefused
from dicomnode.results.header import Context, Series, complete, instance_of, nameless
from dicomnode.results.lattice import lattice_of
from pipelines.contract import ParametricMap

__all__ = ["measures", "on_frames_of", "write"]

_STANDARD_DEVIATION = ("113061", "DCM")
_PERCENTILES = (0.5, 99.5)
Scalar = TypeVar("Scalar", bound=np.generic)


def write(finding: ParametricMap, context: Context, number: int, images: Sequence[Dataset]) -> Dataset:
    """A map on the grid of ``images``, the instances of the result image that it belongs to."""
    frames = lattice_of(finding.volume.grid).arrange(finding.volume.data.astype(np.float32))
    if not np.isfinite(frames).all():
        raise InputRefused(f"result '{finding.name}': {int((~np.isfinite(frames)).sum())} voxels are not finite")
    frames = on_frames_of(images, frames)
    low, high = float(frames.min()), float(frames.max())
    dark, bright = (float(value) for value in np.percentile(frames, _PERCENTILES))
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="QUANTITY",
        lut_explanation=finding.quantity.meaning[:64],
        slope=1.0,
        intercept=0.0,
        unit=Code(finding.volume.unit, "UCUM", "no units" if finding.volume.unit == "1" else finding.volume.unit),
        value_range=(low, high),
        quantity_definition=Code(finding.quantity.value, finding.quantity.scheme, finding.quantity.meaning),
    )
    ds: Dataset = hd.pm.ParametricMap(
        source_images=[nameless(image) for image in images],
        pixel_array=frames,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[
            hd.VOILUTTransformation(
                window_center=(dark + bright) / 2,
                window_width=max(bright - dark, 1e-12),
                voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,  # PS3.3 C.11.2.1.2.1: LINEAR needs 1 or more
            )
        ],
        derived_pixel_contrast=_contrast(finding),
        content_label="QUANTITY",
        content_description=finding.description[:64],
        pixel_measures=measures(images, finding.slice_thickness_mm),
        **instance_of(context, finding.name, number),
    )
    meaning = finding.quantity
    complete(
        ds,
        context,
        Series(
            finding.name,
            number,
            finding.description,
            f"{finding.description}.",
            (meaning.value, meaning.scheme, meaning.meaning),
            derived_from=images,
        ),
    )
    return ds


def _contrast(finding: ParametricMap) -> str:
    """Image Type value 4 (PS3.3 C.8.16.1.4)."""
    return "STD_DEVIATION" if (finding.quantity.value, finding.quantity.scheme) == _STANDARD_DEVIATION else "QUANTITY"


def on_frames_of(images: Sequence[Dataset], frames: NDArray[Scalar]) -> NDArray[Scalar]:
    """The frames on the grid of the result image: a labelled one has a band of rows, perhaps columns, after the last.

    Raises ``GeometryError`` when they do not belong together.
    """
    slices, rows, columns = frames.shape
    image = images[0]
    there = image.get("NumberOfFrames", len(images))
    more = (there - slices, image.Rows - rows, image.Columns - columns)
    if more[0] != 0 or min(more) < 0 or (max(more) > 0 and image.BurnedInAnnotation == "NO"):
        raise GeometryError(f"result of shape {frames.shape} for an image of {there} x {image.Rows} x {image.Columns}")
    return np.pad(frames, [(0, count) for count in more])


def measures(images: Sequence[Dataset], thickness_mm: float) -> hd.PixelMeasuresSequence:
    """Pixel Measures as the image states them, with the finding's own slice thickness."""
    groups = images[0].get("SharedFunctionalGroupsSequence")
    stated = groups[0].PixelMeasuresSequence[0] if groups else images[0]
    return hd.PixelMeasuresSequence(
        pixel_spacing=[float(value) for value in stated.PixelSpacing],
        slice_thickness=thickness_mm,
        spacing_between_slices=float(stated.SpacingBetweenSlices),
    )
