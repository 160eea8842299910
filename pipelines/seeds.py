"""Seeds of slices and samples, which follow from the seed of the job."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(seed: int, index: int) -> int:
    """Return a seed per slice and sample, the same for any division of the work."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:7], "big")
