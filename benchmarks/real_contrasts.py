"""MR contrasts of real MS patients, each from every set of the others, against baselines that know the answer.

    python -m benchmarks.real_contrasts [--model mr_contrasts] [--patient 07 --patient 19] [--picture FILE.png]

Brain: PSNR (peak 2, white matter is 1) and SSIM, inside the structures that the anatomy model finds in the T1w. Lesions
(consensus of the raters): PSNR, and contrast to the white matter within 5 mm as a share of the acquired one. Baselines:
(a) the cubic polynomial of the sources with the least squared error to the very target; (b) that source which is
nearest after histogram matching to the target. Kit: ``mri/ms-3t-t1-flair-mni`` (T1, T2, FLAIR, skull-stripped, one
grid).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_dir import volume
from model_zoo import registry
from model_zoo.bundle import Model
from model_zoo.data_kit import data_root
from model_zoo.evaluation.contrast_cases import (
    ContrastCase,
    fit_cubic,
    list_subsets,
    match_source,
    predict_target,
    prepare_case,
    score_image,
)
from model_zoo.translation import plan as plans
from model_zoo.translation.plan import Plan
from pipelines import anatomy

FILES = {"t1w": "T1", "t2w": "T2", "flair": "FLAIR"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="mr_contrasts", help="name, or a bundle's folder")
    parser.add_argument("--patient", action="append", default=None)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    plan = plans.parse(model.settings["plan"])
    print(
        "| patient, sources to target | PSNR dB | (a) cubic | (b) matched | SSIM | (a) | (b) | within 2 sd "
        "| lesions: PSNR dB | (a) | (b) | contrast | (a) | (b) |"
    )
    print("| --- " + "| ---: " * 13 + "|")
    cases = [read_case(plan, name) for name in arguments.patient or ["07", "19"]]
    for case in cases:
        for target in case.targets:
            for subset in list_subsets(plan, target):
                if set(subset) <= set(case.sources):
                    print(make_row(model, plan, case, target, subset), flush=True)
    if arguments.picture:
        draw(model, plan, cases).savefig(arguments.picture, dpi=110)


def load_model(name: str) -> Model:
    """Load an installed bundle, or that in a folder."""
    if Path(name).is_dir():
        return registry.load_from(registry.read_facts(Path(name)))
    return registry.load(name)


def read_case(plan: Plan, name: str) -> ContrastCase:
    """Read a patient of the kit, with structures as the anatomy model finds them in the T1w."""
    folder = data_root() / "mri" / "ms-3t-t1-flair-mni" / f"patient{name}"
    volumes = {contrast: volume(folder / f"{file}.nii.gz") for contrast, file in FILES.items()}
    structure = anatomy.segment_head(volumes["t1w"], registry.load("anatomy")).image_labels
    images = {contrast: torch.from_numpy(v.data) for contrast, v in volumes.items()}
    lesions = torch.from_numpy(volume(folder / "lesions.nii.gz").data > 0.5)
    return prepare_case(f"patient {name}", plan, images, images, torch.from_numpy(structure), lesions)


def make_row(model: Model, plan: Plan, case: ContrastCase, target: str, subset: tuple[str, ...]) -> str:
    """Return a line of the table."""
    span, inside = plan.find_target(target).parsed_scale.span, case.inside
    p = predict_target(model, plan, case, target, subset)
    images = (p.mean, fit_cubic(case, target, subset), match_source(case, target, subset))
    scores = [score_image(x, case, target, span) for x in images]
    within = float(((p.mean - case.targets[target]).abs() <= 2 * p.sd)[inside].float().mean())

    def cells(key: str, digits: int) -> list[str]:
        return [f"{s[key]:.{digits}f}" for s in scores]

    numbers = [*cells("psnr_db", 2), *cells("ssim", 3), f"{within:.2f}", *cells("lesion_psnr_db", 2)]
    return f"| {case.name}, {' + '.join(subset)} to {target} | " + " | ".join([*numbers, *cells("contrast", 2)]) + " |"


def draw(model: Model, plan: Plan, cases: list[ContrastCase]) -> Any:
    """Draw per patient and target: acquired, from the others, its sd, and the nearest source."""
    from matplotlib.figure import Figure

    count = sum(len(case.targets) for case in cases)
    figure, row = Figure(figsize=(13, 3.2 * count)), 0
    for case in cases:
        k = int(case.lesions.sum(dim=(1, 2)).argmax())
        for target in case.targets:
            subset = tuple(name for name in case.sources if name != target)
            p = predict_target(model, plan, case, target, subset)
            shown = {
                f"{case.name}: acquired {target}": case.targets[target],
                f"SYNTHETIC from {' + '.join(subset)}": p.mean,
                "(b) matched source": match_source(case, target, subset),
                "standard deviation × 5": 5 * p.sd,
            }
            for column, (title, x) in enumerate(shown.items()):
                axes = figure.add_subplot(count, len(shown), row * len(shown) + column + 1)
                axes.imshow(torch.where(case.inside, x, 0.0)[k].numpy(), cmap="gray", vmin=0, vmax=2)
                axes.set_title(title, fontsize=8)
                axes.set_axis_off()
            row += 1
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
