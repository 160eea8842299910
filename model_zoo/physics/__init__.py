"""The physics that inference and simulation share: tissues, MR signals and sequences, PET tracers and SUVR."""
