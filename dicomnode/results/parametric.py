"""Parametric Map Storage (PS3.3 A.75) of a map: float pixels with a real-world value mapping."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomnode.errors import GeometryError, InputRefused
from dicomnode.results import image as images_of
from dicomnode.results import planes
from dicomnode.results.header import (
    Context,
    Series,
    add_common_modules,
    instance_arguments,
    reference_sources,
    without_patient_names,
)
from dicomnode.results.planes import arrange_frames, set_pixel_measures
from dicomnode.results.wording import cut_words
from pipelines import contract
from pipelines.contract import Image, ParametricMap

__all__ = ["write", "write_image"]

_STANDARD_DEVIATIONS = (("386136009", "SCT"), ("113061", "DCM"))
_PERCENTILES = (0.5, 99.5)


def write(
    finding: ParametricMap, context: Context, number: int, images: Sequence[Dataset], variant: str = ""
) -> Dataset:
    """Return a map on the grid of ``images``: the result image that it belongs to, or the sources.

    ``variant``: the form of these images, where they can have several.
    """
    name = f"{finding.name}{variant}"
    frames = arrange_frames(finding.volume.data.astype(np.float32), finding.volume.grid, images, finding.name)
    if not np.isfinite(frames).all():
        raise InputRefused(f"result '{finding.name}': {int((~np.isfinite(frames)).sum())} voxels are not finite")
    low, high = float(frames.min()), float(frames.max())
    dark, bright = (float(value) for value in np.percentile(frames, _PERCENTILES))
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="QUANTITY",
        lut_explanation=cut_words(finding.quantity.meaning),
        slope=1.0,
        intercept=0.0,
        unit=_unit(finding.volume.unit),
        value_range=(low, high),
        quantity_definition=Code(finding.quantity.value, finding.quantity.scheme, finding.quantity.meaning),
    )
    ds: Dataset = hd.pm.ParametricMap(
        source_images=without_patient_names(images, context),
        pixel_array=frames,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[_window(dark, bright)],
        derived_pixel_contrast=_contrast(finding),
        content_label="QUANTITY",
        content_description=cut_words(finding.description),
        **instance_arguments(context, name, number),
    )
    ds.ContentCreatorName = ""  # type 2 in PS3.3 table 10-12; highdicom leaves it out
    set_pixel_measures(ds, finding.volume.grid, finding.slice_thickness_mm)
    meaning = finding.quantity
    add_common_modules(
        ds,
        context,
        Series(
            name,
            number,
            finding.description,
            f"{finding.description}.",
            (meaning.value, meaning.scheme, meaning.meaning),
            derived_from=images,
        ),
    )
    return ds


def write_image(image: Image, context: Context, number: int) -> Dataset:
    """Return an image's own values as floats, for calculations; no label is in its pixels."""
    as_map = ParametricMap(
        f"{image.name}/clean", image.volume, contract.Code(*images_of.DERIVATION), image.description,
        image.slice_thickness_mm,
    )  # fmt: skip
    images_of.check_values(image)
    if sources_on_grid := planes.find_series_on(context.sources, image.volume.grid):
        return _state_frames(write(as_map, context, number, sources_on_grid, "/parametric"), image)
    frames = images_of.write(
        image, context, number, labelled=False
    )  # to lie on; it is not sent, so nothing refers to it
    ds = write(as_map, context, number, frames, "/parametric")
    reference_sources(ds, context.inputs)
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    del ds.ReferencedSeriesSequence
    return _state_frames(ds, image)


def _state_frames(ds: Dataset, image: Image) -> Dataset:
    """Return the object with the statement which of its frames are synthetic, where only some are."""
    slices = planes.list_slices([ds], image.volume.grid)
    if slices is None:
        raise GeometryError(f"result '{image.name}': the frames are not on its grid of {image.volume.grid.shape}")
    images_of.state_synthetic_frames(ds, image, slices)
    return ds


def _window(dark: float, bright: float) -> hd.VOILUTTransformation:
    return hd.VOILUTTransformation(
        window_center=(dark + bright) / 2,
        window_width=max(bright - dark, 1e-12),
        voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,  # PS3.3 C.11.2.1.2.1: LINEAR needs 1 or more
    )


def _unit(unit: str) -> Code:
    return Code(unit, "UCUM", "no units" if unit == "1" else unit)


def _contrast(finding: ParametricMap) -> str:
    """Image Type value 4 (PS3.3 C.8.16.1.4)."""
    return "STD_DEVIATION" if (finding.quantity.value, finding.quantity.scheme) in _STANDARD_DEVIATIONS else "QUANTITY"
