"""Reconstruction by deep learning at the scanner: on, off or unknown.

Philips: real objects of the data kit. GE and Siemens: the kit has only the sidecars that dcm2niix made of their headers
(BIDS, JSON), so the tests write the elements that its README names, with the values of the sidecars, into simulated
objects.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from dicomnode.reading import volumes
from dicomnode.results.provenance import Provenance, describe_vendor_reconstruction, record
from pipelines import quality
from pipelines.contract import Case, Grid, Refused, Volume
from tests.pixel_files import SHAPE, Edit, make_axial_grid, make_values, write_as, write_series
from tests.series import unpack_series, write_enhanced

GE, SIEMENS, PHILIPS = "GEMS_PARM_01", "SIEMENS MR SDI 02", "Philips MR Imaging DD 008"
RULE = quality.InputRule(fact="deep_learning_reconstruction", none_of=("on",))


def _read_sidecar(kit: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        gzip.decompress((kit / "dicom/dl-recon-markers" / f"{name}.json.gz").read_bytes())
    )
    return content


def _find(facts: dict[str, Any]) -> tuple[str, str]:
    return facts["deep_learning_reconstruction"], facts.get("deep_learning_details", "")


def _unzip_philips(kit: Path, folder: Path, series: str) -> list[Path]:
    with zipfile.ZipFile(kit / "dicom/dl-recon-markers/Philips.zip") as archive:
        archive.extractall(folder)
    return sorted(path for path in (folder / "Philips" / series).iterdir() if "Raw" not in path.name)


PHILIPS_SERIES = {
    "201_T1W_TSE_Sno_CSno_CSAIno": ("off", ""),
    "501_T1W_TSE_Sno_CSno_CSAI2": ("on", "SmartSpeed AI"),
    "401_T1W_FFE_Sno_CS2": ("unknown", ""),  # release 5.7, without the element
    "501_T1W_FFE_Sno_CS4": ("unknown", ""),  # the same, classic
}


@pytest.mark.parametrize("series", PHILIPS_SERIES)
def test_real_philips_series(kit: Path, tmp_path: Path, series: str) -> None:
    assert _find(volumes.read(_unzip_philips(kit, tmp_path, series)).facts) == PHILIPS_SERIES[series]


def test_philips_element_in_implicit_vr(kit: Path, tmp_path: Path) -> None:
    path = _unzip_philips(kit, tmp_path, "501_T1W_TSE_Sno_CSno_CSAI2")[0]
    write_as(dcmread(path), path, ImplicitVRLittleEndian)
    assert _find(volumes.read([path]).facts) == ("on", "SmartSpeed AI")


def test_a_philips_element_of_another_creator_says_nothing(tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        ds.Manufacturer = "Philips Medical Systems"
        ds.private_block(0x2005, "Philips MR Imaging DD 002", create=True).add_new(0x10, "CS", "CS_SENSE_AI")

    assert _find(volumes.read(write_series(tmp_path, make_values(), edit)).facts) == ("unknown", "")


def _make_ge(value: str | None, elements: int = 40) -> Edit:
    def edit(_: int, ds: Dataset) -> None:
        ds.Manufacturer = "GE MEDICAL SYSTEMS"
        block = ds.private_block(0x0043, GE, create=True)
        for number in range(elements):
            block.add_new(number + 0x30, "LO", "1")
        if value is not None:
            block.add_new(0xCA, "LO", value.split("\\"))

    return edit


def test_ge_with_the_values_of_the_sidecars(kit: Path, tmp_path: Path) -> None:
    on = _read_sidecar(kit, "GE_13_Ax_T2_FLAIR_FS_DL_High")["DeepLearningDetails"]
    off = _read_sidecar(kit, "GE_14_Ax_T2_FLAIR_FS_DL_Off").get("DeepLearningDetails")
    found = [
        _find(volumes.read(write_series(tmp_path / name, make_values(), _make_ge(value))).facts)
        for name, value in (("on", on), ("off", off), ("zero", "0\\Off"))
    ]
    assert found == [("on", "AIR Recon DL 0.75 high"), ("off", ""), ("off", "")]


@pytest.mark.parametrize("stripped", ["method", "identity removed", "block", "elements"])
def test_a_deidentified_ge_series_is_unknown(tmp_path: Path, stripped: str) -> None:
    def edit(k: int, ds: Dataset) -> None:
        _make_ge(None, elements=2 if stripped == "elements" else 40)(k, ds)
        if stripped == "method":
            ds.DeidentificationMethod = "something"
        elif stripped == "identity removed":
            ds.PatientIdentityRemoved = "YES"
        elif stripped == "block":
            ds.remove_private_tags()

    assert _find(volumes.read(write_series(tmp_path, make_values(), edit)).facts) == ("unknown", "")


def test_a_real_ge_series_without_private_elements_is_unknown(kit: Path, tmp_path: Path) -> None:
    paths = unpack_series(kit / "dicom/ge-irspgr-fruit-refaced/dicoms.tar.xz", tmp_path)
    assert _find(volumes.read(paths).facts) == ("unknown", "")


SIEMENS_SERIES = {
    "t2_tse_tra_p2_DR_off": ("off", "", 4),
    "t2_tse_tra_p2_DR_on_BoostMidSharp": ("on", "Deep Resolve Boost, Deep Resolve Sharp", 5),
    "t2_tse_tra_p2_DR_on_BoostHighSharp": ("on", "Deep Resolve Boost, Deep Resolve Sharp", 6),
    "t2_tse_tra_p2_DR_on_Gain4_2_Sharp": ("on", "Deep Resolve Gain, Deep Resolve Sharp", 7),
}


@pytest.mark.parametrize("series", SIEMENS_SERIES)
def test_classic_siemens_with_the_image_type_of_the_sidecars(kit: Path, tmp_path: Path, series: str) -> None:
    *expected, number = SIEMENS_SERIES[series]
    # dcm2niix appends MAGNITUDE
    words = _read_sidecar(kit, f"Si_{number}001_{series}")["ImageType"][:-1]

    def edit(_: int, ds: Dataset) -> None:
        ds.Manufacturer, ds.ImageType = "Siemens Healthineers", words

    assert _find(volumes.read(write_series(tmp_path, make_values(), edit)).facts) == tuple(expected)


@pytest.mark.parametrize("series", SIEMENS_SERIES)
@pytest.mark.parametrize("has_private", [True, False])
def test_enhanced_siemens_with_the_words_of_the_sidecars(
    kit: Path, tmp_path: Path, series: str, has_private: bool
) -> None:
    *expected, number = SIEMENS_SERIES[series]
    sidecar = _read_sidecar(kit, f"Si_{number}_{series}")

    def edit(_: int, group: Dataset) -> None:
        inner = Dataset()
        inner.private_block(0x0021, SIEMENS, create=True).add_new(0x75, "CS", sidecar["ImageTypeText"])
        if has_private:
            group.private_block(0x0021, SIEMENS, create=True).add_new(0xFE, "SQ", [inner])

    path = write_enhanced(tmp_path / "e.dcm", make_axial_grid(), make_values(), list(range(SHAPE[0])), edit)
    ds = dcmread(path)
    ds.Manufacturer, ds.ImageType = "Siemens Healthineers", sidecar["ImageType"][:-1]
    ds.save_as(path)
    assert _find(volumes.read([path]).facts) == (tuple(expected) if has_private else ("unknown", ""))


def test_real_enhanced_siemens_is_off(kit: Path) -> None:
    assert _find(volumes.read([kit / "dicom/siemens-xa30-enhanced/t1w_mprage_defaced.dcm"]).facts) == ("off", "")


def test_one_slice_is_enough(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        _make_ge("0.5\\Medium" if k == 2 else None)(k, ds)

    assert _find(volumes.read(write_series(tmp_path, make_values(), edit)).facts) == ("on", "AIR Recon DL 0.5 medium")


PHILIPS_VALUES = {
    "NONE": ("off", ""), "CS_SENSE": ("off", ""), "CS_SENSE_AI": ("on", "SmartSpeed AI"),
    "AI-SENSE": ("on", "SmartSpeed AI"), "SMARTSPEED_AI2": ("on", "SmartSpeed AI"), "5": ("unknown", ""),
    "SMARTSENSE": ("unknown", ""),
}  # fmt: skip


@pytest.mark.parametrize("value", PHILIPS_VALUES)
def test_a_philips_value_is_off_only_where_it_is_known(value: str, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        ds.Manufacturer = "Philips Medical Systems"
        ds.private_block(0x2005, "Philips MR Imaging DD 008", create=True).add_new(0x10, "LO", value)

    assert _find(volumes.read(write_series(tmp_path, make_values(), edit)).facts) == PHILIPS_VALUES[value]


GE_VALUES = {
    "Off": ("off", ""), "None": ("off", ""), "High": ("on", "AIR Recon DL high"), "-1": ("unknown", ""),
    "1.0": ("on", "AIR Recon DL 1"), "something": ("unknown", ""),
}  # fmt: skip


@pytest.mark.parametrize("value", GE_VALUES)
def test_a_ge_value_has_no_invented_strength(value: str, tmp_path: Path) -> None:
    assert _find(volumes.read(write_series(tmp_path, make_values(), _make_ge(value))).facts) == GE_VALUES[value]


def test_another_manufacturer_is_unknown(tmp_path: Path) -> None:
    assert _find(volumes.read(write_series(tmp_path, make_values())).facts) == ("unknown", "")


def _make_case(state: str) -> Case:
    volume = Volume(np.zeros((10, 20, 30), np.float32), Grid((10, 20, 30), np.eye(4)))
    return Case({"head": volume}, {"modality": "MR", "deep_learning_reconstruction": state})


@pytest.mark.parametrize("state", ["on", "off", "unknown"])
def test_a_bundle_and_a_site_may_forbid_it(state: str) -> None:
    contract = {
        "name": "anatomy",
        "version": "1.0.0",
        "input_contract": {"head": [RULE.model_dump(exclude_defaults=True)]},
    }
    for metadata, rules, author in ((contract, (), "anatomy 1.0.0"), ({}, (RULE,), "this node")):
        if state == "on":
            with pytest.raises(Refused, match=f"reconstruction by deep learning .* is on; {author} takes none of on"):
                quality.check_input(_make_case(state), metadata, "head", site_rules=rules)
        else:
            assert quality.check_input(_make_case(state), metadata, "head", site_rules=rules) == ()


def test_a_site_may_hold_it_or_demand_that_it_is_off() -> None:
    hold = quality.InputRule(fact=RULE.fact, one_of=("off",), otherwise="hold")
    assert quality.check_input(_make_case("off"), {}, "head", site_rules=(hold,)) == ()
    assert "is unknown" in quality.check_input(_make_case("unknown"), {}, "head", site_rules=(hold,))[0]


def test_the_provenance_of_a_result_states_it() -> None:
    facts = {"t1w": {"deep_learning_reconstruction": "on", "deep_learning_details": "SmartSpeed AI"}}
    ds = Dataset()
    record(ds, Provenance("m", "1", "0", "p", {}, 1, "cpu", "0", "-", "job", facts=facts), [])
    assert describe_vendor_reconstruction(facts["t1w"]) in ds.ImageComments
    assert "(SmartSpeed AI)" in ds.ImageComments
    assert describe_vendor_reconstruction({"deep_learning_reconstruction": "unknown"}) == ""
