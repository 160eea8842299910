"""Processor time of the parts of a reconstruction, for one slice of 256 x 256 with 8 coils, on one thread.

    python -m benchmarks.reconstruction_parts

The least of five measurements, since other work on the machine only adds to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.reconstruction_scans import undersample
from model_zoo import registry
from model_zoo.heap import keep_freed_memory
from model_zoo.simulate import anatomy
from model_zoo.simulate.kspace import simulate_scan
from pipelines.encoding import prepare_image

REPEATS = 5


def measure_ms(compute: Callable[[], object]) -> float:
    """Return the least processor time of ``compute`` in ms."""
    compute()
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        compute()
        times.append(time.process_time() - began)
    return 1000 * min(times)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    scan = simulate_scan(anatomy.VALIDATION[0], shape=(256, 256), pixel_mm=0.9, seed=1)
    k = undersample(scan.samples, 4.0, 24, scan.noise, 3, lines=True)
    A = prepare_image(k).A
    print("| part | ms |\n| --- | ---: |")
    with keep_freed_memory():
        print(f"| preparation: noise, coils, maps, scale | {measure_ms(lambda: prepare_image(k)):.0f} |")
        x = torch.randn(1, 256, 256, dtype=torch.complex64)
        print(f"| product with A^H A | {measure_ms(lambda: A.normal(x)):.1f} |")
        for bf16 in (False, True):
            D = registry.load("mri_prior", bf16=bf16).denoiser
            for batch in (1, 4):
                many = x.repeat(batch, 1, 1)
                ms = measure_ms(lambda: D(many, 0.1)) / batch  # noqa: B023
                print(f"| evaluation in {'bfloat16' if bf16 else 'float32'}, batch of {batch} | {ms:.0f} |")


if __name__ == "__main__":
    main()
