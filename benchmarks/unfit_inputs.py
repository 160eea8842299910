"""Unfit heads, and heads that are fit: measurements of the anatomy pipeline and the gate's verdict on each.

    python -m benchmarks.unfit_inputs --fit 20 --unfit 4

Fit: simulated heads with atrophy, of training and validation subjects, in any contrast, and the real heads of the kit.
Unfit: the kit's gliomas, breast and spine, phantoms, and simulated heads of which a ball on one side is fluid (infarct,
cavity) or lesion (tumour).
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch

from dicomnode.reading import volumes
from model_zoo import registry
from model_zoo.bundle import Model
from model_zoo.data_kit import data_root
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate.heads import Head
from model_zoo.simulate.pet import disease
from model_zoo.simulate.volumes import render_contrast_agnostic
from model_zoo.structures import number
from model_zoo.training.recipe import Source, make_simulated_sources, seeded
from pipelines import anatomy, quality
from pipelines.contract import Grid, Measurement, Refused, Volume

__all__ = ["judge", "list_cases"]

SEED = 4711
LESIONS = {
    "infarct": (38.0, "csf", "csf", "cerebral white matter"),
    "cavity": (22.0, "csf", "csf", "frontal cortex"),
    "tumour": (25.0, "lesion", "", "cerebral white matter"),
}
"""Radius in mm, tissue, structure where it is another, and the structure in which the ball has its centre."""
SHOWN = ("brain volume", "intracranial volume", "anatomy deviation", "share of structures of low confidence",
         "asymmetric region")  # fmt: skip


def list_cases(root: Path, fit: int, unfit: int) -> Iterator[tuple[str, bool, Callable[[], Volume]]]:
    """Yield name, whether the image is fit, and a function that loads it. ``fit``, ``unfit``: simulated heads."""
    sources = make_simulated_sources(root)
    for n in range(fit):
        which = ("validation", "training")[n % 2]
        yield f"simulated, {which} {n}", True, partial(simulate, n, (sources.validation, sources.train)[n % 2])
    for n in range(unfit):
        for name in LESIONS:
            yield f"simulated {name} {n}", False, partial(simulate, 100 + n, sources.validation, name)
    ms, ms_3t = root / "mri/ms-longitudinal-t1-flair", root / "mri/ms-3t-t1-flair-mni"
    files = [ms / f"patient{p}/study1_{image}.nii.gz" for p in ("01", "04", "12") for image in ("T1W", "FLAIR")]
    files += [ms_3t / f"patient{p}/{image}.nii.gz" for p in ("07", "19") for image in ("T1", "FLAIR")]
    for path in [*files, root / "mri/flair-5mm-with-gif/t2.nii.gz"]:
        yield f"{path.parent.name} {path.name}", True, partial(read_image, path)
    yield "studyforrest T1w", True, lambda: read_archive(root / "mri/t1-dicom-studyforrest/dicoms.tar.xz")
    yield "XA30 T1w", True, lambda: volumes.read([root / "dicom/siemens-xa30-enhanced/t1w_mprage_defaced.dcm"]).volume
    tumours, spine = root / "unfit/tumours-pyradiomics", root / "unfit/spine-sct"
    for path in [*tumours.glob("*_image.nrrd"), *(spine / f"{each}.nii.gz" for each in
                 ("t1/t1w", "t2/t2", "t2s/t2s", "mt/mt0", "mt/mt1", "mt/t1w"))]:  # fmt: skip
        yield f"{path.parent.name} {path.name}", False, partial(read_image, path)
    for kind in ("sphere", "cylinder"):
        yield kind, False, partial(make_phantom, kind)


def simulate(n: int, source: Source, lesion: str = "") -> Volume:
    """Return a head with atrophy in a random contrast, with a lesion on one side where ``lesion`` names one."""
    generator = seeded(SEED, n)
    head = source.draw_head(generator, atrophy=disease.draw_patient(generator).atrophy)
    if lesion:
        head = add_ball(head, *LESIONS[lesion], generator)
    image = render_contrast_agnostic(head, generator).numpy().astype(np.float32)
    return Volume(image, Grid(image.shape, np.diag([head.spacing_mm] * 3 + [1.0])))


def add_ball(
    head: Head, radius_mm: float, tissue: str, structure: str, within: str, generator: torch.Generator
) -> Head:
    """Return the head with a ball of ``tissue`` in one hemisphere, its centre in the structure ``within``."""
    places = torch.nonzero(head.structure == number(within)).float()
    middle = places[:, 2].mean()
    lateral = places[(places[:, 2] - middle).abs() * head.spacing_mm > 25]
    centre = lateral[int(torch.randint(len(lateral), (1,), generator=generator))]
    grid = torch.meshgrid(*(torch.arange(n).float() for n in head.structure.shape), indexing="ij")
    distance = torch.stack([axis - c for axis, c in zip(grid, centre, strict=True)]).square().sum(dim=0).sqrt()
    one_side = (grid[2] - middle) * torch.sign(centre[2] - middle) * head.spacing_mm > 3
    ball = (distance * head.spacing_mm < radius_mm) & (head.structure > 0) & one_side
    tissues, structures = head.tissue.clone(), head.structure.clone()
    tissues[ball] = list(TISSUES).index(tissue)
    if structure:
        structures[ball] = number(structure)
    return replace(head, tissue=tissues, structure=structures)


def make_phantom(kind: str) -> Volume:
    """Return a uniform sphere, or a cylinder with inserts as a quality phantom has them."""
    k, j, i = np.meshgrid(*(np.arange(n) - n / 2 for n in (180, 200, 180)), indexing="ij")
    if kind == "sphere":
        image = (np.sqrt(k**2 + j**2 + i**2) < 85).astype(np.float32)
    else:
        image = ((np.hypot(j, i) < 95) & (np.abs(k) < 74)).astype(np.float32)
        image[:, 60:70, 40:140] *= 0.2
        image[100:120, 90:150, 60:120:8] *= 0.1
    image += 0.02 * np.random.default_rng(1).standard_normal(image.shape).astype(np.float32)
    return Volume(np.abs(image).astype(np.float32), Grid(image.shape, np.eye(4)))


def read_image(path: Path) -> Volume:
    """Return an image file in LPS."""
    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    data = sitk.GetArrayFromImage(image)
    return Volume(data, Grid(data.shape, affine))


def read_archive(path: Path) -> Volume:
    """Return the series of a packed folder."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
        return volumes.read(sorted(each for each in Path(folder).rglob("*") if each.is_file())).volume


