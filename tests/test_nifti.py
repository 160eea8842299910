"""NIfTI in and out: every voxel keeps its place in the patient and its value, or the file is refused by name."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from numpy.typing import NDArray
from pydicom import dcmread

from dicomnode.errors import InputRefused
from dicomnode.local_runs.candidates import find_candidates
from dicomnode.nifti import facts, images, participants, results, series
from dicomnode.reading import volumes
from dicomnode.results.provenance import Provenance
from pipelines.codes import STANDARD_DEVIATION
from pipelines.contract import Finding, Grid, Image, ParametricMap, Volume
from pipelines.quality import Outcome, Verdict
from tests.nifti_files import LPS_TO_RAS, write_nifti

HELD = Verdict(Outcome.HOLD, ("mean is 3, above 2",))
SHAPE = (5, 6, 7)
ORIENTATIONS = ["LPS", "RAS", "LAS", "PIR", "ASL", "SRP"]


def make_grid(codes: str, spacing: tuple[float, float, float] = (1.1, 0.9, 2.3), tilt_deg: float = 7.0) -> Grid:
    """Return an oblique grid whose axes (i, j, k) point nearest to ``codes``."""
    angle = np.deg2rad(tilt_deg)
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    ras = np.eye(4)
    to_codes = inv_ornt_aff(axcodes2ornt(codes), SHAPE[::-1])
    ras[:3, :3] = rotation @ np.linalg.inv(to_codes)[:3, :3] @ np.diag(spacing)
    ras[:3, 3] = [-20.0, 11.5, 40.25]
    return Grid(SHAPE, LPS_TO_RAS @ ras)


def make_values() -> NDArray[np.int16]:
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) * 3


def place_of(grid: Grid, values: NDArray[Any], value: float) -> NDArray[np.float64]:
    k, j, i = np.argwhere(values == value)[0]
    return np.asarray(grid.affine_mm @ [i, j, k, 1])


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_voxel_keeps_value_and_place_as_a_series(tmp_path: Path, codes: str) -> None:
    grid, values = make_grid(codes), make_values()
    image = images.read(write_nifti(tmp_path / "a.nii.gz", values, grid))
    read = volumes.read(series.write_series(image, {"Modality": "MR"}, tmp_path / "series", name="a")).volume
    assert sorted(read.data.ravel().tolist()) == sorted(values.ravel().tolist())
    for value in (0, 33, 3 * (values.size - 1)):
        assert place_of(read.grid, read.data, value) == pytest.approx(place_of(grid, values, value), abs=1e-4)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_what_is_written_has_the_voxels_and_the_affine_of_its_input(tmp_path: Path, codes: str) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", make_values(), make_grid(codes))
    image = images.read(path)
    read = volumes.read(series.write_series(image, {"Modality": "MR"}, tmp_path / "series", name="a")).volume
    images.write(tmp_path / "b.nii.gz", read.data, read.grid, like=image)
    before, after = nibabel.load(path), nibabel.load(tmp_path / "b.nii.gz")
    assert np.array_equal(before.affine, after.affine)
    assert np.array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
    assert images.is_marked(tmp_path / "b.nii.gz")
    assert not images.is_marked(path)
    assert after.header["descrip"].item().decode() == "SYNTHETIC - RESEARCH USE ONLY"


def test_without_a_like_the_affine_is_that_of_the_grid(tmp_path: Path) -> None:
    grid = make_grid("LPS")
    images.write(tmp_path / "b.nii.gz", make_values(), grid)
    written = nibabel.load(tmp_path / "b.nii.gz")
    assert written.affine == pytest.approx(LPS_TO_RAS @ grid.affine_mm, abs=1e-5)
    assert np.array_equal(np.asarray(written.dataobj).T, make_values())


def test_floats_are_rounded_to_16_bits_and_no_further(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, SHAPE)
    image = images.read(write_nifti(tmp_path / "a.nii.gz", values, make_grid("LPS")))
    read = volumes.read(series.write_series(image, {"Modality": "MR"}, tmp_path / "s", name="a")).volume.data
    assert np.abs(read - values).max() <= np.ptp(values) / 65535 * 0.51


def test_pet_keeps_its_unit_and_an_intercept_of_zero(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(5000, 2000, SHAPE)
    image = images.read(write_nifti(tmp_path / "a.nii.gz", values, make_grid("LPS")))
    paths = series.write_series(image, {"Modality": "PT", "Units": "BQML"}, tmp_path / "s", name="a")
    read = volumes.read(paths).volume
    assert read.unit == "Bq/ml"
    assert dcmread(paths[0]).RescaleIntercept == 0
    assert np.abs(read.data - values).max() <= np.abs(values).max() / 32767 * 0.51


def test_an_outlier_that_would_eat_the_contrast_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, SHAPE)
    values[0, 0, 0] = 1e5
    image = images.read(write_nifti(tmp_path / "a.nii.gz", values, make_grid("LPS")))
    with pytest.raises(InputRefused, match=r"a: its values from .* lose their contrast in 16 bits"):
        series.write_series(image, {"Modality": "MR"}, tmp_path / "s", name="a")


def test_a_series_states_no_patient_and_no_date(tmp_path: Path) -> None:
    image = images.read(write_nifti(tmp_path / "a.nii.gz", make_values(), make_grid("LPS")))
    attributes = {"Modality": "MR", "EchoTime": 90.0, "InversionTime": 2500.0, "RepetitionTime": 9000.0,
                  "ScanningSequence": ["SE", "IR"], "MRAcquisitionType": "3D"}  # fmt: skip
    path = series.write_series(image, attributes, tmp_path / "s", name="a")[2]
    ds = dcmread(path)
    assert (ds.PatientName, ds.PatientID, ds.StudyDate) == ("", "", "")
    assert "FrameOfReferenceUID" in ds


def test_the_same_file_gives_the_same_series(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", make_values(), make_grid("LPS"))
    one, other = (
        series.write_series(images.read(path), {"Modality": "MR"}, tmp_path / name, name="a") for name in ("1", "2")
    )
    assert [each.read_bytes() for each in one] == [each.read_bytes() for each in other]


def test_a_gzip_that_is_damaged_inside_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", make_values(), make_grid("LPS"))
    content = bytearray(path.read_bytes())
    content[40:60] = b"\xff" * 20
    path.write_bytes(content)
    assert not images.is_marked(path)
    with pytest.raises(InputRefused, match=r"a\.nii\.gz: no NIfTI image can be read from it \(error\)"):
        images.read(path)


def spoil_header(path: Path, **fields: float) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = np.frombuffer(content, nibabel.Nifti1Header.template_dtype, count=1)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(content))


def write_strange(path: Path, fault: str) -> Path:
    grid, values = make_grid("LPS"), make_values()
    if fault == "four":
        nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 4)), np.eye(4)), path)
    elif fault == "shear":
        affine = grid.affine_mm.copy()
        affine[0, 2] += 0.3
        image = nibabel.Nifti1Image(values.T, LPS_TO_RAS @ affine)
        image.set_sform(LPS_TO_RAS @ affine, code=1)
        image.set_qform(None, code=0)
        nibabel.save(image, path)
    elif fault == "sides":
        image = nibabel.Nifti1Image(values.T, LPS_TO_RAS @ grid.affine_mm)
        image.set_sform(np.diag([-1, 1, 1, 1]) @ LPS_TO_RAS @ grid.affine_mm, code=1)
        image.set_qform(LPS_TO_RAS @ grid.affine_mm, code=1)
        nibabel.save(image, path)
    elif fault == "turned":
        image = nibabel.Nifti1Image(values.T, LPS_TO_RAS @ grid.affine_mm)
        image.set_sform(np.diag([-1, -1, 1, 1]) @ LPS_TO_RAS @ grid.affine_mm, code=1)
        image.set_qform(LPS_TO_RAS @ grid.affine_mm, code=1)
        nibabel.save(image, path)
    elif fault == "quaternion":
        spoil_header(write_nifti(path, values, grid), quatern_b=3.0)
    elif fault == "type":
        spoil_header(write_nifti(path, values, grid), datatype=77)
    elif fault == "nan":
        write_nifti(path, np.full(SHAPE, np.nan), grid)
    elif fault == "no code":
        write_nifti(path, values, grid, codes=(0, 0))
    else:
        path.write_bytes(b"no image at all")
    return path


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("four", "one volume of 3 dimensions is needed; it has 4 of 4"),
        ("shear", "not perpendicular"),
        ("sides", "dispute which way its axes go"),
        ("turned", "dispute which way its axes go"),
        ("quaternion", "no NIfTI image can be read"),
        ("type", "no NIfTI image can be read"),
        ("nan", "not finite"),
        ("no code", "nobody knows which side is left"),
        ("text", "no NIfTI image can be read"),
    ],
)
def test_a_file_without_one_meaning_is_refused_by_name(tmp_path: Path, fault: str, reason: str) -> None:
    with pytest.raises(InputRefused, match=rf"strange\.nii\.gz: .*{reason}"):
        images.read(write_strange(tmp_path / "strange.nii.gz", fault))
    assert not images.is_marked(tmp_path / "strange.nii.gz")


def test_a_head_that_is_tilted_against_its_qform_is_read_by_its_sform(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(make_values().T, LPS_TO_RAS @ make_grid("LPS", tilt_deg=30).affine_mm)
    image.set_sform(LPS_TO_RAS @ make_grid("LPS", tilt_deg=0).affine_mm, code=4)
    image.set_qform(LPS_TO_RAS @ make_grid("LPS", tilt_deg=30).affine_mm, code=1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert images.read(tmp_path / "a.nii.gz").grid.matches(make_grid("LPS", tilt_deg=0))


def test_without_a_modality_nothing_is_made_of_a_file(tmp_path: Path) -> None:
    image = images.read(write_nifti(tmp_path / "a.nii.gz", make_values(), make_grid("LPS")))
    with pytest.raises(InputRefused, match="--modality MR, PT or CT"):
        series.write_series(image, {}, tmp_path / "s", name="a")


def test_the_file_beside_and_the_name_state_facts_in_the_units_of_dicom(tmp_path: Path) -> None:
    sidecar = {
        "EchoTime": 0.09,
        "InversionTime": 2.5,
        "MagneticFieldStrength": 3,
        "ScanningSequence": "SE_IR",
        "Foo": 1,
    }
    path = write_nifti(tmp_path / "sub-01_FLAIR.nii.gz", make_values(), make_grid("LPS"), facts=sidecar)
    found = facts.read_stated(path, {})
    assert (found["EchoTime"], found["InversionTime"]) == (90.0, 2500.0)
    assert (found["Modality"], found["ScanningSequence"]) == ("MR", ["SE", "IR"])
    assert "Foo" not in found
    assert facts.list_unknown(found) == ["tr_ms", "body_part", "age_years"]


def test_a_series_of_a_file_is_a_derived_image_that_says_what_it_is(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", make_values(), make_grid("LPS"))
    attributes = {"Modality": "MR", "SeriesDescription": "mprage", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}
    ds = dcmread(series.write_series(images.read(path), attributes, tmp_path / "s", name="a")[0])
    assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "M", "ND"]
    assert ds.SeriesDescription == "NIFTI mprage"
    assert "Converted from a NIfTI file, not from the scanner" in ds.DerivationDescription


def test_a_file_that_is_synthetic_by_its_json_file_alone_stays_so(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", make_values(), make_grid("LPS"), facts={"SyntheticData": True})
    assert facts.read_stated(path, {})["SyntheticData"] == "YES"
    (candidate,) = find_candidates(path, {})
    assert candidate.is_synthetic


def test_a_default_does_not_replace_what_a_file_states(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", make_values(), make_grid("LPS"), facts={"Modality": "PT", "Units": "Bq/mL"})
    found = facts.read_stated(path, {"Modality": "MR"})
    assert (found["Modality"], found["Units"]) == ("PT", "BQML")


def test_a_number_with_several_values_is_not_stated(tmp_path: Path) -> None:
    stated = {"FlipAngle": [4, 5], "EchoTime": [0.002, 0.004], "InversionTime": 0.9}
    path = write_nifti(tmp_path / "sub-01_UNIT1.nii.gz", make_values(), make_grid("LPS"), facts=stated)
    found = facts.read_stated(path, {})
    assert found["InversionTime"] == 900.0
    assert not {"FlipAngle", "EchoTime"} & set(found)


@pytest.mark.parametrize("content", ['{"EchoTime": "soon"}', "[]", "{"])
def test_a_file_beside_that_is_wrong_is_refused(tmp_path: Path, content: str) -> None:
    path = write_nifti(tmp_path / "a.nii", make_values(), make_grid("LPS"))
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputRefused, match=r"a\.json"):
        facts.read_stated(path, {})


def write_table(folder: Path, *rows: str) -> None:
    (folder / participants.TABLE).write_text("\n".join(row.replace(" ", "\t") for row in rows) + "\n")


def test_the_table_of_participants_states_the_facts_of_each_subject(tmp_path: Path) -> None:
    write_table(tmp_path, "participant_id age sex weight", "sub-01 41.7 female 62.5", "sub-02 89+ M n/a")
    paths = [tmp_path / name / "anat" / f"{name}_T1w.nii.gz" for name in ("sub-01", "sub-02", "sub-03")]
    found = [participants.read_participant(path) for path in paths]
    stated = [each.values for each in found]
    assert stated == [{"PatientAge": "041Y", "PatientSex": "F", "PatientWeight": 62.5}, {"PatientSex": "M"}, {}]
    assert not any(each.unclear for each in found)
    assert participants.read_participant(tmp_path / "head.nii.gz") == participants.Participant()


@pytest.mark.parametrize(
    ("row", "unclear"),
    [
        ("sub-01 old F 60", "age of sub-01 is 'old'"),
        ("sub-01 25-30 F 60", "age of sub-01 is '25-30'"),
        ("sub-01 NaN F 60", "age of sub-01 is 'NaN'"),
        ("sub-01 0.5 F 60", "age of sub-01 is '0.5'"),
        ("sub-01 41 1 60", "sex of sub-01 is '1': sex is F, M or O"),
        ("sub-01 41 N/A 60", "sex of sub-01 is 'N/A'"),
        ("sub-01 41 F 0", "weight of sub-01 is '0': weight_kg is a positive number"),
    ],
)
def test_a_cell_that_is_no_value_is_not_stated_and_says_why(tmp_path: Path, row: str, unclear: str) -> None:
    write_table(tmp_path, "participant_id age sex weight", row)
    found = participants.read_participant(tmp_path / "sub-01_T1w.nii.gz")
    (why,) = found.unclear.values()
    assert unclear in why
    assert len(found.values) == 2, "the other cells are stated"


def test_several_rows_of_a_subject_state_nothing(tmp_path: Path) -> None:
    write_table(tmp_path, "participant_id age", "sub-01 41", "sub-01 42")
    found = participants.read_participant(tmp_path / "sub-01_T1w.nii.gz")
    assert not found.values
    assert set(found.unclear.values()) == {"participants.tsv has 2 rows of sub-01"}


def test_a_quotation_mark_in_a_cell_does_not_take_the_rows_below(tmp_path: Path) -> None:
    write_table(tmp_path, 'participant_id note "age"', 'sub-01 "6ft 41', '"sub-02" tall "62"', 'sub-03 5" 33')
    found = [participants.read_participant(tmp_path / f"sub-0{n}_T1w.nii.gz").values for n in (1, 2, 3)]
    assert found == [{"PatientAge": "041Y"}, {"PatientAge": "062Y"}, {"PatientAge": "033Y"}]


def test_neither_an_age_in_months_nor_a_contradiction_is_stated(tmp_path: Path) -> None:
    write_table(tmp_path, "participant_id sex age", "sub-01 F 41")
    path = write_nifti(tmp_path / "sub-01_T1w.nii.gz", make_values(), make_grid("LPS"), facts={"PatientSex": "M"})
    (tmp_path / "participants.json").write_text('{"age": {"Units": "months"}}')
    (found,) = find_candidates(path, {})
    assert not {"PatientSex", "PatientAge"} & set(found.attributes)
    assert "participants.tsv and its JSON file differ in PatientSex" in found.unclear["PatientSex"]
    assert "age is in months; needed is yr" in found.unclear["PatientAge"]


def test_what_the_user_states_holds_above_the_table(tmp_path: Path) -> None:
    write_table(tmp_path, "participant_id sex age", "sub-01 1 41")
    path = write_nifti(tmp_path / "sub-01_T1w.nii.gz", make_values(), make_grid("LPS"))
    (found,) = find_candidates(path, {"PatientAge": "061Y", "PatientSex": "F"})
    assert (found.attributes["PatientAge"], found.attributes["PatientSex"], found.unclear) == ("061Y", "F", {})


def test_a_refusal_of_a_file_names_the_option_instead_of_a_tag() -> None:
    reason = "flair: Inversion Time (0018,0082) is not stated; t1w: Echo Time (0018,0081) is 90 ms"
    files = {"flair": True, "t1w": True}
    named = "flair: Inversion Time (--fact ti_ms=...) is not stated; t1w: Echo Time (--fact t1w.te_ms=...) is 90 ms"
    assert facts.name_options(reason, files, "flair") == named
    assert facts.name_options(reason, {"flair": False, "t1w": False}, "flair") == reason
    assert "(--fact units=...)" in facts.name_options("Units (0054,1001) are CNTS", {"pet": True}, "pet")
    assert facts.name_options("Number of Frames (0028,0008)", {"pet": True}, "pet") == "Number of Frames (0028,0008)"


@pytest.mark.parametrize("text", ["ti_ms", "ti=3", "ti_ms=", "ti_ms=long", "age_years=old", "sex=yes", "te_ms=-3"])
def test_a_fact_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        facts.parse_fact(text)


def test_a_fact_is_given_for_an_input_in_its_unit() -> None:
    assert facts.parse_fact("t1w.te_ms=2.9") == ("t1w", "EchoTime", 2.9)
    assert facts.parse_fact("age_years=70") == ("", "PatientAge", "070Y")


def test_each_finding_becomes_a_file_with_model_digest_and_mark(tmp_path: Path) -> None:
    grid = make_grid("LPS")
    volume = Volume(make_values().astype(np.float32), grid, "{SUVr}")
    findings: list[Finding] = [
        Image("amyloid PET", volume, "A description", 1.0),
        ParametricMap("sd of amyloid PET", volume, STANDARD_DEVIATION, "Spread", 1.0),
    ]
    made_by = Provenance("m", "1.0.0", "abc", "p", {"steps": 4}, 7, "cpu", "0.2.0", "simulation only", "key")
    written = results.write_findings(findings, tmp_path, made_by, sources=["t1w: a.nii.gz"], verdict=HELD)
    names = ["amyloid-PET_synthetic.nii.gz", "sd-of-amyloid-PET_synthetic.nii.gz"]
    assert [path.name for _, path in written] == names
    content = json.loads((tmp_path / "amyloid-PET_synthetic.json").read_text())
    assert content["Model"] == {"Name": "m", "Version": "1.0.0", "WeightsSHA256": "abc", "TrainedOn": "simulation only"}
    assert (content["SyntheticData"], content["Seed"], content["Units"]) == (True, 7, "{SUVr}")
    assert (content["Verdict"], content["Reasons"]) == ("hold", ["mean is 3, above 2"])
    assert content["SourceFiles"] == ["t1w: a.nii.gz"]


def test_names_of_files_are_plain() -> None:
    assert results.slug("PET: amyloid / tau (SUVR)") == "PET-amyloid-tau-SUVR"
    assert all(character not in results.slug("../x y") for character in itertools.chain("/ "))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mri/flair-5mm-with-gif/t2.nii.gz", "mri/ms-longitudinal-t1-flair/patient01/study1_FLAIR.nii.gz"]
)
def test_a_real_scan_keeps_its_voxels_and_its_affine(kit: Path, tmp_path: Path, name: str) -> None:
    before = nibabel.load(kit / name)
    image = images.read(kit / name)
    read = volumes.read(series.write_series(image, {"Modality": "MR"}, tmp_path / "s", name="a")).volume
    images.write(tmp_path / "b.nii.gz", read.data, read.grid, like=image)
    after = nibabel.load(tmp_path / "b.nii.gz")
    assert np.array_equal(before.affine, after.affine)
    values = before.get_fdata()
    assert np.abs(after.get_fdata() - values).max() <= np.ptp(values) / 65535
