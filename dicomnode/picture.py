"""The demo's picture: the input, the image of a classical method, the node's image and its standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage, ParametricMapStorage

from dicomnode import mrd
from dicomnode.reading import lookup
from pipelines.contract import KSpace

if TYPE_CHECKING:
    from dicomnode.demo import StoredResult

__all__ = ["classical_images", "draw", "read_frame"]

L1_WEIGHT = 0.02
"""Weight of the wavelet penalty for images whose 99th percentile is one; the benchmark tunes it."""


def draw(kspace_file: Path, results: Sequence[StoredResult], picture: Path, *, title: str) -> None:
    """Draw four panels side by side, from the MRD file that was sent and the objects that the PACS holds.

    ``title``: a sentence on the origin of the k-space.
    """
    from matplotlib.figure import Figure

    kspace, _ = mrd.to_kspace(mrd.read(kspace_file))
    zero_filled, wavelet = classical_images(kspace)
    objects = [dcmread(result.path) for result in results]
    ours = read_frame(_find_image(objects, MultiFrameGrayscaleWordSecondaryCaptureImageStorage))
    deviation = read_frame(_find_image(objects, ParametricMapStorage))
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    axes = figure.subplots(1, 4)
    panels: tuple[tuple[str, NDArray[Any], str, float], ...] = (
        ("zero-filled", zero_filled, "gray", 0.998),
        ("L1-wavelet", wavelet, "gray", 0.998),
        ("dicomnode\n(synthetic, research use only)", ours, "gray", 0.998),
        ("standard deviation of posterior samples", deviation, "magma", 0.999),
    )
    for axis, (name, image, colours, brightest) in zip(axes, panels, strict=True):
        drawing = axis.imshow(image, cmap=colours, vmin=0, vmax=float(np.quantile(image, brightest)))
        axis.set_title(name, fontsize=11)
        axis.axis("off")
    figure.colorbar(drawing, ax=axes[3], shrink=0.7)
    figure.suptitle(title, fontsize=12)
    figure.savefig(picture, dpi=110)


def classical_images(kspace: KSpace) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the magnitudes of the zero-filled and the L1-wavelet image of the middle slice."""
    from model_zoo import classical
    from model_zoo.operators import magnitude
    from pipelines.encoding import prepare_image

    middle = kspace.samples.shape[0] // 2
    problem = prepare_image(kspace).slices(middle, middle + 1)
    images = classical.zero_filled(problem.A, problem.y), classical.l1_wavelet(problem.A, problem.y, L1_WEIGHT)
    first, second = (magnitude(image)[0].numpy() for image in images)
    return first, second


def read_frame(ds: Dataset) -> NDArray[np.float64]:
    """Return the middle frame of a multi-frame object, in real-world values."""
    if "FloatPixelData" in ds:
        stored: NDArray[Any] = np.frombuffer(ds.FloatPixelData, "<f4")
    else:
        stored = ds.pixel_array
    frames = stored.reshape(-1, ds.Rows, ds.Columns)
    values = np.asarray(frames[len(frames) // 2], np.float64)
    fraction, _ = lookup.split_rescale_type(str(ds.get("RescaleType") or ""))
    return fraction * (values * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0)))


def _find_image(objects: Sequence[Dataset], sop_class_uid: str) -> Dataset:
    """Return the object of a class; of the two image series the one without the label in its pixels."""
    return next(ds for ds in objects if ds.SOPClassUID == sop_class_uid and ds.get("BurnedInAnnotation") != "YES")
