"""The node's web interface: dashboard, DICOMweb and viewer. It calls the same use cases as the command line."""
