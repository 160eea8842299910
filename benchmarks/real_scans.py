"""Real scans of the kit on one footing with simulated ones: tissue masks, contrasts, noise, regional FDG uptake.

Tissues are the three clusters of T1w intensity within the brain, lesions left out, in real and simulated scans alike:
no mask of the simulator's own is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from model_zoo.physics.mr import TissueParameters
from model_zoo.physics.sequences import Mprage
from model_zoo.physics.tissues import TISSUES
from model_zoo.physics.tracers import TRACERS
from model_zoo.simulate import anatomy, heads, ms, regions
from model_zoo.simulate.heads import Head
from model_zoo.simulate.lesions import SEVERITIES
from model_zoo.simulate.pet.activity import render_activity
from model_zoo.simulate.volumes import Scan
from model_zoo.structures import CORTEX, STRUCTURES, number
from model_zoo.training.recipe import seeded

__all__ = ["Scanned", "contrast_ranges", "fdg", "load_patient", "load_raw_slices", "simulate_patient"]

FLUID = number("csf")
Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Scanned:
    """T1w and FLAIR (k, j, i) at 1 mm, LPS, white matter at 1; masks of white matter, grey matter, CSF, lesions."""

    name: str
    t1w: Volume
    flair: Volume
    masks: dict[str, NDArray[np.bool_]]

    def contrast(self, image: str, tissue: str) -> float:
        """Return the median of the tissue over that of white matter."""
        values: Volume = getattr(self, image)
        return float(np.median(values[self.masks[tissue]])) if self.masks[tissue].sum() > 20 else float("nan")

    def noise(self, image: str) -> float:
        """Return the standard deviation in eroded white matter about a local mean (3 mm), over the white matter's
        median.
        """
        values: Volume = getattr(self, image)
        rest = values - ndimage.gaussian_filter(values, 3.0)
        return float(
            rest[ndimage.binary_erosion(ndimage.binary_closing(self.masks["white matter"]), iterations=2)].std()
        )

    def sharpness(self, image: str) -> float:
        """Return the 95th percentile of the gradient within the brain, in units of white matter per millimetre."""
        values: Volume = getattr(self, image)
        inside = ndimage.binary_erosion(values > 0.15, iterations=6)
        slope = np.sqrt(sum(g**2 for g in np.gradient(values)))
        return float(np.percentile(slope[inside], 95))


def load_patient(patient: str, root: Path) -> Scanned:
    """Return a patient of the 3 T collection: skull-stripped, bias-corrected, 1 mm."""
    folder = root / "mri" / "ms-3t-t1-flair-mni" / f"patient{patient}"
    t1w, flair, lesion = (_lps(folder / f"{name}.nii.gz")[0] for name in ("T1", "FLAIR", "lesions"))
    return _classified(f"real {patient}", t1w, flair, t1w > 0.02 * np.percentile(t1w, 99), lesion > 0.5)


def simulate_patient(subject: str, seed: int, root: Path) -> Scanned:
    """Return a simulated patient of the test subjects, 1 mm, skull-stripped, without bias as the real ones (N4) are."""
    generator = seeded(77, seed)
    head = heads.make_plain_head(subject, shape=(168, 208, 168), root=root)
    patient = ms.draw_patient(head, generator, count=30)
    scan = Scan((1.0, 1.0, 1.0), noise_sd=0.02, bias=0.02)
    e = replace(ms.draw_examination(generator), t1w=Mprage(), flair_scan=scan, t1w_scan=scan)
    x = ms.render_images(patient, e, generator)
    structure = head.structure.numpy()
    solid = (structure > 0) & (structure != number("csf"))
    brain = ndimage.binary_closing(solid, iterations=4)
    return _classified(
        f"simulated {subject}", x.t1w.numpy() * brain, x.flair.numpy() * brain, brain, patient.lesions.mask.numpy()
    )


def _classified(name: str, t1w: Volume, flair: Volume, brain: NDArray[np.bool_], lesion: NDArray[np.bool_]) -> Scanned:
    """Return the tissue masks as the voxels within a quarter of the gap about the three means of T1w (k-means)."""
    values = t1w[brain & ~lesion]
    centres = np.percentile(values, [5, 40, 85])
    for _ in range(40):
        nearest = np.abs(values[::7, None] - centres).argmin(1)
        centres = np.array([values[::7][nearest == n].mean() for n in range(3)])
    fluid, grey, white = centres
    bounds = {
        "csf": (-np.inf, fluid + 0.25 * (grey - fluid)),
        "grey matter": (grey - 0.25 * (grey - fluid), grey + 0.25 * (white - grey)),
        "white matter": (white - 0.25 * (white - grey), np.inf),
    }
    outside = brain & ~lesion
    masks = {tissue: outside & (t1w > low) & (t1w < high) for tissue, (low, high) in bounds.items()}
    masks["lesion"] = lesion
    return Scanned(name, _levelled(t1w, masks), _levelled(flair, masks), masks)


def contrast_ranges(draws: int = 400) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Return the 5th, 50th and 95th percentile of tissue over white matter among examinations, by (image, tissue)."""
    at = {"grey matter": ("cortex", "frontal cortex"), "csf": ("csf", "lateral ventricles")}
    white = list(TISSUES).index("white matter"), number("cerebral white matter")
    lesion = TissueParameters(*(torch.tensor([v]) for v in SEVERITIES["typical"]))
    found: dict[tuple[str, str], list[float]] = {}
    for n in range(draws):
        e = ms.draw_examination(seeded(78, n))
        for image, sequence in (("t1w", e.t1w), ("flair", e.flair)):
            signal = sequence.signal(e.p).abs()
            level = float(signal[white])
            for tissue, (name, structure) in at.items():
                value = float(signal[list(TISSUES).index(name), number(structure)])
                found.setdefault((image, tissue), []).append(value / level)
            found.setdefault((image, "lesion"), []).append(float(sequence.signal(lesion).abs()) / level)
    return {key: np.percentile(values, [5, 50, 95]) for key, values in found.items()}


