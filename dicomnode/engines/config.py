"""[worker]: how jobs are run, and by what."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dicomnode.results.preferences import Section

__all__ = ["WorkerConfig"]


def _host(value: str) -> str:
    if any(not (letter.isascii() and (letter.isalnum() or letter in "-._")) for letter in value):
        raise ValueError("a host is named by letters, digits, '-', '.' and '_'")
    return value


class WorkerConfig(Section):
    """How jobs are run. ``host``: how this machine signs its leases; empty: by its own name.

    ``warm_models``: so many a worker keeps loaded between jobs. What follows ``engine`` is for Ray: an actor is a
    worker with its share of a GPU, and there are so many as jobs ask for, within bounds.
    """

    device: str = "auto"
    concurrency: int = Field(default=1, ge=0)
    lease_s: float = Field(default=60.0, ge=1)
    attempts: int = Field(default=3, ge=1)
    backoff_s: float = Field(default=5.0, ge=0)
    poll_s: float = Field(default=1.0, gt=0)
    host: Annotated[str, AfterValidator(_host)] = ""
    warm_models: int = Field(default=4, ge=0)
    engine: Literal["processes", "ray"] = "processes"
    ray_address: str = ""
    gpus_per_model: float = Field(default=1.0, gt=0)
    cpus_per_model: float = Field(default=1.0, gt=0)
    min_workers: int = Field(default=1, ge=0)
    max_workers: int = Field(default=4, ge=1)
    idle_s: float = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError("min_workers is more than max_workers")
        if self.engine == "ray" and ":" in self.device:
            raise ValueError('Ray gives every actor its GPU: device is "cuda", without a number')
        return self
