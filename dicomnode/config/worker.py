"""The section [worker] of node.toml."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dicomnode.config.section import Section
from dicomnode.config.value_types import Count, Seconds

__all__ = ["WorkerConfig"]


def _check_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
        raise ValueError('a device is "auto", "cpu", "cuda", "cuda:0" (the number of a GPU) or "mps"')
    return value


Device = Annotated[str, AfterValidator(_check_device)]


def _check_host(value: str) -> str:
    if any(not (letter.isascii() and (letter.isalnum() or letter in "-._")) for letter in value):
        raise ValueError("a host is named by letters, digits, '-', '.' and '_'")
    return value


class WorkerConfig(Section):
    """Workers, their leases and their devices. ``host``: this machine's name in its leases; empty: its host name.

    ``warm_models``: the number of models that a worker keeps loaded between jobs. The keys after ``engine`` are for
    Ray: an actor is a worker with its share of a GPU; the number of actors follows that of the jobs, within bounds.
    """

    device: Device = "auto"
    concurrency: int = Field(default=1, ge=0, le=1000)
    lease_s: Annotated[Seconds, Field(ge=1)] = 60.0
    attempts: Count = 3
    backoff_s: float = Field(default=5.0, ge=0, le=86400)
    poll_s: Seconds = 1.0
    host: Annotated[str, AfterValidator(_check_host)] = ""
    warm_models: int = Field(default=4, ge=0)
    engine: Literal["processes", "ray"] = "processes"
    ray_address: str = ""
    gpus_per_model: float = Field(default=1.0, gt=0)
    cpus_per_model: float = Field(default=1.0, gt=0)
    min_workers: int = Field(default=1, ge=0)
    max_workers: Count = 4
    idle_s: Seconds = 300.0

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError("min_workers is more than max_workers")
        if self.engine == "ray" and ":" in self.device:
            raise ValueError('Ray gives every actor its GPU: device is "cuda", without a number')
        return self
