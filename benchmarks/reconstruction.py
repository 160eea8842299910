"""Reconstruction quality: ours against classical methods, on real and on simulated k-space.

    python -m benchmarks.reconstruction --set real --set simulated [--method dds ...] [--quick]

Real: the fully sampled single-channel 0.055 T brains of the data kit, undersampled afterwards (1D, variable density,
calibration kept). The reference is the noisy fully sampled image, which favours methods that keep measured noise.
Simulated: 8 coils and known noise on label maps that the prior never saw; the reference has no noise.
Faults: simulated coils with unequal and correlated noise and no pre-scan, 4 to 32 of them, matrices of 96 to 320, fat
shift, sharp edges that ring, and heads larger than the field of view (``--case`` selects).
Patterns: four patterns of sampling at R 2 to 8, 8 coils, known noise.
The unrolled network is measured where it was trained (``python -m benchmarks.unrolled train``).
Metrics on magnitudes: PSNR and SSIM (window 7) with data_range the maximum of the reference volume, and NMSE, per
volume, then averaged. Weights of the baselines are tuned on the test set itself, which favours the baselines.
Every number is kept in a JSON file as it comes, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor

from benchmarks import unrolled
from benchmarks.reconstruction_peers import reconstruct_by_bart, reconstruct_by_sigpy
from benchmarks.reconstruction_scans import (
    FAULTS,
    PATIENTS,
    Scan,
    fault_scans,
    pattern_scans,
    real_scans,
    simulated_scans,
)
from model_zoo import classical, masks, registry, uncertainty
from model_zoo.bundle import Model
from model_zoo.data_kit import data_root
from model_zoo.operators import magnitude
from model_zoo.simulate import anatomy
from pipelines import inversion
from pipelines.encoding import Problem, prepare_image
from pipelines.spread import measure_spread, mix_images

WEIGHTS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
HEADER = (
    "| method | n | PSNR dB | SSIM | NMSE | χ² | ρ object | ρ support | ρ all | sd/error | < 2 sd | NFE | s/slice |"
)
"""ρ: Spearman correlation of sd with absolute error, in the object, where the coil maps are, and over the
whole field of view. < 2 sd: per cent of the object's voxels with an error below two sd."""
SOLVERS = ("dds", "dps", "score_mri", "ald")
UNROLLED = "unrolled network"
STEPS = {"dps": 100, "score_mri": 100, "ald": 60}


@dataclass(frozen=True)
class Answer:
    """A reconstruction, scaled as the problem is; ``sd`` draws posterior samples, outside the time that is taken.

    ``factor`` calibrates the sd as the node does; without it the sd stays that of the samples.
    """

    image: Tensor
    evaluations: int = 0
    sd: Callable[[], Tensor] | None = None
    factor: Callable[[], float] | None = None


Method = Callable[[Problem], Answer]


def methods(model: Model, names: list[str], options: inversion.Options) -> dict[str, Method]:
    """Return every method by name; a baseline with a weight appears once per weight as ``name@weight``."""
    found: dict[str, Method] = {
        "zero-filled": lambda p: Answer(classical.zero_filled(p.A, p.y)),
        "cg-sense": lambda p: Answer(classical.cg_sense(p.A, p.y, ridge=0.01)),
        "ours: DDS posterior mean": lambda p: Answer(inversion.estimate_slices(p, model, options), options.mean_steps),
        "ours: delivered": lambda p: deliver(p, model, options),
    }
    adaptive = options.model_copy(update={"solver": "adadiff"})
    found["adadiff: posterior mean"] = lambda p: estimate_adapted(p, model, adaptive)
    for measured in ("exactly", "within noise"):
        constrained = options.model_copy(update={"measured": measured})
        found[f"ours: DDS posterior mean, samples kept {measured}"] = lambda p, o=constrained: Answer(  # type: ignore[misc]
            inversion.estimate_slices(p, model, o), o.mean_steps
        )
    for w in WEIGHTS:
        found[f"l1-wavelet (sigpy)@{w:g}"] = lambda p, w=w: Answer(reconstruct_by_sigpy(p, w))  # type: ignore[misc]
        for name, regulariser in (("bart wavelet", "W:3:0"), ("bart total variation", "T:3:0")):
            found[f"{name}@{w:g}"] = lambda p, w=w, r=regulariser: Answer(reconstruct_by_bart(p, r, w))  # type: ignore[misc]
        found[f"total variation@{w:g}"] = lambda p, w=w: Answer(classical.total_variation(p.A, p.y, w))  # type: ignore[misc]
    for solver in SOLVERS:
        one = options.model_copy(update={"solver": solver, "steps": STEPS.get(solver, options.steps)})
        found[f"{solver}: one sample"] = lambda p, o=one: estimate_by_samples(p, model, o, 1)  # type: ignore[misc]
        found[f"{solver}: mean of {options.samples}"] = lambda p, o=one: estimate_by_samples(p, model, o, o.samples)  # type: ignore[misc]
    if names or unrolled.is_trained():
        found[UNROLLED] = estimate_unrolled
    return {n: m for n, m in found.items() if not names or any(n.startswith(prefix) for prefix in names)}


