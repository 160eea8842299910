"""Time and memory of a study, DICOM in to DICOM out, by ``dicomnode run`` in a process of its own.

    python -m benchmarks.latency [--pipeline pet_synthesis ...] [--option NAME=VALUE ...]
    python -m benchmarks.latency --few --option bf16=false

The studies: a real T1w DICOM series (``mri/t1-dicom-studyforrest``, 384 slices); the average FDG brain written as a PET
series of 2 mm, alone and with the T1w of another head, and a real whole body (``pet/tcia-sts001-fdg-wholebody``); a
real FLAIR and T1w of 1 mm (``mri/ms-3t-t1-flair-mni``, patient 07) written as DICOM; 20 simulated slices of 256 x 256
with 8 coils at R = 4, K = 4 samples. Start of Python and loading of the weights are in the time. Limits are those that
the node promises on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import Dataset

from benchmarks.real_dir import read_patient
from benchmarks.reconstruction_scans import undersample
from dicomnode import mrd
from model_zoo.data_kit import data_root
from model_zoo.simulate import anatomy
from model_zoo.simulate.kspace import simulate_scan
from pipelines.contract import Grid, Volume
from tests.pet_series import write_pet
from tests.series import unpack_series, write_slices


@dataclass(frozen=True)
class Study:
    """``write(folder)``: the arguments of ``dicomnode run`` after the pipeline's name, but the output folder."""

    pipeline: str
    what: str
    limit_s: float
    write: Callable[[Path], list[str]]


def _of_the_study(_: int, ds: Dataset) -> None:
    ds.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.7"


def _t1w(folder: Path) -> list[str]:
    unpack_series(data_root() / "mri" / "t1-dicom-studyforrest" / "dicoms.tar.xz", folder)
    return [str(folder)]


def _brain_pet(folder: Path) -> list[str]:
    image = np.asarray(nibabel.load(data_root() / "pet" / "fdg-brain-template-chinese" / "CN_PET_TEMPLATE.nii")
                       .dataobj, np.float32)  # fmt: skip
    data = np.ascontiguousarray(image.transpose(2, 1, 0)[:, ::-1, ::-1])
    k, j, i = data.shape
    grid = Grid((k, j, i), np.array([[2.0, 0, 0, -i], [0, 2.0, 0, -j], [0, 0, 2.0, -k], [0, 0, 0, 1.0]]))
    write_pet(folder, grid, 8000 * data / np.quantile(data, 0.99), edit=_of_the_study)
    return [str(folder)]


def _brain_pet_and_t1w(folder: Path) -> list[str]:
    _brain_pet(folder / "pet")
    _write_mr(folder / "t1w", read_patient("07").t1w, "t1w")
    return [str(folder / "pet"), "--with", f"mr={folder / 't1w'}"]


def _whole_body(folder: Path) -> list[str]:
    unpack_series(data_root() / "pet" / "tcia-sts001-fdg-wholebody" / "raw_bqml.tar.xz", folder)
    return [str(folder)]


def _flair_and_t1w(folder: Path) -> list[str]:
    patient = read_patient("07")
    for name, image in (("flair", patient.flair), ("t1w", patient.t1w)):
        _write_mr(folder / name, image, name)
    return [str(folder / "flair"), "--with", f"t1w={folder / 't1w'}"]


def _write_mr(folder: Path, volume: Volume, name: str) -> None:
    times = {"flair": ("8000", "330", "2400"), "t1w": ("2000", "20", "800")}[name]

    def edit(k: int, ds: Dataset) -> None:
        ds.RepetitionTime, ds.EchoTime, ds.InversionTime = times
        _of_the_study(k, ds)
        ds.SeriesDescription, ds.MRAcquisitionType = name, "3D"

    data = np.clip(volume.data * (4000 / np.quantile(volume.data, 0.999)), 0, 65535)
    write_slices(folder, volume.grid, np.round(data).astype(np.uint16), edit=edit, key=name)


def _kspace(folder: Path, slices: int = 20) -> list[str]:
    heights = tuple(float(z) for z in np.linspace(-38, 57, slices))
    scan = simulate_scan(anatomy.TEST[0], z_mm=heights, shape=(256, 256), pixel_mm=0.9, seed=1)
    k = undersample(scan.samples, 4.0, 24, scan.noise, 3, lines=True)
    (b0, b1), shape = k.calibration[1] if k.calibration else (0, 0), k.samples.shape
    grid = mrd.make_axial_grid((shape[0], shape[2], shape[3]), (5.0, 0.9, 0.9))
    turned = np.ascontiguousarray(k.samples.swapaxes(2, 3))  # lines along the first axis
    made = mrd.from_array(turned, grid=grid, slice_thickness_mm=4.0, noise=k.noise, calibration=(b0, b1))
    mrd.write(made, folder / "kspace.h5")
    return [str(folder / "kspace.h5")]


STUDIES = (
    Study("anatomy", "T1w, 384 slices", 180, _t1w),
    Study("pet_synthesis", "T1w, 384 slices; 8 samples of 4 steps", 180, _t1w),
    Study("standard_dose_pet", "brain, 91 slices of 2 mm", 120, _brain_pet),
    Study("standard_dose_pet", "the same with a T1w of 1 mm", 120, _brain_pet_and_t1w),
    Study("standard_dose_pet", "whole body, 267 slices", 120, _whole_body),
    Study("synthetic_dir", "FLAIR + T1w of 1 mm, N = 20", 300, _flair_and_t1w),
    Study("mri_reconstruction", "20 slices of 256², 8 coils, K = 4", 120, _kspace),
)
FEW_SLICES = Study("mri_reconstruction", "4 of these slices", 60, partial(_kspace, slices=4))
"""For the effect of an option (``--few``), in less time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pipeline", action="append", choices=sorted({study.pipeline for study in STUDIES}))
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE for the pipeline")
    parser.add_argument("--few", action="store_true", help="reconstruct four slices only")
    arguments = parser.parse_args()
    print("| pipeline | study | s | limit s | processor s | peak GB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for study in (FEW_SLICES,) if arguments.few else STUDIES:
        if not arguments.pipeline or study.pipeline in arguments.pipeline:
            with tempfile.TemporaryDirectory() as folder:
                print(_row(study, Path(folder), arguments.option), flush=True)


def _row(study: Study, folder: Path, options: list[str]) -> str:
    (folder / "in").mkdir()
    first, *more = study.write(folder / "in")
    command = [sys.executable, "-m", "dicomnode", "run", study.pipeline, first, str(folder / "out"), *more]
    command += [word for option in options for word in ("--option", option)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not any((folder / "out").iterdir()):
        raise SystemExit(f"{study.pipeline}, {study.what}: status {process.returncode}")
    return (
        f"| {study.pipeline} | {study.what} | {wall_s:.0f} | {study.limit_s:.0f} | "
        f"{used.ru_utime + used.ru_stime:.0f} | {used.ru_maxrss / 2**20:.1f} |"
    )


if __name__ == "__main__":
    main()
