"""Examinations with several MR contrasts, the baselines of a translation on them, and its scores.

Volumes are float (k, j, i) at 1 mm in the plan's scales. The baselines know of the case what nobody would: the cubic is
fitted to the very target, and the matched source has the target's own histogram.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from math import nan, prod
from pathlib import Path

import torch
from scipy import ndimage
from skimage.exposure import match_histograms
from torch import Tensor

from model_zoo import similarity
from model_zoo.bundle import Model
from model_zoo.evaluation.dir_cases import SHAPE
from model_zoo.evaluation.head_labels import label_structures
from model_zoo.simulate import heads, ms
from model_zoo.simulate.phantom import make_phantom
from model_zoo.simulate.volumes import Scan
from model_zoo.structures import number
from model_zoo.training.brain_box import find_box_with_margin
from model_zoo.training.recipe import seeded
from model_zoo.training.translation_items import scan_contrasts
from model_zoo.translation import network as networks
from model_zoo.translation.network import Conditions, Prediction
from model_zoo.translation.plan import Plan, PlannedSource, PlannedTarget
from model_zoo.translation.preparation import scale_series

__all__ = [
    "ContrastCase",
    "fit_cubic",
    "list_subsets",
    "match_source",
    "predict_target",
    "score_image",
    "simulate_case",
]

NEAR_MM = 5
FEWEST_VOXELS = 50
MARGIN = 6


@dataclass(frozen=True)
class ContrastCase:
    """One examination: scaled ``sources`` and true ``targets`` by name, structures, and the mask of lesions.

    ``structure``: as the network is told it.
    """

    name: str
    sources: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    structure: Tensor
    lesions: Tensor

    @property
    def inside(self) -> Tensor:
        return self.structure > 0

    @property
    def near_white(self) -> Tensor:
        """White matter within 5 mm of a lesion."""
        grown = ndimage.distance_transform_edt(~self.lesions.numpy()) <= NEAR_MM
        white = self.structure == number("cerebral white matter")
        return torch.from_numpy(grown) & white & ~torch.from_numpy(ndimage.binary_dilation(self.lesions.numpy()))


def list_subsets(plan: Plan, target: str) -> list[tuple[str, ...]]:
    """Return every non-empty set of the other sources, small ones first."""
    names = [source.name for source in plan.sources if source.name != target]
    return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]


def simulate_case(plan: Plan, subject: str, lesions: int, anatomy: Model | None, root: Path | None) -> ContrastCase:
    """Return a simulated examination of the label map, with structures as ``anatomy`` finds them in its T1w; the true
    ones without it.
    """
    generator = seeded(2026, lesions, *(ord(letter) for letter in subject))
    if subject == "phantom":
        head = make_phantom((64, 80, 64), 2.4)
    else:
        head = heads.draw_head(subject, generator, shape=SHAPE, root=root)
    patient = ms.draw_patient(head, generator, count=lesions)
    if anatomy is None:
        patient = patient.crop(find_box_with_margin(head.structure, MARGIN, (1, 1, 1)))
    kinds = {each.name: each.kind for each in (*plan.sources, *plan.targets)}
    images, truth, of_patient = scan_contrasts(patient, kinds, generator, Scan(noise_sd=0.02, bias=0.1))
    structure = patient.head.structure
    if anatomy is not None:
        structure = label_structures(anatomy, images["t1w"] / images["t1w"].max())
    return prepare_case(f"{subject}, {lesions} lesions", plan, images, truth, structure, of_patient.mask, is_ideal=True)


def prepare_case(
    name: str,
    plan: Plan,
    images: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    structure: Tensor,
    lesions: Tensor,
    *,
    is_ideal: bool = False,
) -> ContrastCase:
    """Scale the images as the pipeline does and cut them to the brain; ``is_ideal``: ``truth`` is no scan."""
    box = find_box_with_margin(structure, MARGIN, (1, 1, 1))
    cut = structure[box]

    def scale(series: PlannedSource | PlannedTarget, image: Tensor, *, ideal: bool) -> Tensor:
        return scale_series(series, image[box], cut, plan.spacing_mm, is_ideal=ideal)[0].float()

    sources = {each.name: scale(each, images[each.name], ideal=False) for each in plan.sources if each.name in images}
    targets = {each.name: scale(each, truth[each.name], ideal=is_ideal) for each in plan.targets if each.name in truth}
    return ContrastCase(name, sources, targets, cut, lesions[box].bool())


def predict_target(model: Model, plan: Plan, case: ContrastCase, target: str, subset: tuple[str, ...]) -> Prediction:
    """Return the target from these sources."""
    chosen = {name: case.sources[name] for name in subset}
    c = Conditions(
        networks.one_hot_code(plan, target)[None],
        networks.measure_brightness(plan, chosen, case.structure)[None],
        networks.covariate_tokens(plan, {})[None],
    )
    return networks.predict(model.network, plan, networks.stack_sources(plan, chosen), c)


def fit_cubic(case: ContrastCase, target: str, subset: tuple[str, ...]) -> Tensor:
    """Return the cubic polynomial of the sources with the least squared error to the target inside."""
    inside = case.inside
    values = [case.sources[name][inside].double() for name in subset]
    terms = [term for degree in (1, 2, 3) for term in combinations_with_replacement(values, degree)]
    columns = torch.stack([torch.ones_like(values[0]), *(prod(term[1:], start=term[0]) for term in terms)], dim=1)
    true = case.targets[target][inside].double()
    fitted = columns @ torch.linalg.lstsq(columns, true[:, None]).solution[:, 0]
    return _fill(case, fitted)


def match_source(case: ContrastCase, target: str, subset: tuple[str, ...]) -> Tensor:
    """Return that source, of the subset, which is nearest to the target after its histogram is matched to it."""
    inside, true = case.inside, case.targets[target]
    reference = true[inside].numpy()
    matched = [
        _fill(case, torch.from_numpy(match_histograms(case.sources[name][inside].numpy(), reference)))
        for name in subset
    ]
    return min(matched, key=lambda x: similarity.mean_absolute_error(x, true, inside))


def _fill(case: ContrastCase, values: Tensor) -> Tensor:
    x = torch.zeros(case.structure.shape)
    x[case.inside] = values.float()
    return x


def score_image(x: Tensor, case: ContrastCase, target: str, span: float) -> dict[str, float]:
    """Return PSNR (of the span) and SSIM inside, PSNR in lesions, and their contrast as a share of the target's own.

    The contrast is that to the white matter within 5 mm. NaN without lesions.
    """
    true, inside = case.targets[target], case.inside
    x = torch.where(inside, x, 0.0)
    true = torch.where(inside, true, 0.0)
    found = {
        "psnr_db": similarity.psnr(x, true, span, inside),
        "ssim": similarity.ssim(x / span, true / span, 1.0, inside),
        "lesion_psnr_db": nan,
        "contrast": nan,
    }
    lesions, near = case.lesions & inside, case.near_white
    if min(int(lesions.sum()), int(near.sum())) >= FEWEST_VOXELS:
        found["lesion_psnr_db"] = similarity.psnr(x, true, span, lesions)
        found["contrast"] = _contrast(x, lesions, near) / _contrast(true, lesions, near)
    return found


def _contrast(x: Tensor, lesions: Tensor, near: Tensor) -> float:
    return float(x[lesions].mean() - x[near].mean())
