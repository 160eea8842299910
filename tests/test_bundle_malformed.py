"""Malformed bundles are refused once, quickly, with the reason, and leave nothing behind."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_zoo import smoke
from model_zoo.bundle import BundleError
from model_zoo.installing import Policy, stage_bundle
from tests.effort import measure_effort
from tests.monai_bundles import write_spleen_bundle

pytest.importorskip("monai")
CPU_S = 10
"""Limit of CPU time for a refusal, which takes a fraction of a second; without the checks the faults took minutes or
all memory."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spleen_bundle(tmp_path_factory.mktemp("bundle") / "spleen")


def copy_bundle(bundle: Path, folder: Path) -> Path:
    for path in bundle.rglob("*"):
        if path.is_file():
            (place := folder / "b" / path.relative_to(bundle)).parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return folder / "b"


def read_refusal(source: Path, folder: Path) -> str:
    with (
        measure_effort() as effort,
        pytest.raises(BundleError) as refused,
        stage_bundle(source, folder / "models", Policy()) as found,
    ):
        smoke.run(found.facts, "cpu")
    assert effort.cpu_s < CPU_S
    assert effort.wall_s < 6 * CPU_S
    assert list((folder / "models").iterdir()) == []
    return str(refused.value)


def read_settings(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "configs" / "inference.json").read_text())
    return found


def nest_brackets(depth: int) -> str:
    return "[" * depth + "]" * depth


JSON: dict[str, tuple[str | bytes, str]] = {
    "10 000 levels": (nest_brackets(10_000), "nested more than 64 levels"),
    "10 000 tables": ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested more than 64 levels"),
    "100 levels": (nest_brackets(100), "nested more than 64 levels"),
    "brackets in a text": ('{"a": "' + "[" * 10_000, "cannot be read"),
    "3 MB": ('{"a": "' + "x" * 3_000_000 + '"}', "more than 2 MB"),
    "one key twice": ('{"network_def": {}, "network_def": {"_target_": "UNet"}}', "it says 'network_def' twice"),
    "half of a surrogate pair": ('{"a": "\\ud800"}', "cannot be read"),
    "no table": ("[]", "table"),
    "a text": ('"x"', "table"),
    "nothing": ("", "cannot be read"),
    "Latin-1": (b'{"a": "\xe9"}', "cannot be read"),
    "UTF-16": ("{}".encode("utf-16"), "cannot be read"),
    "100 000 digits": ('{"a": ' + "9" * 100_000 + "}", "cannot be read"),
}


