"""The figures and numbers of docs/simulation.md: each simulator alone, then beside real scans.

    python -m benchmarks.simulation [--out docs] [--only anatomy mr lesions coils real fdg]

Needs the data kit. Three minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.real_scans import Scanned, contrast_ranges, fdg, load_patient, load_raw_slices, simulate_patient
from model_zoo import masks
from model_zoo.data_kit import data_root
from model_zoo.lesion_locations import LOCATIONS
from model_zoo.lesion_locations import find_lesions as located
from model_zoo.physics.mr import TissueParameters
from model_zoo.physics.sequences import Dir, Flair, Mprage, SpinEcho
from model_zoo.physics.sequences import Sequence as PulseSequence
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import coils, heads, ms, patient_lesions, volumes
from model_zoo.simulate.heads import Atrophy, Head
from model_zoo.simulate.kspace import simulate_scan
from model_zoo.simulate.lesions import draw_lesions, draw_lesions_from_mask
from model_zoo.simulate.slices import draw_smooth_phase
from model_zoo.simulate.volumes import Scan
from model_zoo.structures import COUNT, number
from model_zoo.training.recipe import seeded

SHAPE = (168, 208, 168)
Panel = tuple[str, NDArray[Any], str, float, float]
"""Title, image, colour map, lowest and highest value."""


def main() -> None:
    pages: dict[str, Callable[[Path], Figure]] = {
        "anatomy": _anatomy, "mr": _mr, "lesions": _lesions, "coils": _coils, "real": _real, "fdg": _fdg
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--only", nargs="+", choices=pages, default=list(pages))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    root = data_root()
    for name in arguments.only:
        figure = pages[name](root)
        figure.savefig(
            arguments.out / f"simulation-{name}.png", dpi=70, bbox_inches="tight", metadata={"Software": None}
        )


def _grid(rows: Sequence[Sequence[Panel]], width: float = 1.9) -> Figure:
    """Draw images in rows; the figure's height follows the first image's shape."""
    columns = max(len(row) for row in rows)
    height = width * rows[0][0][1].shape[0] / rows[0][0][1].shape[1] + 0.25
    figure = Figure(figsize=(width * columns, height * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, (title, image, colours, low, high) in zip(line, row, strict=False):
            axis.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(title, fontsize=8)
    return figure


def _grey(title: str, image: Any, high: float | None = None) -> Panel:
    x = np.asarray(image, np.float32)
    return title, x, "gray", 0.0, float(np.percentile(x, 99.7)) if high is None else high


def _brain(title: str, image: Any, structure: Any) -> Panel:
    """Return a panel of grey values up to a little over those of the brain, so that fat does not darken it."""
    inside = np.asarray(image)[np.asarray(structure) > 0]
    return _grey(title, image, 1.15 * float(np.percentile(inside, 99.5)))


def _labels(title: str, image: Any) -> Panel:
    return title, np.asarray(image), "nipy_spectral", 0, COUNT


def _volume_ml(head: Head, name: str) -> float:
    return float((head.structure == number(name)).sum()) * head.spacing_mm**3 / 1000


def _anatomy(root: Path) -> Figure:
    """Draw one map plain, deformed and atrophied, as structures and as a sharp T1w; volumes asked for and reached."""
    plain = heads.make_plain_head("12", shape=SHAPE, root=root)
    strong = Atrophy(hippocampus=0.3, ventricles=0.8, cortex=0.12)
    others = {
        "deformed": heads.draw_head("12", seeded(3), shape=SHAPE, atrophy=Atrophy(), root=root),
        "atrophied": heads.make_plain_head("12", shape=SHAPE, atrophy=strong, root=root),
        "another map": heads.make_plain_head("03", shape=SHAPE, root=root),
    }
    rows: list[list[Panel]] = [[], []]
    for name, head in {"plain": plain, **others}.items():
        x = _signal(head, Mprage())
        s = head.structure
        rows[0] += [_labels(f"{name}: structures", s[100]), _brain("T1w", x[100], s[100])]
        rows[1] += [_labels("", s.flip(0)[:, :, 62]), _brain("", x[::-1, :, 62], s.flip(0)[:, :, 62])]
    for name, share in (("hippocampus", -0.3), ("lateral ventricles", 0.8)):
        before, after = (_volume_ml(head, name) for head in (plain, others["atrophied"]))
        print(f"atrophy of map 12, {name}: asked {100 * share:+.0f} %, got {100 * (after / before - 1):+.0f} %")
    return _grid(rows, 1.6)


def _signal(head: Head, sequence: PulseSequence, seed: int = 5, lesions: int = 0) -> NDArray[np.float32]:
    generator = seeded(seed)
    patient = ms.draw_patient(head, generator, count=lesions)
    p = TissueParameters.table().draw_regional(seeded(4), COUNT + 1, subject_spread=0.0, region_spread=0.02)
    maps = patient.lesions.apply_to(volumes.draw_tissue_maps(patient.head, p, generator, texture_sd=0.03))
    found: NDArray[np.float32] = volumes.render_signal(maps, sequence, patient.head).numpy()
    return found


def _mr(root: Path) -> Figure:
    """Draw five sequences of one head, what a scan does to one of them, and contrast-agnostic draws."""
    head = heads.make_plain_head("13", shape=SHAPE, root=root)
    sequences: dict[str, PulseSequence] = {
        "MPRAGE": Mprage(), "T2w": SpinEcho(), "PD": SpinEcho(3000, 15), "FLAIR": Flair(), "DIR": Dir()
    }  # fmt: skip
    first = [_brain(name, _signal(head, s, lesions=20)[95], head.structure[95]) for name, s in sequences.items()]
    x = torch.from_numpy(_signal(head, Mprage(), lesions=20))
    scans = {
        "noise 8 %": Scan(noise_sd=0.08), "bias": Scan(noise_sd=0.0, bias=0.4), "5 mm slices": Scan((5.0, 1.0, 1.0)),
        "motion": Scan(motion_mm=1.2), "half of k-space": Scan(keep=(1.0, 0.5, 0.5)),
    }  # fmt: skip
    top = 1.15 * float(x[head.structure > 0].quantile(0.995))
    second = [
        _grey(name, _cut(volumes.simulate_scan(x, head, scan, seeded(6)), name), top) for name, scan in scans.items()
    ]
    free = [volumes.render_contrast_agnostic(head, seeded(7, n))[95].numpy() for n in range(5)]
    print(_contrasts(sequences))
    return _grid([first, second, [_grey("any contrast", image, 1.0) for image in free]])


def _cut(x: torch.Tensor, name: str) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (x.flip(0)[:, 104, :] if name == "5 mm slices" else x[95]).numpy()
    return found


def _contrasts(sequences: dict[str, PulseSequence]) -> str:
    """Return the signals of the main tissues by sequence, as a table."""
    table, names = TissueParameters.table(), ("white matter", "cortex", "thalamus", "csf", "lesion")
    index = [list(TISSUES).index(name) for name in names]
    lines = ["| sequence | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for name, sequence in sequences.items():
        lines.append(f"| {name} | " + " | ".join(f"{abs(float(sequence.signal(table)[n])):.3f}" for n in index) + " |")
    return "\n".join(lines)


def _lesions(root: Path) -> Figure:
    """Draw FLAIR, T1w, true DIR and the lesions of three simulated patients; volumes beside those of the real masks."""
    rows = []
    for title, seed, patient in (("drawn", 1, ""), ("mask of patient 01", 2, "01"), ("artefacts (bright)", 3, "")):
        rows.append(_patient_row(title, seed, patient, root))
    figure = _grid(rows)
    head = heads.make_plain_head("13", shape=SHAPE, root=root)
    simulated = [draw_lesions(head, seeded(8, n)) for n in range(12)]
    _print_lesions("drawn", head, [lesion.mask for lesion in simulated])
    real_masks = [patient_lesions.place_patient_mask(head, p, root) for p in patient_lesions.list_patients(root)]
    white = head.structure == number("cerebral white matter")
    _print_lesions("real masks laid in", head, [mask & white for mask in real_masks])
    return figure


def _patient_row(title: str, seed: int, patient: str, root: Path) -> list[Panel]:
    head, generator = heads.make_plain_head("13", shape=SHAPE, root=root), seeded(9, seed)
    simulated = ms.draw_patient(head, generator, count=40)
    if patient:
        mask = patient_lesions.place_patient_mask(head, patient, root)
        simulated = replace(
            simulated, lesions=draw_lesions_from_mask(head, mask, generator), artefact=0 * simulated.artefact
        )
    e = replace(ms.draw_examination(seeded(10)), flair_scan=Scan(), t1w_scan=Scan())
    x = ms.render_images(simulated, e, generator)
    mask_shown = (simulated.artefact > 0.1) if title.startswith("artefacts") else simulated.lesions.mask
    k = int(mask_shown.float().sum((1, 2)).argmax())
    where = simulated.lesions.mask[k].numpy() + 2.0 * (simulated.artefact[k] > 0.1).numpy()
    marks: Panel = (title, where, "hot", 0.0, 3.0)
    return [_grey("FLAIR", x.flair[k], 2.2), _grey("T1w", x.t1w[k], 1.4), _grey("true DIR", x.dir[k], 2.2), marks]


def _print_lesions(title: str, head: Head, masks_of_heads: Sequence[torch.Tensor]) -> None:
    found = [located(mask.numpy(), head.structure.numpy())[1] for mask in masks_of_heads]
    each = [lesion for case in found for lesion in case]
    shares = {place: sum(lesion.location == place for lesion in each) / len(each) for place in LOCATIONS}
    counts, sizes = [len(case) for case in found], [lesion.volume_mm3 for lesion in each]
    places = ", ".join(f"{place} {100 * share:.0f} %" for place, share in shares.items())
    print(f"{title}: {np.median(counts):.0f} lesions ({min(counts)} to {max(counts)}), {places}")
    print(f"{title}: median {np.median(sizes):.0f} mm3, nine in ten under {np.percentile(sizes, 90):.0f} mm3")


def _coils(root: Path) -> Figure:
    """Draw magnitude and phase of four of eight coils, an object's phase, four masks, a coil image before and after."""
    y, x = np.meshgrid(np.linspace(-96, 96, 128), np.linspace(-80, 80, 128), indexing="ij")
    points = np.stack([x, y, np.zeros_like(x)], axis=-1)
    s = coils.compute_sensitivities(points, 8, np.random.default_rng(1))
    first: list[Panel] = [_grey(f"|S| of coil {n}", np.abs(s[n]), 1.0) for n in range(0, 8, 2)]
    first.append(("phase of S", np.angle(s[0]), "twilight", -np.pi, np.pi))
    first.append(("object's phase", draw_smooth_phase((128, 128), seeded(2)).numpy(), "twilight", -np.pi, np.pi))
    rng, shape = np.random.default_rng(2), (128, 128)
    kinds = {
        "uniform R 4": masks.uniform_1d(shape, 4, 16, rng), "random R 4": masks.random_1d(shape, 4, 16, rng),
        "variable density R 4": masks.gaussian_1d(shape, 4, 16, rng),
        "Gaussian 2D R 8": masks.gaussian_2d(shape, 8, 16, rng),
        "Poisson disc R 8": masks.poisson_2d(shape, 8, 16, rng),
    }  # fmt: skip
    second = [_grey(name, mask.astype(float), 1.0) for name, mask in kinds.items()]
    scan = simulate_scan("13", z_mm=(10.0,), coils=8, snr=25.0, seed=3, shape=(128, 128), pixel_mm=1.6)
    second.append(_grey("|image|", np.abs(scan.reference[0])))
    return _grid([first, second], 1.6)


