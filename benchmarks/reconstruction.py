"""Reconstruction quality: ours against classical methods, on real and on simulated k-space.

    python -m benchmarks.reconstruction --set real --set simulated [--method dds ...] [--quick]

Real: the fully sampled single-channel 0.055 T brains of the data kit, undersampled afterwards (1D, variable density,
calibration kept). The reference is the noisy fully sampled image, which favours methods that keep measured noise.
Simulated: 8 coils and known noise on label maps that the prior never saw; the reference has no noise.
Faults: simulated coils with unequal and correlated noise, strong edges, 4 to 16 coils, and no noise pre-scan.
Metrics on magnitudes: PSNR and SSIM (window 7) with data_range the maximum of the reference volume, and NMSE, per
volume, then averaged. Weights of the baselines are tuned on the test set itself, which favours the baselines.
Every number is kept in a JSON file as it comes, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor

from model_zoo import classical, masks, registry, uncertainty
from model_zoo.bundle import Model
from model_zoo.data_kit import data_root
from model_zoo.operators import centred_ifft
from model_zoo.simulate import anatomy
from model_zoo.simulate.kspace import simulate_scan
from pipelines import inversion
from pipelines.contract import Grid, KSpace
from pipelines.encoding import Problem, prepare_image

PATIENTS = ("6A", "6B", "7A", "S6A")
SEQUENCES = ("GRE", "FSE", "FLAIR")
FAULTS = {
    "4 coils, 96": (4, 96, 7.0, "t1w"),
    "16 coils, 96": (16, 96, 4.0, "t1w"),
    "4 coils, 192": (4, 192, 7.0, "t1w"),
    "8 coils, 192": (8, 192, 7.0, "t2w"),
}
"""Coils, matrix along a, acceleration (2D, calibration 24 x 24) and contrast."""
CONTRASTS = ("t1w", "t2w", "flair")
WEIGHTS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
HEADER = "| method | n | PSNR dB | SSIM | NMSE | χ² | ρ object | ρ support | ρ all | sd/error | NFE | s/slice |"
"""ρ: Spearman correlation of sd with absolute error, in the object, where the coil maps are, and over the
whole field of view."""
SOLVERS = ("dds", "dps", "score_mri", "ald")
STEPS = {"dps": 100, "score_mri": 100, "ald": 60}


@dataclass(frozen=True)
class Scan:
    """One volume at one acceleration; ``sigma`` says whether the noise level is known."""

    set: str
    name: str
    acceleration: float
    kspace: KSpace
    reference: NDArray[np.float32]
    noise_known: bool

    @property
    def key(self) -> str:
        return f"{self.set}/{self.name}/R{self.acceleration:g}"


@dataclass(frozen=True)
class Answer:
    """A reconstruction, scaled as the problem is; ``sd`` draws posterior samples, outside the time that is taken."""

    image: Tensor
    evaluations: int = 0
    sd: Callable[[], Tensor] | None = None


Method = Callable[[Problem], Answer]


def real_scans(root: Path, patients: list[str], slices: int, accelerations: list[float]) -> Iterator[Scan]:
    for patient in patients:
        for number, sequence in enumerate(SEQUENCES):
            file = root / "kspace" / "ulf-0p055t-paired-3t" / f"patient-{patient}" / f"0.055T_{sequence}_kspace.mat"
            full = np.moveaxis(loadmat(file)["kspace"], 2, 0)[:slices, None].astype(np.complex64)
            reference = centred_ifft(torch.from_numpy(full))[:, 0].abs().numpy()
            for R in accelerations:
                seed = 100 * PATIENTS.index(patient) + 10 * number + int(R)
                calibration = max(round((0.08 if R <= 3 else 0.06) * full.shape[-1]), 8)
                k = undersample(full, R, calibration, None, seed, lines=True)
                yield Scan("real", f"{patient}-{sequence}", R, k, reference, noise_known=False)


def simulated_scans(subjects: list[str], slices: int, accelerations: list[float]) -> Iterator[Scan]:
    for subject in subjects:
        for number, contrast in enumerate(CONTRASTS):
            heights = (0.0, 25.0, -20.0, 40.0)[:slices]
            scan = simulate_scan(subject, z_mm=heights, contrast=contrast, seed=17 + number)
            for R in accelerations:
                k = undersample(scan.samples, R, 24, scan.noise, 31 * number + int(R), lines=R < 6)
                yield Scan("simulated", f"{subject}-{contrast}", R, k, np.abs(scan.reference), noise_known=True)


def fault_scans(subjects: list[str], slices: int) -> Iterator[Scan]:
    """Yield slices of heads, of 240 mm, with noise of the coils of 1 to 3 and correlations up to 0.45."""
    for subject in subjects:
        for name, (coils, n, R, contrast) in FAULTS.items():
            scan = simulate_scan(
                subject, z_mm=(0.0, 25.0, -20.0, 40.0)[:slices], shape=(n, round(0.83 * n) // 2 * 2), pixel_mm=240 / n,
                coils=coils, contrast=contrast, snr=60.0, noise_spread=3.0, noise_correlation=1.5, seed=5,
            )  # fmt: skip
            k = undersample(scan.samples, R, 24, None, 7, lines=False)
            yield Scan(name, subject, R, k, np.abs(scan.reference), noise_known=False)


def undersample(
    full: NDArray[np.complex64],
    R: float,
    calibration: int,
    noise: NDArray[np.complex64] | None,
    seed: int,
    *,
    lines: bool,
) -> KSpace:
    """Undersample 1D with variable density, or 2D Poisson where R is too large for lines that keep the calibration."""
    slices, _, na, nb = full.shape
    rng = np.random.default_rng(seed)
    draw = masks.gaussian_1d if lines else masks.poisson_2d
    mask = np.broadcast_to(draw((na, nb), R, calibration, rng), (slices, na, nb)).copy()
    b0 = nb // 2 - calibration // 2
    a0 = 0 if lines else na // 2 - calibration // 2
    block = (a0, na - a0 if lines else a0 + calibration), (b0, b0 + calibration)
    grid = Grid((slices, na, nb), np.diag([1.0, 1.0, 5.0, 1.0]))
    samples = (full * mask[:, None]).astype(np.complex64)
    return KSpace(samples, mask, (float(na), float(nb)), grid, 5.0, block, noise)


def methods(model: Model, names: list[str], options: inversion.Options) -> dict[str, Method]:
    """Return every method by name; a baseline with a weight appears once per weight as ``name@weight``."""
    found: dict[str, Method] = {
        "zero-filled": lambda p: Answer(classical.zero_filled(p.A, p.y)),
        "cg-sense": lambda p: Answer(classical.cg_sense(p.A, p.y, ridge=0.01)),
        "ours: DDS posterior mean": lambda p: Answer(
            inversion.estimate_slices(p, model, options), options.mean_steps, lambda: deviation(p, model, options)
        ),
    }
    adaptive = options.model_copy(update={"solver": "adadiff"})
    found["adadiff: posterior mean"] = lambda p: estimate_adapted(p, model, adaptive)
    for measured in ("exactly", "within noise"):
        constrained = options.model_copy(update={"measured": measured})
        found[f"ours: DDS posterior mean, samples kept {measured}"] = lambda p, o=constrained: Answer(  # type: ignore[misc]
            inversion.estimate_slices(p, model, o), o.mean_steps
        )
    for w in WEIGHTS:
        found[f"l1-wavelet (sigpy)@{w:g}"] = lambda p, w=w: Answer(sigpy_wavelet(p, w))  # type: ignore[misc]
        for name, regulariser in (("bart wavelet", "W:3:0"), ("bart total variation", "T:3:0")):
            found[f"{name}@{w:g}"] = lambda p, w=w, r=regulariser: Answer(bart(p, r, w))  # type: ignore[misc]
        found[f"total variation@{w:g}"] = lambda p, w=w: Answer(classical.total_variation(p.A, p.y, w))  # type: ignore[misc]
    for solver in SOLVERS:
        one = options.model_copy(update={"solver": solver, "steps": STEPS.get(solver, options.steps)})
        found[f"{solver}: one sample"] = lambda p, o=one: estimate_by_samples(p, model, o, 1)  # type: ignore[misc]
        found[f"{solver}: mean of {options.samples}"] = lambda p, o=one: estimate_by_samples(p, model, o, o.samples)  # type: ignore[misc]
    return {n: m for n, m in found.items() if not names or any(n.startswith(prefix) for prefix in names)}


def estimate_by_samples(p: Problem, model: Model, options: inversion.Options, count: int) -> Answer:
    images = list(draw_samples(p, model, options, count))
    evaluations = count * (inversion.count_evaluations(options) - options.mean_steps) // options.samples
    evaluations += options.mean_steps if options.solver == "dds" else 0
    image = images[0] if count == 1 else torch.stack(images).mean(dim=0)
    return Answer(
        image, evaluations, None if count == 1 else lambda: uncertainty.mean_and_sd(x.abs() for x in images)[1]
    )


def estimate_adapted(p: Problem, model: Model, options: inversion.Options) -> Answer:
    prior, how = inversion.adapt_prior(p, model, options, seed=1)
    print(f"held-out chi-square {how.before:.3f} -> {how.after:.3f} in {how.steps} steps", flush=True)
    return Answer(inversion.estimate_slices(p, prior, options), options.rapid_steps + round(how.evaluations / len(p.y)))


def draw_samples(p: Problem, model: Model, options: inversion.Options, count: int) -> Iterator[Tensor]:
    """Yield samples, ``count`` of each slice; DDS starts them at the estimate."""
    estimate = inversion.estimate_slices(p, model, options) if options.solver == "dds" else p.A.H(p.y)
    for n in range(count):
        yield inversion.draw_samples(p, model, options, [1000 * n + i for i in range(len(p.y))], estimate)


def deviation(p: Problem, model: Model, options: inversion.Options) -> Tensor:
    draws = (x.abs() for x in draw_samples(p, model, options, options.samples))
    return uncertainty.mean_and_sd(draws)[1]


def bart(p: Problem, regulariser: str, weight: float) -> Tensor:
    """Reconstruct by BART with its own maps (one set), from the samples as prepared; regulariser as in ``pics -R``.

    Its maps have a phase of their own, so that chi-square, which takes ours, means nothing here.
    """
    return torch.cat([_bart_slice(p.slices(i, i + 1), regulariser, weight) for i in range(len(p.y))])


def _bart_slice(p: Problem, regulariser: str, weight: float) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        y = p.y[0].permute(1, 2, 0)[:, :, None].numpy()  # (a, b, 1, coil)
        _write_cfl(Path(folder) / "y", y)
        _run_bart(folder, "ecalib", "-m1", "-r24", "y", "S")
        _run_bart(folder, "pics", "-S", "-i100", "-R", f"{regulariser}:{weight:g}", "y", "S", "x")
        return torch.from_numpy(_read_cfl(Path(folder) / "x").reshape(1, *y.shape[:2]))


def _run_bart(folder: str, *words: str) -> None:
    subprocess.run(["bart", *words], cwd=folder, check=True, capture_output=True)


def _write_cfl(path: Path, array: NDArray[np.complex64]) -> None:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def _read_cfl(path: Path) -> NDArray[np.complex64]:
    shape = [int(n) for n in path.with_suffix(".hdr").read_text().split("\n")[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F")


def sigpy_wavelet(p: Problem, weight: float) -> Tensor:
    from sigpy.mri.app import L1WaveletRecon

    slices = [
        L1WaveletRecon(
            y.numpy(), S.numpy(), weight, weights=m.numpy().astype(np.float32), max_iter=60, show_pbar=False
        ).run()
        for y, S, m in zip(p.y, p.A.maps, p.A.mask, strict=True)
    ]
    return torch.from_numpy(np.stack(slices).astype(np.complex64))


def judge(scan: Scan, p: Problem, answer: Answer, seconds: float) -> dict[str, float]:
    x = (answer.image * p.gain).abs().numpy()
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
        raw_sd = (answer.sd() * p.gain).numpy()
        sd, error = uncertainty.pool_sd(raw_sd, (1.0, 1.0)), np.abs(x - truth)
        inside = truth > 0.05 * top
        result["spearman_object"] = float(spearmanr(sd[inside], error[inside]).statistic)
        supported = p.A.support.numpy() > 0
        result["spearman_support"] = float(spearmanr(sd[supported], error[supported]).statistic)
        result["spearman_all"] = float(spearmanr(sd.ravel(), error.ravel()).statistic)
        result["sd_over_error"] = float(np.sqrt((sd[inside] ** 2).mean() / (error[inside] ** 2).mean()))
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
        lines += [HEADER, "| --- " * 12 + "|"]
        lines += [_row(name, values) for name, values in _best(rows).items()]
    return "\n".join(lines) + "\n"


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
        ("nfe", ".0f"),
    ]
    cells = [
        format(_mean(values, what), form).replace("nan", "") for what, form in [*columns, ("seconds_per_slice", ".2f")]
    ]
    return f"| {name} | {len(values)} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", choices=("real", "simulated", "faults"), dest="sets")
    parser.add_argument(
        "--method", action="append", default=[], help="beginning of a method's name; all when not given"
    )
    parser.add_argument("--patient", action="append", choices=PATIENTS)
    parser.add_argument("--subject", action="append", help="label maps; the held-out test subjects when not given")
    parser.add_argument("--acceleration", action="append", type=float)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--model", default="mri_prior")
    parser.add_argument("--float32", action="store_true", help="run the network in float32 rather than bfloat16")
    parser.add_argument("--store", type=Path, default=Path("build/benchmarks/reconstruction.json"))
    parser.add_argument("--table", type=Path, help="where to write the Markdown table; printed when not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    every = methods(registry.load(arguments.model, bf16=not arguments.float32), arguments.method, inversion.Options())
    done: dict[str, Any] = {}
    for which in arguments.sets or ("real", "simulated"):
        if which == "real":
            patients, R = arguments.patient or list(PATIENTS), arguments.acceleration or [2.0, 3.0, 4.0]
            scans = real_scans(data_root(), patients, arguments.slices, R)
        elif which == "faults":
            scans = fault_scans(arguments.subject or list(anatomy.TEST), min(arguments.slices, 4))
        else:
            R = arguments.acceleration or [4.0, 8.0]
            scans = simulated_scans(arguments.subject or list(anatomy.TEST), min(arguments.slices, 4), R)
        done = measure(scans, every, arguments.store)
    written = table(done)
    print(written)
    if arguments.table:
        arguments.table.write_text(written)


if __name__ == "__main__":
    main()
