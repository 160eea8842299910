"""Half-lives of the radionuclides of PET (PS3.16 CID 4020), to find those that a header states wrongly."""

from __future__ import annotations

from types import MappingProxyType

from pydicom.sr.coding import Code

__all__ = ["HALF_LIVES_S", "half_life_fault"]

TOLERANCE = 0.02
"""Relative; published half-lives of one nuclide differ by up to 1.5 %."""

HALF_LIVES_S = MappingProxyType({
    Code("40565003", "SCT", "^11^Carbon"): 1221.8,
    Code("21576001", "SCT", "^13^Nitrogen"): 597.9,
    Code("424875009", "SCT", "^14^Oxygen"): 70.6,
    Code("129504001", "SCT", "^15^Oxygen"): 122.24,
    Code("77004003", "SCT", "^18^Fluorine"): 6586.2,
    Code("71633006", "SCT", "^22^Sodium"): 8.2106e7,
    Code("423764008", "SCT", "^38^Potassium"): 458.2,
    Code("126605", "DCM", "^43^Scandium"): 14008,
    Code("126600", "DCM", "^44^Scandium"): 14420,
    Code("75696008", "SCT", "^45^Titanium"): 11088,
    Code("126601", "DCM", "^51^Manganese"): 2772,
    Code("69089000", "SCT", "^52^Iron"): 29790,
    Code("37225000", "SCT", "^52^Manganese"): 483060,
    Code("126607", "DCM", "^52m^Manganese"): 1266,
    Code("425364008", "SCT", "^60^Copper"): 1422,
    Code("71425003", "SCT", "^61^Copper"): 12010,
    Code("422934004", "SCT", "^62^Copper"): 580.4,
    Code("65054007", "SCT", "^62^Zinc"): 33200,
    Code("3932008", "SCT", "^64^Copper"): 45723,
    Code("79477007", "SCT", "^66^Gallium"): 33830,
    Code("35337001", "SCT", "^68^Gallium"): 4062.6,
    Code("53315004", "SCT", "^68^Germanium"): 2.3408e7,
    Code("126602", "DCM", "^70^Arsenic"): 3156,
    Code("2705002", "SCT", "^72^Arsenic"): 93600,
    Code("87437000", "SCT", "^73^Selenium"): 25740,
    Code("17910003", "SCT", "^75^Bromine"): 5802,
    Code("79523006", "SCT", "^76^Bromine"): 58320,
    Code("86521004", "SCT", "^77^Bromine"): 205340,
    Code("79197006", "SCT", "^82^Rubidium"): 76.0,
    Code("10738001", "SCT", "^86^Yttrium"): 53064,
    Code("63360001", "SCT", "^89^Zirconium"): 282276,
    Code("126603", "DCM", "^90^Niobium"): 52560,
    Code("14691008", "SCT", "^90^Yttrium"): 230500,
    Code("424079002", "SCT", "^94m^Technetium"): 3120,
    Code("40937006", "SCT", "^124^Iodine"): 360806,
    Code("126606", "DCM", "^152^Terbium"): 63000,
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
        f"{_name(found)}, whose half-life is {known:g} s"
    )


def _name(nuclide: Code) -> str:
    """Return "Fluorine-18" for the standard's "^18^Fluorine"."""
    number, element = nuclide.meaning.strip("^").split("^")
    return f"{element}-{number}"


def _same(stated_s: float, known_s: float) -> bool:
    return abs(stated_s / known_s - 1) <= TOLERANCE


def _nuclide(code: tuple[str, str]) -> Code | None:
    """Find a nuclide; codes of the old SNOMED (SRT) compare equal to those of today."""
    value, scheme = code
    target = Code(value, "SRT" if scheme in _OLD_SCHEMES else scheme, "")
    return next((known for known in HALF_LIVES_S if known == target), None)