def _real(root: Path) -> Figure:
    """Draw a montage of T1w and FLAIR, real above simulated, and histograms per tissue."""
    scanned = [
        load_patient("07", root),
        load_patient("19", root),
        simulate_patient("13", 0, root),
        simulate_patient("20", 1, root),
    ]
    figure = Figure(figsize=(12.0, 12.5), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=(2.0, 1.0, 1.5))
    _montage(parts[0], scanned)
    _raw_montage(parts[1], root)
    _histograms(parts[2], scanned)
    _print_real(scanned)
    return figure


def _montage(figure: Any, scanned: Sequence[Scanned]) -> None:
    axes: Any = figure.subplots(2, 4)
    for line, image in zip(axes, ("t1w", "flair"), strict=True):
        for axis, s in zip(line, scanned, strict=True):
            values = getattr(s, image)
            axis.imshow(
                values[int(values.shape[0] * (0.48 if s.name.startswith("real") else 0.55))],
                cmap="gray",
                vmin=0,
                vmax=1.5 if image == "t1w" else 1.9,
            )
            axis.set_title(f"{s.name}: {image}", fontsize=8)
            axis.axis("off")


def _raw_montage(figure: Any, root: Path) -> None:
    """Draw raw clinical series of thick slices beside simulated ones of a whole head without its face."""
    head = heads.make_plain_head("20", shape=(192, 224, 192), root=root)
    thick = Scan((4.0, 0.8, 0.8), noise_sd=0.04, bias=0.15)
    panels = []
    for image, sequence in (("FLAIR", Flair(9000.0, 2410.0, 120.0)), ("T1W", SpinEcho(550.0, 12.0))):
        for patient in ("01", "12"):
            panels.append((f"real {patient}, {image}, raw", load_raw_slices(patient, image, root)))
        x = volumes.simulate_scan(
            torch.from_numpy(_signal(head, sequence, lesions=25)), head, thick, seeded(11)
        ).numpy()
        panels.append((f"simulated 20, {image}, 4 mm", x / np.percentile(x, 99)))
    for axis, (title, x) in zip(figure.subplots(1, 6), panels, strict=True):
        axis.imshow(x[int(x.shape[0] * 0.55)], cmap="gray", vmin=0, vmax=1.1)
        axis.set_title(title, fontsize=8)
        axis.axis("off")


