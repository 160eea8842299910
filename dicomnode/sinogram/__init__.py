"""Projections of computed tomography: arrays with a geometry in DICOM Raw Data Storage, and DICOM-CT-PD."""

from dicomnode.sinogram.arrays import pack, read
from dicomnode.sinogram.ct_pd import is_ct_pd
from dicomnode.sinogram.ct_pd import read as read_ct_pd
from dicomnode.sinogram.raw_data import is_sinogram, unwrap, wrap

__all__ = ["is_ct_pd", "is_sinogram", "pack", "read", "read_ct_pd", "unwrap", "wrap"]
