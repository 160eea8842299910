"""ISMRMRD/MRD: read, turn into k-space with its geometry, carry in DICOM Raw Data Storage."""

from dicomnode.mrd.acquisitions import MRD, read, write
from dicomnode.mrd.arrays import Layout, convert, from_array, make_axial_grid
from dicomnode.mrd.contrasts import to_images
from dicomnode.mrd.kspace import to_kspace
from dicomnode.mrd.raw_data import is_mrd, unwrap, wrap

__all__ = [
    "MRD",
    "Layout",
    "convert",
    "from_array",
    "is_mrd",
    "make_axial_grid",
    "read",
    "to_images",
    "to_kspace",
    "unwrap",
    "wrap",
    "write",
]
