"""ParametricMap -> Parametric Map Storage (PS3.3 A.75): float pixels with a real-world value mapping."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomnode.errors import InputRefused
from dicomnode.results.header import Context, Series, complete, instance_of, nameless
from dicomnode.results.planes import arranged, measure
from pipelines.contract import ParametricMap

__all__ = ["write"]

_STANDARD_DEVIATION = ("113061", "DCM")
_PERCENTILES = (0.5, 99.5)


def write(finding: ParametricMap, context: Context, number: int, images: Sequence[Dataset]) -> Dataset:
    """A map on the grid of ``images``: the result image that it belongs to, or the sources."""
    frames = arranged(finding.volume.data.astype(np.float32), finding.volume.grid, images, finding.name)
    if not np.isfinite(frames).all():
        raise InputRefused(f"result '{finding.name}': {int((~np.isfinite(frames)).sum())} voxels are not finite")
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
        source_images=nameless(images, context),
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
        **instance_of(context, finding.name, number),
    )
    measure(ds, finding.volume.grid, finding.slice_thickness_mm)
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
