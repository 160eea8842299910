"""NIfTI files in and out: images as the DICOM series that the node reads, results as files with their provenance."""