def estimate_unrolled(p: Problem) -> Answer:
    network = unrolled.load()
    return Answer(unrolled.reconstruct(p, network), len(network.log_errors))


def deliver(p: Problem, model: Model, options: inversion.Options) -> Answer:
    """Return the image that the node delivers, and its sd; evaluations without those on held-out samples."""
    estimate = inversion.estimate_slices(p, model, options)
    seeds = ([1000 * n + i for i in range(len(p.y))] for n in range(options.samples))
    images = [inversion.draw_samples(p, model, options, each, estimate) for each in seeds]
    spread = measure_spread(p, model, model, options, 1)
    x = mix_images(estimate, torch.stack(images).mean(dim=0), spread.share)
    return Answer(x, inversion.count_evaluations(options), lambda: _spread(p, images), lambda: spread.factor)


def estimate_by_samples(p: Problem, model: Model, options: inversion.Options, count: int) -> Answer:
    images = list(draw_samples(p, model, options, count))
    evaluations = count * (inversion.count_evaluations(options) - options.mean_steps) // options.samples
    evaluations += options.mean_steps if options.solver == "dds" else 0
    image = images[0] if count == 1 else torch.stack(images).mean(dim=0)
    return Answer(image, evaluations, None if count == 1 else lambda: _spread(p, images))


def estimate_adapted(p: Problem, model: Model, options: inversion.Options) -> Answer:
    prior, how = inversion.adapt_prior(p, model, options, seed=1)
    print(f"held-out chi-square {how.before:.3f} -> {how.after:.3f} in {how.steps} steps", flush=True)
    return Answer(inversion.estimate_slices(p, prior, options), options.rapid_steps + round(how.evaluations / len(p.y)))


def draw_samples(p: Problem, model: Model, options: inversion.Options, count: int) -> Iterator[Tensor]:
    """Yield samples, ``count`` of each slice; DDS starts them at the estimate."""
    estimate = inversion.estimate_slices(p, model, options) if options.solver == "dds" else p.A.H(p.y)
    for n in range(count):
        yield inversion.draw_samples(p, model, options, [1000 * n + i for i in range(len(p.y))], estimate)


def _spread(p: Problem, images: Iterable[Tensor]) -> Tensor:
    """Return the sd of the magnitudes, in the units of the samples."""
    return uncertainty.mean_and_sd(magnitude(p.in_units(x)) for x in images)[1]


def judge(scan: Scan, p: Problem, answer: Answer, seconds: float) -> dict[str, float]:
    x = magnitude(p.in_units(answer.image)).numpy()
    truth = scan.reference
    top = float(truth.max())
    result = {
        "psnr": -10 * float(np.log10(np.mean((x - truth) ** 2) / top**2)),
        "ssim": float(
            np.mean([structural_similarity(t, s, data_range=top, win_size=7) for t, s in zip(truth, x, strict=True)])
        ),
        "nmse": float(np.sum((x - truth) ** 2) / np.sum(truth**2)),
        "seconds_per_slice": seconds / len(x),
        "nfe": float(answer.evaluations),
        "chi_square": float(uncertainty.chi_square(p.A, answer.image, p.y, p.sigma_y).mean()),
        "acceleration": masks.actual_acceleration(scan.kspace.mask),
    }
    if answer.sd is not None:
        sd, error = uncertainty.pool_sd(answer.sd().numpy(), (1.0, 1.0)), np.abs(x - truth)
        if answer.factor is not None:
            sd = uncertainty.calibrate_sd(sd, x, answer.factor())
        inside = truth > 0.05 * top
        result["spearman_object"] = float(spearmanr(sd[inside], error[inside]).statistic)
        supported = magnitude(p.A.support).numpy() > 0
        result["spearman_support"] = float(spearmanr(sd[supported], error[supported]).statistic)
        result["spearman_all"] = float(spearmanr(sd.ravel(), error.ravel()).statistic)
        result["sd"], result["error"] = (100 / top * float(each[inside].mean()) for each in (sd, error))
        result["sd_over_error"] = float(np.sqrt((sd[inside] ** 2).mean() / (error[inside] ** 2).mean()))
        result["inside_2_sd"] = 100 * float((error <= 2 * sd)[inside].mean())
    return result


def measure(scans: Iterator[Scan], every: dict[str, Method], store: Path) -> dict[str, Any]:
    done: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    for scan in scans:
        missing = [n for n in every if f"{scan.key}/{n}" not in done]
        if not missing:
            continue
        with torch.no_grad():
            problem = prepare_image(scan.kspace)
            for name in missing:
                began = time.perf_counter()
                answer = every[name](problem)
                done[f"{scan.key}/{name}"] = judge(scan, problem, answer, time.perf_counter() - began)
                store.parent.mkdir(parents=True, exist_ok=True)
                store.write_text(json.dumps(done, indent=1))
        print(scan.key, flush=True)
    return done


