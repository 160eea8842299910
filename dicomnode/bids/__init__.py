"""Studies and results as a BIDS dataset: raw images of MR, and a derivative dataset for each pipeline."""