def _histograms(figure: Any, scanned: Sequence[Scanned]) -> None:
    axes = figure.subplots(2, 4, sharey=True)
    for line, image in zip(axes, ("t1w", "flair"), strict=True):
        for axis, tissue in zip(line, ("csf", "grey matter", "white matter", "lesion"), strict=True):
            for s, style in zip(scanned, ("k-", "k--", "r-", "r--"), strict=True):
                values = getattr(s, image)[s.masks[tissue]]
                heights, edges = np.histogram(values, np.linspace(0, 2, 61))
                axis.plot(edges[:-1] + 1 / 60, heights / max(1, heights.max()), style, lw=0.9, label=s.name)
            axis.set_title(f"{image}: {tissue}", fontsize=8)
            axis.tick_params(labelsize=6)
            axis.set_yticks([])
    axes[0, 0].legend(fontsize=6)


def _print_real(scanned: Sequence[Scanned]) -> None:
    ranges = contrast_ranges()
    print("| over white matter | " + " | ".join(s.name for s in scanned) + " | simulator, 5 / 50 / 95 % |")
    print("| --- |" + " ---: |" * (len(scanned) + 1))
    for image in ("t1w", "flair"):
        for tissue in ("grey matter", "csf", "lesion"):
            cells = [f"{s.contrast(image, tissue):.2f}" for s in scanned]
            low, middle, high = ranges[image, tissue]
            print(f"| {image}, {tissue} | {' | '.join(cells)} | {low:.2f} / {middle:.2f} / {high:.2f} |")
    for image in ("t1w", "flair"):
        print(f"| {image}, sd in white matter | {' | '.join(f'{s.noise(image):.3f}' for s in scanned)} | |")
        print(
            f"| {image}, steepest 5 % of edges, 1/mm | {' | '.join(f'{s.sharpness(image):.2f}' for s in scanned)} | |"
        )


def _fdg(root: Path) -> Figure:
    """Draw the real group mean above a simulated one, and both by structure."""
    template, image, values = fdg(root)
    print("| FDG over the cortex's mean | real group mean | simulated |\n| --- | ---: | ---: |")
    for name, (a, b) in values.items():
        print(f"| {name} | {a:.2f} | {b:.2f} |")
    rows = []
    for name, x in (("real group mean", template), ("simulated", image)):
        top = float(np.percentile(x, 99.8))
        views = [x[60], x[70], x[::-1, :, 66], x[::-1, 60]]
        rows.append(
            [(name if n == 0 else "", view[10:110, 10:118], "inferno", 0.0, top) for n, view in enumerate(views)]
        )
    return _grid(rows, 2.2)


if __name__ == "__main__":
    main()
