"""NIfTI files for tests, written by nibabel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from pipelines.contract import Grid

__all__ = ["LPS_TO_RAS", "write_nifti"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_nifti(
    path: Path,
    values: NDArray[Any],
    grid: Grid,
    *,
    codes: tuple[int, int] = (1, 1),
    facts: dict[str, Any] | None = None,
) -> Path:
    """Write ``values`` (k, j, i) on ``grid``.

    ``codes``: of sform and qform; ``facts``: content of a JSON file beside.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = LPS_TO_RAS @ grid.affine_mm
    image = nibabel.Nifti1Image(np.ascontiguousarray(values.T), affine)
    image.set_sform(affine if codes[0] else None, code=codes[0])
    image.set_qform(affine if codes[1] else None, code=codes[1])
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    if facts is not None:
        path.with_name(path.name.split(".nii")[0] + ".json").write_text(json.dumps(facts))
    return path