def load_raw_slices(patient: str, image: str, root: Path) -> Volume:
    """Return a raw clinical series with thick slices: its middle axial slices as they were measured, 99th percentile at
    1.
    """
    values, _ = _lps(root / "mri" / "ms-longitudinal-t1-flair" / f"patient{patient}" / f"study1_{image}.nii.gz")
    scaled: Volume = values / np.percentile(values, 99)
    return scaled


def fdg(root: Path, subject: str = "13") -> tuple[Volume, Volume, dict[str, tuple[float, float]]]:
    """Return the real group mean laid on a subject, that subject simulated, 2 mm; and by structure (real, simulated).

    Structures are over the mean of the cortex. Blurred by 11 mm: the group mean holds the scanner's and the group's
    blur.
    """
    mean, _ = _lps(root / "pet" / "fdg-brain-template-chinese" / "CN_PET_TEMPLATE.nii")
    structure = regions.make_structure_map(subject, root)
    head = Head(anatomy.read_tissue_map(subject, root), torch.from_numpy(structure), 1.0, subject)
    image = render_activity(
        head, TRACERS["FDG"], 0.0, seeded(79), fwhm_mm=11.0, noise=0.0, spread=0.0, shrink=2
    ).numpy()
    labels = structure[::2, ::2, ::2]
    template = _boxed(mean, mean > 0.5 * np.median(mean[mean > 0.3 * mean.max()]), (labels > 0) & (labels != FLUID))
    means = {s.name: [float(v[labels == s.number].mean()) for v in (template, image)] for s in STRUCTURES}
    cortex = [float(v[np.isin(labels, CORTEX)].mean()) for v in (template, image)]
    return template, image, {name: (a / cortex[0], b / cortex[1]) for name, (a, b) in means.items()}


def _boxed(values: Volume, own: NDArray[np.bool_], other: NDArray[np.bool_]) -> Volume:
    """Stretch ``values`` along each axis so that the box of its mask ``own`` is that of ``other``; linear."""
    index = []
    for axis, n in enumerate(other.shape):
        (a, b), (c, d) = (_ends(mask, axis) for mask in (own, other))
        index.append(a + (np.arange(n) - c) * (b - a) / (d - c))
    found: Volume = ndimage.map_coordinates(values, np.stack(np.meshgrid(*index, indexing="ij")), order=1)
    return found


def _ends(mask: NDArray[np.bool_], axis: int) -> tuple[float, float]:
    """Return the planes along ``axis`` between which all but a hundredth of the mask on each side lies."""
    counts = np.cumsum(mask.sum(tuple(a for a in range(3) if a != axis)))
    low, high = np.interp([0.01 * counts[-1], 0.99 * counts[-1]], counts, np.arange(len(counts)))
    return float(low), float(high)


def _levelled(values: Volume, masks: dict[str, NDArray[np.bool_]]) -> Volume:
    found: Volume = (values / np.median(values[masks["white matter"]])).astype(np.float32)
    return found


def _lps(path: Path) -> tuple[Volume, NDArray[np.float64]]:
    """Return the values (k, j, i) in LPS and the affine from (i, j, k) to RAS millimetres that belongs to them."""
    image = nibabel.load(path)
    flipped = nibabel.as_closest_canonical(image)
    values = np.asarray(flipped.dataobj, np.float32)[::-1, ::-1].transpose(2, 1, 0)
    shape, affine = flipped.shape, flipped.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (shape[0] - 1) + affine[:3, 1] * (shape[1] - 1)
    affine[:3, :2] *= -1
    return np.ascontiguousarray(values), affine
