"""Codes for the structures that third parties' bundles name: SNOMED CT for exactly known names, else just "label".

Sides and numbers are left out of the comparison ("left kidney", "rib_left_3"): the code names the kind of structure
with the side as modifier, and the segment's label keeps the words. A name that merely contains a known one ("liver
vessel") gets no code of it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType

from model_zoo.structures import STRUCTURES
from pipelines.codes import ANATOMICAL_STRUCTURE, SPATIAL, encode_structure
from pipelines.contract import Code
from pipelines.laterality import LEFT, RIGHT

__all__ = ["ABNORMAL", "ANATOMY", "UNCODED", "categorise_label", "encode_label"]

UNCODED = Code("LABEL", "99DICOMNODE", "Label of a model")
"""Code of a label whose structure is not known."""
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")

ANATOMY = MappingProxyType({
    "adrenal gland": "23451007", "aorta": "15825003", "bladder": "89837001", "bone": "272673000", "brain": "12738006",
    "cerebellum": "113305005", "clavicle": "51299004", "colon": "71854001", "duodenum": "38848004",
    "esophagus": "32849002", "eye": "81745001", "femur": "71341001", "gallbladder": "28231008", "heart": "80891009",
    "humerus": "85050009", "inferior vena cava": "64131007", "kidney": "64033007", "left atrium": "82471001",
    "left ventricle": "87878005", "liver": "10200004", "lung": "39607008", "mandible": "91609006",
    "pancreas": "15776009", "portal vein": "32764006", "prostate": "41216001", "pulmonary artery": "81040000",
    "rectum": "34402009", "rib": "113197003", "right atrium": "73829009", "right ventricle": "53085002",
    "sacrum": "54735007", "scapula": "79601000", "skull": "89546000", "small intestine": "30315005",
    "spinal cord": "2748008", "spleen": "78961009", "sternum": "56873002", "stomach": "69695003",
    "thyroid": "69748006", "trachea": "44567001", "uterus": "35039007", "vertebra": "51282000",
})  # fmt: skip
"""SNOMED CT code of each known anatomical name."""
ABNORMAL = MappingProxyType({
    "edema": ("79654002", "Edema"), "lesion": ("52988006", "Lesion"), "mass": ("4147007", "Mass"),
    "necrosis": ("6574001", "Necrosis"), "nodule": ("27925004", "Nodule"), "tumor": ("108369006", "Neoplasm"),
})  # fmt: skip
"""SNOMED CT code and meaning of each known name of an abnormal structure."""
_SAME = MappingProxyType({
    "adrenal": "adrenal gland", "enhancing tumor": "tumor", "enhancing tumour": "tumor", "gall bladder": "gallbladder",
    "ivc": "inferior vena cava", "neoplasm": "tumor", "oedema": "edema", "oesophagus": "esophagus",
    "postcava": "inferior vena cava", "small bowel": "small intestine", "thyroid gland": "thyroid",
    "tumor core": "tumor", "tumour": "tumor", "tumour core": "tumor", "urinary bladder": "bladder",
    "vertebrae": "vertebra", "whole tumor": "tumor", "whole tumour": "tumor",
})  # fmt: skip
_SIDES = MappingProxyType({"left": LEFT, "l": LEFT, "right": RIGHT, "r": RIGHT})
_SIDE_OR_NUMBER = re.compile(r"left|right|l|r|[a-z]?\d+")
_OURS = MappingProxyType({s.name: encode_structure(s) for s in STRUCTURES})


def encode_label(name: str) -> Code:
    """Return the code of the structure, or ``UNCODED``."""
    code = _code_of_term(_plain(name))
    if code == UNCODED:
        code = _code_of_term(_without_side(name))
        sides = {_SIDES[term] for term in _plain(name).split() if term in _SIDES}
        if code != UNCODED and len(sides) == 1:
            code = replace(code, modifiers=(*code.modifiers, *sides))
    return code


def _code_of_term(term: str) -> Code:
    term = _SAME.get(term, term)
    if term in ANATOMY:
        return Code(ANATOMY[term], "SCT", term.capitalize())
    if term in ABNORMAL:
        return Code(ABNORMAL[term][0], "SCT", ABNORMAL[term][1])
    return _OURS.get(term, UNCODED)


def categorise_label(name: str) -> Code:
    """Return the category of the label: anatomical, abnormal, or merely spatial."""
    code = encode_label(name)
    if code == UNCODED:
        return SPATIAL
    return ABNORMAL_STRUCTURE if code.value in {value for value, _ in ABNORMAL.values()} else ANATOMICAL_STRUCTURE


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_,-]+", name.strip().lower()))


def _without_side(name: str) -> str:
    return " ".join(term for term in _plain(name).split() if not _SIDE_OR_NUMBER.fullmatch(term))
