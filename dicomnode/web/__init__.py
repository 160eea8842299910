"""The node's web: pages, DICOMweb and the viewer. Nothing here decides anything; it asks the same code as the command
line does, and says what it found."""