def judge(volume: Volume, model: Model) -> tuple[dict[str, float], quality.Verdict]:
    """Return the measurements and the verdict of the model's output limits. Raises Refused as the pipeline does."""
    anatomy.check_head(volume)
    found = anatomy.segment_head(volume, model)
    findings = [*anatomy.measure_brain(found), *anatomy.score_out_of_distribution(found, volume, model, 1)]
    measured = [each for each in findings if isinstance(each, Measurement)]
    verdict = quality.judge_result(measured, quality.read_output_limits(model.metadata))
    return {each.name: each.value for each in measured}, verdict


def main() -> None:
    """Print a row for each case, and the share of false alarms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", type=int, default=20, help="number of simulated fit heads")
    parser.add_argument("--unfit", type=int, default=4, help="number of simulated heads with each lesion")
    arguments = parser.parse_args()
    model = registry.load("anatomy")
    counts = {True: [0, 0], False: [0, 0]}
    print("| case | fit |", " | ".join(SHOWN), "| verdict |")
    print("| --- " * (len(SHOWN) + 3) + "|")
    for name, is_fit, load in list_cases(data_root(), arguments.fit, arguments.unfit):
        try:
            values, verdict = judge(load(), model)
            row, outcome = (
                [f"{values[each]:.2f}" for each in SHOWN],
                f"{verdict.outcome}: {verdict.reason}".rstrip(": "),
            )
        except Refused as refusal:
            row, outcome = ["" for _ in SHOWN], f"refuse: {refusal}"
        counts[is_fit][0] += outcome != "accept"
        counts[is_fit][1] += 1
        print(f"| {name} | {'yes' if is_fit else 'no'} | {' | '.join(row)} | {outcome} |", flush=True)
    print(
        f"false alarms: {counts[True][0]} of {counts[True][1]}; unfit found: {counts[False][0]} of {counts[False][1]}"
    )


if __name__ == "__main__":
    main()
