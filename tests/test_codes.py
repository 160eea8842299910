"""Every code of the standard's schemes has the meaning of the standard's lists and denotes the measured structure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.sr._concepts_dict import concepts  # the table behind pydicom's public codes

from model_zoo.ct_tissues import CT_TISSUES
from model_zoo.structures import CORTEX, STRUCTURES, Structure
from pipelines import bundle_codes, codes, lesions, uptake
from pipelines.contract import Code, Measurement
from pipelines.uptake import Scale

ROOT = Path(__file__).parent.parent
STANDARD = ("DCM", "SCT", "UCUM", "LN")


def _meanings(scheme: str, value: str) -> list[str]:
    table: Any = concepts[scheme]
    listed = [each[value][0] for each in table.values() if value in each]
    return [meaning.partition(" (")[0].casefold() for meaning in listed]


def _literals() -> Iterator[tuple[str, Code]]:
    """Yield every ``Code("value", "scheme", "meaning")`` of the sources with its file."""
    for folder in ("pipelines", "model_zoo", "dicomnode"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Code":
                    values = [each.value for each in node.args[:3] if isinstance(each, ast.Constant)]
                    if len(values) == 3:
                        yield path.name, Code(str(values[0]), str(values[1]), str(values[2]))


def _tables() -> Iterator[tuple[str, Code]]:
    for s in STRUCTURES:
        yield s.name, Code(s.code_value, s.code_scheme, s.code_meaning)
    for tissue in CT_TISSUES:
        yield tissue.name, Code(tissue.code_value, "SCT", tissue.code_meaning)
    for name in [*bundle_codes.ANATOMY, *bundle_codes.ABNORMAL]:
        yield f"bundle label {name}", bundle_codes.encode_label(name)


@pytest.mark.slow
def test_codes_of_standard_schemes_are_in_the_standard_with_their_meaning() -> None:
    found = [*_literals(), *_tables()]
    assert len(found) > 90
    unknown = [
        f"{where}: {code}"
        for where, code in found
        if code.scheme in STANDARD and code.meaning.casefold() not in _meanings(code.scheme, code.value)
    ]
    assert unknown == []


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_a_structure_has_the_code_of_what_is_segmented(structure: Structure) -> None:
    """Only the cortex of a lobe is segmented, never the lobe; every structure has a code of its own."""
    code = codes.encode_structure(structure)
    if structure.number in CORTEX and structure.name != "insula":
        assert (code.value, code.meaning) == ("40146001", "Cerebral cortex")
        (region,) = code.modifiers
        assert region.meaning != structure.name
    else:
        assert "lobe" not in code.meaning.casefold()
        assert code.modifiers == ()
    assert [s.name for s in STRUCTURES if codes.encode_structure(s) == code] == [structure.name]


def test_what_holds_two_structures_has_no_code_of_one() -> None:
    """Accumbens counts as caudate, entorhinal cortex as parahippocampal; csf is the fluid outside the ventricles."""
    coded = {s.name: codes.encode_structure(s) for s in STRUCTURES}
    assert coded["caudate"].meaning == "Caudate nucleus and nucleus accumbens"
    assert coded["third and fourth ventricles"].meaning == "Third and fourth ventricles"
    assert coded["parahippocampal cortex"].modifiers[0].meaning == "Parahippocampal and entorhinal gyrus"
    assert coded["csf"].meaning == "Cranial Subarachnoid Space"


@pytest.mark.slow
def test_private_codes_fit_their_value_representation() -> None:
    for where, code in [*_literals(), *_tables()]:
        assert len(code.value) <= 16 or code.scheme in STANDARD, where
        assert len(code.meaning) <= 64, where


def test_suv_has_the_standard_s_codes_and_unit() -> None:
    scale = Scale.suv(2.0)
    assert (scale.unit, scale.quantity) == ("g/ml{SUVbw}", Code("126401", "DCM", "SUVbw"))
    assert _meanings("UCUM", scale.unit) == ["standardized uptake value body weight"]
    image, region = np.ones((2, 2, 2), np.float32), uptake.Region("body", np.ones((2, 2, 2), bool))
    measurements = uptake.compare_uptake(image, image, (image, image), [region], scale)
    derivations = {m.name: m.derivation.value for m in measurements if isinstance(m, Measurement) and m.derivation}
    assert derivations == {"SUVmean": "373098007", "SUVmax": "56851009", "SUVpeak": "126031"}


@pytest.mark.parametrize(
    ("name", "meaning", "modifiers"),
    [
        ("left kidney", "Kidney", ["Left"]), ("rib_right_3", "Rib", ["Right"]), ("kidney", "Kidney", []),
        ("Left Atrium", "Left atrium", []), ("left right lung", "Lung", []), ("liver vessel", "Label of a model", []),
        ("frontal cortex left", "Cerebral cortex", ["Frontal lobe", "Left"]),
    ],
)  # fmt: skip
def test_a_bundle_s_label_has_its_side_as_modifier(name: str, meaning: str, modifiers: list[str]) -> None:
    code = bundle_codes.encode_label(name)
    assert (code.meaning, [each.meaning for each in code.modifiers]) == (meaning, modifiers)


def test_places_of_lesions_are_told_apart_by_their_sites() -> None:
    sites = [place.site for place in lesions.PLACES]
    assert len({(site, site.modifiers) for site in sites}) == len(sites)