@pytest.mark.parametrize("name", ["inference.json", "metadata.json"])
@pytest.mark.parametrize("what", JSON)
def test_json_out_of_bounds_is_refused(what: str, name: str, bundle: Path, tmp_path: Path) -> None:
    content, reason = JSON[what]
    source = copy_bundle(bundle, tmp_path)
    (source / "configs" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_refusal(source, tmp_path)
    assert f"configs/{name}" in found
    assert reason in found


_LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
YAML = {
    "billion laughs": (_LAUGHS + "network_def: {}\n", r"the alias \*a0"),
    "alias of itself": ("network_def: &a {b: *a}\n", r"the alias \*a"),
    "10 000 levels": (f"network_def: {nest_brackets(10_000)}\n", "nested more than 64 levels"),
    "blocks in blocks": ("".join(" " * n + "a:\n" for n in range(400)), "nested more than 64 levels"),
    "an object of Python": ("network_def: !!python/object/apply:os.getcwd []\n", "ConstructorError"),
    "a date": ("network_def: {a: 2020-01-01}\n", "cannot be read"),
    "two documents": ("a: 1\n---\nb: 2\n", "ComposerError"),
    "one key twice": ("network_def: {}\nnetwork_def: {a: 1}\n", "it says 'network_def' twice"),
    "300 kB": ("a: " + "x" * 300_000, r"more than 0\.2 MB"),
    "nothing": ("", "table"),
}


@pytest.mark.parametrize("what", YAML)
def test_yaml_out_of_bounds_is_refused(what: str, bundle: Path, tmp_path: Path) -> None:
    content, reason = YAML[what]
    source = copy_bundle(bundle, tmp_path)
    (source / "configs" / "inference.json").unlink()
    (source / "configs" / "inference.yaml").write_text(content)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(read_refusal(source, tmp_path))


def _set_value(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *parents, last = place.split(".")
        for parent in parents:
            content = content[parent]
        content[last] = value

    return change


def _add_references(place: str, width: int, length: int) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for n in range(length):
            content[f"k{n}"] = [f"@k{n + 1}"] * width if width > 1 else f"@k{n + 1}"
        content[f"k{length}"] = 1
        _set_value(place, "@k0")(content)

    return change


def _add_length(expression: str, length: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["n"] = length
        _set_value("inferer.roi_size", expression)(content)

    return change


SETTINGS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "references that double": (_add_references("inferer.roi_size", 2, 40), "references stand for more than"),
    "a chain of references": (_add_references("inferer.roi_size", 1, 3000), "references stand for more than"),
    "references that double in the network": (_add_references("network_def.channels", 2, 40), "only plain values"),
    "a circle in the network": (_set_value("network_def.channels", "@network_def"), "only plain values"),
    "a long list": (_set_value("inferer.roi_size", "$[0]*1000000000"), "a repetition with a number above"),
    "a list of lists": (_set_value("inferer.roi_size", "$[0]*10000*10000*10000"), "more than one repetition"),
    "an endless sum": (
        _set_value("inferer.roi_size", "$sum(range(1000000000000))"),
        "a repetition with a number above",
    ),
    "loops in loops": (
        _set_value("inferer.roi_size", "$[0 for a in range(9999) for b in range(9999)]"),
        "one repetition",
    ),
    "a list as long as a reference says": (_add_length("$[0]*@n", 10**10), "its values take more than 1024 MiB"),
    "a list of a list by a reference": (_add_length("$@n*100000", "$[0]*100000"), "its values take more than 1024 MiB"),
    "a range as long as a reference says": (
        _add_length("$sum(range(@n))", 10**12),
        "a range whose length is a reference",
    ),
    "a large array": (_set_value("inferer.roi_size", "$np.ones((99999, 99999))"), "an array of more than"),
    "a large array by a fraction": (_set_value("inferer.roi_size", "$np.arange(1e10)"), "an array of more than"),
    "an array as large as a reference says": (
        _add_length("$np.ones(@n)", 10**10),
        "its values take more than 1024 MiB|allocate",
    ),
    "a wide text": (_set_value("inferer.roi_size", "$'%1000000000d' % 1"), "a text with %"),
    "a long expression": (_set_value("inferer.roi_size", "$" + "+".join(["1"] * 9000)), "more than 4000 letters"),
    "deep brackets": (_set_value("inferer.roi_size", "$" + "(" * 1000 + "1" + ")" * 1000), "no Python expression"),
    "network_def is a list": (_set_value("network_def", [["_target_", "UNet"]]), "network_def"),
    "a billion channels": (_set_value("network_def.channels", [10**9, 10**9]), "network_def|do not fit"),
    "a million layers": (_set_value("network_def.num_res_units", 10**6), "several times as large as its weights"),
    "an argument of another kind": (_set_value("network_def.norm", {"a": [1]}), "do not fit together"),
    "a wrong number of dimensions": (_set_value("network_def.spatial_dims", 7), "do not fit together"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_that_cost_more_than_a_bundle_may_are_refused(what: str, bundle: Path, tmp_path: Path) -> None:
    change, reason = SETTINGS[what]
    source = copy_bundle(bundle, tmp_path)
    content = read_settings(source)
    change(content)
    (source / "configs" / "inference.json").write_text(json.dumps(content))
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(read_refusal(source, tmp_path))


def _declare_image(**image: Any) -> dict[str, Any]:
    return {"inputs": {"image": {"num_channels": 1, "spatial_shape": [8, 8, 8]} | image}}


METADATA: dict[str, Any] = {
    "network_data_format": [
        [], "x", {"inputs": []}, _declare_image(num_channels="x"), _declare_image(num_channels=10**12),
        _declare_image(spatial_shape=[100_000] * 3), _declare_image(spatial_shape="8*n"),
        _declare_image(spatial_shape=[-8, 8, 8]), _declare_image(spatial_shape=["0*n", 8, 8]),
        _declare_image(spatial_shape=[8.5, 8, 8]),
    ],
    "name": [[], {}],
    "version": [[], {}, "", "../1"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in METADATA.items() for value in values])
def test_metadata_of_another_kind_are_refused(key: str, value: Any, bundle: Path, tmp_path: Path) -> None:
    source = copy_bundle(bundle, tmp_path)
    path = source / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert read_refusal(source, tmp_path)


def _write_repeated_number(path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**11)}, path)


def _write_recursive_dict(path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, path)


def _write_swelling_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(5_000_000))


WEIGHTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one number repeated": (_write_repeated_number, "more than the file can hold"),
    "a dict that holds itself": (_write_recursive_dict, "holds no state dict"),
    "an archive that swells": (_write_swelling_archive, "more than the file can hold"),
    "numbers as names": (lambda path: torch.save({1: torch.zeros(3)}, path), "cannot be stored"),
    "a sparse tensor": (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "cannot be stored"),
    "nothing": (lambda path: path.write_bytes(b""), "cannot be read"),
    "half of a zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)), "cannot be read|was not read"),
    "a pickle in a pickle": (lambda path: path.write_bytes(b"\x80\x02" + b"]q\x00" * 10_000 + b"."), "model.pt"),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_that_are_none_are_refused(what: str, bundle: Path, tmp_path: Path) -> None:
    write, reason = WEIGHTS[what]
    source = copy_bundle(bundle, tmp_path)
    write(source / "models" / "model.pt")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(read_refusal(source, tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 10**7) + b"{" + b" " * 100,
        struct.pack("<Q", 20_001) + b'{"a":' + b"[" * 19_996,
        struct.pack("<Q", 74)
        + b'{"a":{"dtype":"F32","shape":[99999999999999],"data_offsets":[0,4]}}'.ljust(74)
        + b"0000",
    ],
    ids=["nothing", "a header that ends early", "a deep header", "a shape beyond the file"],
)
def test_safetensors_that_are_none_are_refused(content: bytes, bundle: Path, tmp_path: Path) -> None:
    source = copy_bundle(bundle, tmp_path)
    (source / "models" / "model.pt").unlink()
    (source / "models" / "model.safetensors").write_bytes(content)
    assert "safetensors" in read_refusal(source, tmp_path) or "fit together" in read_refusal(source, tmp_path)


