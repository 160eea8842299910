"""ISMRMRD/MRD: read, turn into k-space with its geometry, carry in DICOM Raw Data Storage."""

from dicomnode.mrd.acquisitions import MRD, read, write
from dicomnode.mrd.arrays import Layout, axial, convert, from_array
from dicomnode.mrd.contrasts import to_images
from dicomnode.mrd.kspace import to_kspace
from dicomnode.mrd.raw_data import recognise, unwrap, wrap

__all__ = [
    "MRD",
    "Layout",
    "axial",
    "convert",
    "from_array",
    "read",
    "recognise",
    "to_images",
    "to_kspace",
    "unwrap",
    "wrap",
    "write",
]
