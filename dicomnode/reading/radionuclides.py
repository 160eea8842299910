"""Half-lives of the radionuclides of PET (PS3.16 CID 4020), to find those that a header states wrongly."""

from __future__ import annotations

from types import MappingProxyType

from pydicom.sr.coding import Code

__all__ = ["HALF_LIVES_S", "half_life_fault"]

TOLERANCE = 0.02
"""Relative; published half-lives of one nuclide differ by up to 1.5 %."""

HALF_LIVES_S = MappingProxyType({
    Code("40565003", "SCT", "11C"): 1221.8,
    Code("21576001", "SCT", "13N"): 597.9,
    Code("424875009", "SCT", "14O"): 70.6,
    Code("129504001", "SCT", "15O"): 122.24,
    Code("77004003", "SCT", "18F"): 6586.2,
    Code("71633006", "SCT", "22Na"): 8.2106e7,
    Code("423764008", "SCT", "38K"): 458.2,
    Code("126605", "DCM", "43Sc"): 14008,
    Code("126600", "DCM", "44Sc"): 14420,
    Code("75696008", "SCT", "45Ti"): 11088,
    Code("126601", "DCM", "51Mn"): 2772,
    Code("69089000", "SCT", "52Fe"): 29790,
    Code("37225000", "SCT", "52Mn"): 483060,
    Code("126607", "DCM", "52mMn"): 1266,
    Code("425364008", "SCT", "60Cu"): 1422,
    Code("71425003", "SCT", "61Cu"): 12010,
    Code("422934004", "SCT", "62Cu"): 580.4,
    Code("65054007", "SCT", "62Zn"): 33200,
    Code("3932008", "SCT", "64Cu"): 45723,
    Code("79477007", "SCT", "66Ga"): 33830,
    Code("35337001", "SCT", "68Ga"): 4062.6,
    Code("53315004", "SCT", "68Ge"): 2.3408e7,
    Code("126602", "DCM", "70As"): 3156,
    Code("2705002", "SCT", "72As"): 93600,
    Code("87437000", "SCT", "73Se"): 25740,
    Code("17910003", "SCT", "75Br"): 5802,
    Code("79523006", "SCT", "76Br"): 58320,
    Code("86521004", "SCT", "77Br"): 205340,
    Code("79197006", "SCT", "82Rb"): 76.0,
    Code("10738001", "SCT", "86Y"): 53064,
    Code("63360001", "SCT", "89Zr"): 282276,
    Code("126603", "DCM", "90Nb"): 52560,
    Code("14691008", "SCT", "90Y"): 230500,
    Code("424079002", "SCT", "94mTc"): 3120,
    Code("40937006", "SCT", "124I"): 360806,
    Code("126606", "DCM", "152Tb"): 63000,
})  # fmt: skip
_OLD_SCHEMES = ("SNM3", "99SDM")


def half_life_fault(code: tuple[str, str] | None, half_life_s: float) -> str:
    """Return why a half-life cannot be that of the nuclide with this (value, scheme), or "" where it can.

    Without a code that is known here it has to be the half-life of any nuclide of PET: one in minutes is none's.
    """
    found = _nuclide(code) if code else None
    if found is None:
        if any(_same(half_life_s, known) for known in HALF_LIVES_S.values()):
            return ""
        return f"Radionuclide Half Life (0018,1075) of {half_life_s:g} s is that of no radionuclide of PET"
    known = HALF_LIVES_S[found]
    if _same(half_life_s, known):
        return ""
    return (
        f"Radionuclide Half Life (0018,1075) is {half_life_s:g} s, but Radionuclide Code Sequence (0054,0300) says "
        f"{found.meaning}, whose half-life is {known:g} s"
    )


def _same(stated_s: float, known_s: float) -> bool:
    return abs(stated_s / known_s - 1) <= TOLERANCE


def _nuclide(code: tuple[str, str]) -> Code | None:
    """Find a nuclide; codes of the old SNOMED (SRT) compare equal to those of today."""
    value, scheme = code
    stated = Code(value, "SRT" if scheme in _OLD_SCHEMES else scheme, "")
    return next((known for known in HALF_LIVES_S if known == stated), None)
