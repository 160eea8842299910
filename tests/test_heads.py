"""Simulated heads: label maps deformed as requested, every region in its anatomical place, the face removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate import heads, regions
from model_zoo.simulate.heads import Atrophy, Variation
from model_zoo.simulate.phantom import make_phantom
from model_zoo.structures import BRAIN, CORTEX, COUNT, STRUCTURES, TISSUE_GROUPS, number

pytestmark = pytest.mark.training

SUBJECT = "01"


@pytest.fixture(scope="module")
def structure(kit: Path) -> NDArray[np.uint8]:
    return regions.make_structure_map(SUBJECT, kit)


def _centre(structure: NDArray[np.uint8], name: str) -> NDArray[np.float64]:
    centre: NDArray[np.float64] = np.argwhere(structure == number(name)).mean(axis=0)
    return centre


def test_every_structure_has_a_number_a_code_and_one_tissue() -> None:
    assert [s.number for s in STRUCTURES] == list(range(1, COUNT + 1))
    assert len({(s.code_scheme, s.code_value) for s in STRUCTURES}) == COUNT
    assert sorted(n for group in TISSUE_GROUPS.values() for n in group) == list(range(1, COUNT + 1))
    assert number("csf") not in BRAIN
    with pytest.raises(KeyError, match="no structure 'liver'"):
        number("liver")


def test_the_phantom_holds_every_structure_and_air() -> None:
    found = make_phantom((64, 72, 64), 3.0).structure
    assert set(found.flatten().tolist()) == set(range(COUNT + 1))


@pytest.mark.parametrize("shape", [(32, 40, 36)])
def test_fractions_sum_to_one_and_mix_as_rendering_does(shape: tuple[int, int, int]) -> None:
    labels = torch.randint(5, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    values = torch.tensor([0.0, 1.0, -2.0, 3.0, 0.5])
    shares = heads.render_fractions(labels, 5, blur_mm=1.2, spacing_mm=1.0, shrink=2)
    torch.testing.assert_close(shares.sum(0), torch.ones(shares.shape[1:]))
    mixed = torch.einsum("c,ckji->kji", values, shares)
    torch.testing.assert_close(mixed, heads.render(labels, values, blur_mm=1.2, spacing_mm=1.0, shrink=2))


def test_the_blur_is_a_gaussian_of_the_asked_width() -> None:
    point = torch.zeros(41, 41, 41)
    point[20, 20, 20] = 1.0
    blurred = heads.gaussian_blur_3d(point, (1.5, 3.0, 0.0))
    offsets = torch.arange(41) - 20.0
    for axis, sigma in ((0, 1.5), (1, 3.0), (2, 0.0)):
        profile = blurred.sum(dim=[n for n in range(3) if n != axis])
        assert float((profile * offsets**2).sum()) ** 0.5 == pytest.approx(sigma, rel=0.02, abs=1e-6)


def test_lobes_lie_where_anatomy_has_them(structure: NDArray[np.uint8]) -> None:
    superior, posterior = 0, 1
    frontal, occipital, parietal, temporal = (
        _centre(structure, f"{name} cortex") for name in ("frontal", "occipital", "parietal", "temporal")
    )
    assert frontal[posterior] < parietal[posterior] < occipital[posterior]
    assert temporal[superior] < parietal[superior]
    precuneus, cingulate = _centre(structure, "precuneus"), _centre(structure, "cingulate cortex")
    assert cingulate[posterior] < precuneus[posterior] < occipital[posterior]
    for name in ("precuneus", "cingulate cortex", "brain stem"):  # on the midline
        assert abs(_centre(structure, name)[2] - _centre(structure, "thalamus")[2]) < 3


def test_regions_have_plausible_volumes(structure: NDArray[np.uint8]) -> None:
    volume_ml = np.bincount(structure.ravel(), minlength=COUNT + 1) / 1000
    for name, low, high in (
        ("precuneus", 8, 40), ("cingulate cortex", 10, 40), ("parahippocampal cortex", 4, 25), ("insula", 6, 20),
        ("hippocampus", 3, 12), ("sensorimotor cortex", 20, 90), ("frontal cortex", 60, 220),
    ):  # fmt: skip
        assert low < volume_ml[number(name)] < high, name


@pytest.mark.parametrize(
    ("atrophy", "numbers", "expected"),
    [
        (Atrophy(hippocampus=0.3), (number("hippocampus"),), 0.70),
        (Atrophy(ventricles=0.5), (number("lateral ventricles"),), 1.50),
        (Atrophy(cortex=0.12), CORTEX, 0.88),
    ],
)
def test_atrophy_takes_about_the_volume_it_says(
    kit: Path, atrophy: Atrophy, numbers: tuple[int, ...], expected: float
) -> None:
    def volume(a: Atrophy) -> float:
        generator = torch.Generator().manual_seed(3)
        head = heads.draw_head(SUBJECT, generator, shape=(160, 192, 160), atrophy=a, variation=Variation(flip=False),
                                 root=kit)  # fmt: skip
        return float(torch.isin(head.structure, torch.tensor(numbers, dtype=torch.uint8)).sum())

    assert volume(atrophy) / volume(Atrophy()) == pytest.approx(expected, abs=0.08)


def test_the_same_seed_gives_the_same_head_and_another_one_another(kit: Path) -> None:
    def head(seed: int) -> heads.Head:
        return heads.draw_head(
            SUBJECT, torch.Generator().manual_seed(seed), shape=(48, 56, 48), spacing_mm=4.0, root=kit
        )

    assert torch.equal(head(1).structure, head(1).structure)
    assert not torch.equal(head(1).structure, head(2).structure)


def test_the_face_is_removed_and_the_brain_is_not(kit: Path) -> None:
    plain, bare = (heads.make_plain_head(SUBJECT, shape=(224, 256, 224), face=face, root=kit) for face in (True, False))
    assert torch.equal(plain.structure, bare.structure)
    eye = list(TISSUES).index("eye")
    assert bool((plain.tissue == eye).any())
    assert not bool((bare.tissue == eye).any())
    removed = (plain.tissue > 0) & (bare.tissue == 0)
    assert float(removed.nonzero()[:, 1].float().mean()) < float((plain.structure > 0).nonzero()[:, 1].float().mean())
    assert float(removed.sum()) / float((plain.tissue > 0).sum()) > 0.05


def test_mni_coordinates_put_the_midline_at_zero(kit: Path) -> None:
    x = regions.compute_mni_coordinates(SUBJECT, kit)[0]
    half = regions.make_structure_map(SUBJECT, kit)[::2, ::2, ::2]
    assert abs(float(x[half == number("brain stem")].mean())) < 4