def table(done: dict[str, Any]) -> str:
    """Return Markdown: means over volumes per set and acceleration; of a tuned method the weight best in mean PSNR."""
    lines = []
    for set_name, R in sorted({tuple(key.split("/")[0:3:2]) for key in done}):
        rows = {key: value for key, value in done.items() if key.startswith(f"{set_name}/") and f"/{R}/" in key}
        lines += ["", f"**{set_name}, {R}** (achieved {np.mean([v['acceleration'] for v in rows.values()]):.2f})", ""]
        lines += [HEADER, "| --- " * 13 + "|"]
        lines += [_row(name, values) for name, values in _best(rows).items()]
    return "\n".join(lines) + "\n"


def trend_table(done: dict[str, Any]) -> str:
    """Return Markdown: mean sd and mean error in the object, per cent of the reference's maximum, by set and R."""
    lines = ["", "| set, R | method | mean sd % | mean error % |", "| --- | --- | ---: | ---: |"]
    for key, value in sorted(done.items()):
        if "sd" in value:
            set_name, name, R, method = key.split("/", 3)
            lines.append(f"| {set_name}, {name}, {R} | {method} | {value['sd']:.2f} | {value['error']:.2f} |")
    return "\n".join(lines) + "\n" if len(lines) > 3 else ""


def _best(rows: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the values per method; of ``name@weight`` the weight with the best mean PSNR."""
    by_name: dict[str, list[Any]] = {}
    for key, value in rows.items():
        by_name.setdefault(key.split("/", 3)[3], []).append(value)
    best: dict[str, str] = {}
    for name, values in by_name.items():
        family = name.split("@")[0]
        if family not in best or _mean(values, "psnr") > _mean(by_name[best[family]], "psnr"):
            best[family] = name
    return {name: by_name[name] for name in best.values()}


def _mean(values: list[Any], what: str) -> float:
    found = [v[what] for v in values if what in v]
    return float(np.mean(found)) if found else float("nan")


def _row(name: str, values: list[Any]) -> str:
    columns = [
        ("psnr", ".2f"),
        ("ssim", ".3f"),
        ("nmse", ".4f"),
        ("chi_square", ".2f"),
        ("spearman_object", ".2f"),
        ("spearman_support", ".2f"),
        ("spearman_all", ".2f"),
        ("sd_over_error", ".2f"),
        ("inside_2_sd", ".0f"),
        ("nfe", ".0f"),
    ]
    cells = [
        format(_mean(values, what), form).replace("nan", "") for what, form in [*columns, ("seconds_per_slice", ".2f")]
    ]
    return f"| {name} | {len(values)} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", choices=("real", "simulated", "faults", "patterns"), dest="sets")
    parser.add_argument(
        "--method", action="append", default=[], help="beginning of a method's name; all when not given"
    )
    parser.add_argument("--patient", action="append", choices=PATIENTS)
    parser.add_argument("--subject", action="append", help="label maps; the held-out test subjects when not given")
    parser.add_argument("--case", action="append", choices=tuple(FAULTS), help="of --set faults; all when not given")
    parser.add_argument("--acceleration", action="append", type=float)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--model", default="mri_prior")
    parser.add_argument("--float32", action="store_true", help="run the network in float32 rather than bfloat16")
    parser.add_argument("--store", type=Path, default=Path("build/benchmarks/reconstruction.json"))
    parser.add_argument("--table", type=Path, help="where to write the Markdown table; printed when not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    every = methods(registry.load(arguments.model, bf16=not arguments.float32), arguments.method, inversion.Options())
    if UNROLLED in every and not unrolled.is_trained():
        parser.error("no unrolled network: train it by 'python -m benchmarks.unrolled train'")
    done: dict[str, Any] = {}
    for which in arguments.sets or ("real", "simulated"):
        if which == "real":
            patients, R = arguments.patient or list(PATIENTS), arguments.acceleration or [2.0, 3.0, 4.0]
            scans = real_scans(data_root(), patients, arguments.slices, R)
        elif which == "faults":
            subjects, cases = arguments.subject or list(anatomy.TEST), arguments.case or list(FAULTS)
            scans = fault_scans(subjects, min(arguments.slices, 4), cases)
        elif which == "patterns":
            subjects, R = arguments.subject or list(anatomy.TEST), arguments.acceleration or [2.0, 4.0, 6.0, 8.0]
            scans = pattern_scans(subjects, min(arguments.slices, 4), R)
        else:
            R = arguments.acceleration or [4.0, 8.0]
            scans = simulated_scans(arguments.subject or list(anatomy.TEST), min(arguments.slices, 4), R)
        done = measure(scans, every, arguments.store)
    written = table(done) + trend_table(done)
    print(written)
    if arguments.table:
        arguments.table.write_text(written)


if __name__ == "__main__":
    main()