def zip_bundle(bundle: Path, path: Path, *more: tuple[str, bytes], above: str = "", method: int = 0) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # warning about a duplicate name
        for each in sorted(bundle.rglob("*")):
            if each.is_file():
                archive.write(each, above + str(each.relative_to(bundle)))
        for name, content in more:
            archive.writestr(name, content)
    return path


NAMES = {
    "../out": "leads out of its folder",
    "docs/..": "leads out of its folder",
    "configs/inference.json": "twice",
    "configs/metadata.json/x": "cannot be read",
    "d" * 300: "cannot be read",
    "docs/a\nb.md": "which no bundle has",
    "docs/\u202ed.md": "which no bundle has",
    "d/" * 100 + "x": "which no bundle has",
    "docs/SHA256SUMS": "belongs beside configs",
    "docs/SHA256SUMS.sig": "belongs beside configs",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_zip_that_no_bundle_has_are_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    assert NAMES[name] in read_refusal(zip_bundle(bundle, tmp_path / "b.zip", (name, b"x")), tmp_path)


@pytest.mark.parametrize("name", ["SHA256SUMS", "SHA256SUMS.sig"])
def test_a_list_outside_of_the_bundles_folder_is_not_passed_over(name: str, bundle: Path, tmp_path: Path) -> None:
    source = zip_bundle(bundle, tmp_path / "b.zip", (name, b"x"), above="spleen/")
    assert f"holds {name} outside of the bundle's folder spleen" in read_refusal(source, tmp_path)


def test_a_list_in_a_folder_vouches_for_nothing_and_is_refused(bundle: Path, tmp_path: Path) -> None:
    source = copy_bundle(bundle, tmp_path)
    (source / "docs" / "SHA256SUMS").write_text("x")
    assert "docs/SHA256SUMS: SHA256SUMS belongs beside configs" in read_refusal(source, tmp_path)


def test_two_bundles_in_a_zip_are_refused(bundle: Path, tmp_path: Path) -> None:
    source = zip_bundle(bundle, tmp_path / "b.zip", ("other/configs/metadata.json", b"{}"), above="spleen/")
    assert "the zip holds 2 bundles (other, spleen)" in read_refusal(source, tmp_path)


def test_a_zip_of_endless_folders_is_refused(bundle: Path, tmp_path: Path) -> None:
    source = zip_bundle(bundle, tmp_path / "b.zip", *((f"docs/{n}/", b"") for n in range(5000)))
    assert "names: no bundle has so many" in read_refusal(source, tmp_path)


def test_a_zip_that_swells_is_refused_before_it_is_read(bundle: Path, tmp_path: Path) -> None:
    source = zip_bundle(bundle, tmp_path / "b.zip", ("docs/zeros.txt", bytes(30_000_000)), method=zipfile.ZIP_DEFLATED)
    assert "no bundle does" in read_refusal(source, tmp_path)


def _patch(content: bytes, record: bytes, at: int, value: bytes) -> bytes:
    start = content.index(record) + at
    return content[:start] + value + content[start + len(value) :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[:-30],
    "an unknown method": lambda content: _patch(content, b"PK\x01\x02", 10, struct.pack("<H", 99)),
    "encrypted": lambda content: _patch(content, b"PK\x01\x02", 8, struct.pack("<H", 1)),
    "a wrong size": lambda content: _patch(content, b"PK\x01\x02", 24, struct.pack("<I", 10)),
    "damaged content": lambda content: _patch(content, b"PK\x03\x04", 50, b"\xff\xff\xff\xff\xff\xff"),
    "a list of zeros": lambda content: content[:-60] + bytes(38) + content[-22:],
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_zip_is_refused(what: str, bundle: Path, tmp_path: Path) -> None:
    source = zip_bundle(bundle, tmp_path / "b.zip", method=zipfile.ZIP_DEFLATED)
    source.write_bytes(DAMAGES[what](source.read_bytes()))
    assert read_refusal(source, tmp_path)
