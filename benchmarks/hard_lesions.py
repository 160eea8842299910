"""Lesions on simulated examinations that are as hard as real ones: what each step of the decision gives.

    python -m benchmarks.hard_lesions [--subject 09 --subject 16 --subject 01]

Two examinations of each subject (``ms.make_patient_harder``, ``ms.make_examination_harder``), with the structures of
the label map, displaced by up to 1.2 voxels. The shipped weights were not trained on such examinations. The thresholds
were chosen on them, and subject 01 is one of the training. Parts have at least 15 voxels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from benchmarks.real_dir import Mask, count_touched
from model_zoo import registry
from model_zoo.evaluation import lesion_baselines
from model_zoo.lesion_decision import LesionCriteria
from model_zoo.simulate import heads, ms
from model_zoo.simulate.acquisition import uniform
from model_zoo.synthetic_dir import predict, prepare
from model_zoo.training.labels import displace_labels
from model_zoo.training.recipe import seeded
from model_zoo.training.synthetic_dir import WARP_CELLS

SUBJECTS = {"09": 0, "01": 1, "16": 2}
"""Subjects and the seeds of their examinations."""
MARGIN = 8
BEFORE = LesionCriteria(growth_mm=0, sure_core=1.01)
CRITERIA = {
    "network, no growth, no cores": BEFORE,
    "and growth": replace(BEFORE, growth_mm=3),
    "and bright cores": replace(BEFORE, sure_core=0.2),
    "and both: the default": LesionCriteria(),
}


@dataclass(frozen=True)
class Case:
    """Prepared images (k, j, i), structures and true lesions of an examination."""

    flair: Tensor
    t1w: Tensor
    structure: Tensor
    lesions: Mask


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subject", action="append", choices=list(SUBJECTS), default=None)
    print("| subject | lesions by | recall | precision | Dice |\n| --- | --- | ---: | ---: | ---: |")
    for subject in parser.parse_args().subject or list(SUBJECTS):
        for case in draw_cases(subject):
            for name, found in segment(case).items():
                dice = 2 * float((found & case.lesions).sum()) / max(1.0, float(found.sum() + case.lesions.sum()))
                counts = count_touched(case.lesions, found), count_touched(found, case.lesions)
                print(f"| {subject} | {name} | {counts[0]} | {counts[1]} | {dice:.2f} |", flush=True)


def draw_cases(subject: str) -> Iterator[Case]:
    """Yield two examinations of different patients with the head of the subject, the same at every call."""
    generator = seeded(78, SUBJECTS[subject])
    head = heads.make_plain_head(subject)
    box = ndimage.find_objects(np.pad((head.structure > 0).numpy(), MARGIN).astype(np.uint8))[0]
    k, j, i = (
        slice(max(0, s.start - 2 * MARGIN), min(n, s.stop)) for s, n in zip(box, head.structure.shape, strict=True)
    )
    head = replace(head, tissue=head.tissue[k, j, i], structure=head.structure[k, j, i])
    for _ in range(2):
        patient = ms.make_patient_harder(ms.draw_patient(head, generator, masks=0.5), generator)
        e = ms.make_examination_harder(ms.draw_examination(generator), generator, thick=0.25)
        x = ms.render_images(patient, e, generator)
        structure = displace_labels(head.structure, uniform(generator, 0, 1.2), WARP_CELLS, generator)
        flair, t1w = prepare(x.flair, structure), prepare(x.t1w, structure)
        yield Case(flair, t1w, structure, patient.lesions.mask.numpy())


def segment(case: Case) -> dict[str, Mask]:
    """Return the lesions by each set of criteria and by plain rules on FLAIR."""
    network = registry.load("synthetic_dir").network
    p = predict(network, case.flair, case.t1w, case.structure, passes=1).lesion.numpy()
    flair: NDArray[np.float32] = case.flair.numpy()
    structure = case.structure.numpy()
    found = {name: criteria.select(p, flair, structure).mask for name, criteria in CRITERIA.items()}
    found["seeds grown to the half level"] = lesion_baselines.segment_by_seeds(flair, structure)
    found["FLAIR above a threshold"] = lesion_baselines.segment_by_threshold(flair, structure)
    return found


if __name__ == "__main__":
    main()
