"""The distance of two versions of ``standard_dose_pet``, as the output gate of a share measures it.

    python -m benchmarks.version_distance [--bundle FOLDER ...]

Image: the simulated brain PET of the kit (BrainWeb 06, 30 slices). Versions: the bundles in the folders, and the
shipped one with each weight times (1 + e N(0, 1)).
"""

from __future__ import annotations

import argparse
import copy
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from pydicom import dcmread

from dicomnode.execution.reference import compare_findings
from dicomnode.reading import volumes
from model_zoo import registry
from model_zoo.bundle import Model
from model_zoo.data_kit import data_root
from pipelines import standard_dose_pet
from pipelines.contract import Case, Finding, Measurement

__all__ = ["main"]

PET = "pet/brainweb06-simulated-pet-mr-dicom/pet_osem_slab.tar.xz"
DEVIATIONS = (0.01, 0.05, 0.2, 1.0)
OPTIONS = standard_dose_pet.Options(dose_fraction=0.1, check_dose=False)


def main() -> None:
    """Print the distance of each version from the shipped one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="folder of another version")
    folders = parser.parse_args().bundle
    case, shipped = load_case(data_root()), registry.load("standard_dose_pet")
    reference = run(case, shipped)
    for name, model in list_versions(shipped, folders):
        distance = ", ".join(f"{each.name} {each.value:.1f} {each.unit}" for each in compare(reference, case, model))
        print(f"{name}: {distance}", flush=True)


def load_case(root: Path) -> Case:
    """Return the kit's image, with the unit and the corrections that its headers leave out."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(root / PET) as archive:
            archive.extractall(folder, filter="data")
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        for path in paths:
            ds = dcmread(path)
            ds.Units, ds.CorrectedImage = "BQML", ["ATTN", "DECY", "SCAT"]
            ds.save_as(path)
        series = volumes.read(paths)
    return Case({"pet": series.volume}, series.facts)


def list_versions(shipped: Model, folders: list[Path]) -> Iterator[tuple[str, Model]]:
    """Yield the versions by name."""
    for folder in folders:
        facts = registry.read_facts(folder)
        yield f"{facts.name}@{facts.version}", registry.load_from(facts)
    for seed, deviation in enumerate(DEVIATIONS):
        yield f"weights x (1 + {deviation:g} N(0, 1))", disturb(shipped, deviation, seed)


def disturb(model: Model, deviation: float, seed: int) -> Model:
    """Return a copy of the model with disturbed weights."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in other.network.parameters():
            weights.mul_(1 + deviation * torch.randn(weights.shape, generator=generator))
    return other


def run(case: Case, model: Model) -> list[Finding]:
    """Return the findings of the pipeline."""
    return standard_dose_pet.PIPELINE.run(case, model, OPTIONS, 1, lambda fraction, step: None)


def compare(reference: list[Finding], case: Case, model: Model) -> list[Measurement]:
    """Return the distance of the model's findings from the reference."""
    return compare_findings(reference, run(case, model))


if __name__ == "__main__":
    main()
