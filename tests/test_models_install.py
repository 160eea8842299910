"""Bundles are installed completely and checked, or refused with the reason and without a trace."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dicomnode import cli
from dicomnode.cli import main
from model_zoo import installing, registry, smoke, state_dicts
from model_zoo.bundle import BundleError, BundleFacts, weights_digest
from model_zoo.installing import Policy
from model_zoo.registry import MANIFEST, WEIGHTS
from tests.peers import write_config
from tests.peers.process import require_program
from tests.prior_bundle import write_monai_bundle, write_prior_bundle, write_zip


class CommandOnUnpickling:
    """Object whose unpickling runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def install(source: Path, root: Path, policy: Policy = Policy()) -> BundleFacts:
    with installing.stage_bundle(source, root, policy) as staged:
        smoke.run(staged.facts, "cpu")
        return staged.commit()


def is_empty(root: Path) -> bool:
    return not root.exists() or list(root.iterdir()) == []


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a folder"])
def test_a_bundle_is_installed_from(form: str, tmp_path: Path) -> None:
    source = write_prior_bundle(tmp_path / "source", "2.0.0")
    if form != "folder":
        source = write_zip(source, tmp_path / "any.zip", top="" if form == "zip" else "prior")
    facts = install(source, tmp_path / "models")
    assert facts.path == tmp_path / "models" / "mri_prior" / "2.0.0"
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["mri_prior"]
    recorded = json.loads((facts.path / MANIFEST).read_text())["files"]
    assert set(recorded) == {
        "configs/inference.json", "configs/metadata.json", "models/model.safetensors", "docs/README.md", "LICENSE"
    }  # fmt: skip
    assert registry.load("mri_prior", "2.0.0", root=tmp_path / "models").digest == facts.digest


def test_a_bundle_of_the_model_zoo_becomes_safetensors_and_none_of_its_programs_come_along(tmp_path: Path) -> None:
    source = write_monai_bundle(tmp_path / "source")
    archive = write_zip(source, tmp_path / "spleen_ct_segmentation_v0.5.3.zip", top="spleen_ct_segmentation")
    facts = install(archive, tmp_path / "models")
    assert (facts.name, facts.version) == ("spleen_ct_segmentation", "0.5.3")
    assert facts.metadata["licence"] == "Apache License"
    assert facts.metadata["intended_use"] == "An example, not for diagnosis"
    assert facts.metadata["converted_from"] == "models/model.pt"
    assert {path.suffix for path in facts.path.rglob("*") if path.is_file()} == {".json", ".md", ".safetensors", ""}
    model = registry.load("spleen_ct_segmentation", root=tmp_path / "models")
    with torch.inference_mode():
        assert model.network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_the_newest_version_is_the_largest_number(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0", "1.10.0-rc1"):
        install(write_prior_bundle(tmp_path / version, version), tmp_path / "models")
    assert registry.find("mri_prior", root=tmp_path / "models").version == "1.10.0"


def _change_weights(source: Path, _: Path) -> Path:
    weights = source / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    return source


def _disguise_pickle(source: Path, witness: Path) -> Path:
    (source / WEIGHTS).write_bytes(pickle.dumps(CommandOnUnpickling(witness)))
    return source


def _disguise_torch_file(source: Path, witness: Path) -> Path:
    torch.save({"weights": CommandOnUnpickling(witness)}, source / WEIGHTS)
    return source


def _write_pickle_as_pt(source: Path, witness: Path) -> Path:
    (source / WEIGHTS).unlink()
    torch.save({"state_dict": {}, "hook": CommandOnUnpickling(witness)}, source / "models" / "model.pt")
    return source


def _write_other_network(source: Path, _: Path) -> Path:
    return write_prior_bundle(source.parent / "other", "2.0.0", definition={"channels": [16, 8], "blocks": 1})


def _set_unknown_network(source: Path, _: Path) -> Path:
    path = source / "configs" / "inference.json"
    path.write_text(json.dumps({"network_def": {"_target_": "os.system", "command": "true"}}))
    return source


def _write_nan_weights(source: Path, _: Path) -> Path:
    save_file({k: v * float("nan") for k, v in load_file(source / WEIGHTS).items()}, source / WEIGHTS)
    metadata = source / "configs" / "metadata.json"
    digest = weights_digest(source / WEIGHTS)
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"weights_sha256": digest}))
    return source


def _add_link(source: Path, _: Path) -> Path:
    (source / "docs" / "secret.md").symlink_to("/etc/passwd")
    return source


def _write_zip_slip(source: Path, _: Path) -> Path:
    path = write_zip(source, source.parent / "slip.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped.md", "out")
    return path


def _write_zip_with_link(source: Path, _: Path) -> Path:
    path = write_zip(source, source.parent / "link.zip")
    info = zipfile.ZipInfo("docs/link.md")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    return path


def _remove_metadata(source: Path, _: Path) -> Path:
    (source / "configs" / "metadata.json").unlink()
    return source


def _set_bad_version(source: Path, _: Path) -> Path:
    metadata = source / "configs" / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"version": "../../1"}))
    return source


FAULTS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "changed weights": (_change_weights, "SHA-256"),
    "pickle in disguise": (_disguise_pickle, r"models/model\.safetensors is a pickle in disguise"),
    "torch file in disguise": (_disguise_torch_file, "pickle in disguise"),
    "pickle as model.pt": (_write_pickle_as_pt, r"model\.pt was not read: it asks for posix\.system"),
    "weights of another network": (_write_other_network, "do not fit together"),
    "a network that nobody knows": (_set_unknown_network, r"does not know the network 'os\.system'"),
    "no finite numbers": (_write_nan_weights, "gives no finite numbers on cpu for an input of zeros"),
    "a link": (_add_link, r"docs/secret\.md is a link"),
    "a name that leads out of the zip": (_write_zip_slip, r"'\.\./\.\./escaped\.md', which leads out of its folder"),
    "a link in the zip": (_write_zip_with_link, r"docs/link\.md, a link"),
    "no bundle": (_remove_metadata, r"holds no configs/metadata\.json"),
    "a version that leads out of the folder": (_set_bad_version, "letters, digits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_refused_and_leaves_no_trace(fault: str, tmp_path: Path) -> None:
    break_it, reason = FAULTS[fault]
    source = break_it(write_prior_bundle(tmp_path / "source", "2.0.0"), tmp_path / "witness")
    with pytest.raises(BundleError, match=reason):
        install(source, tmp_path / "models")
    assert is_empty(tmp_path / "models")
    assert not (tmp_path / "witness").exists(), "nothing ran"
    assert not (tmp_path.parent / "escaped.md").exists()


def test_what_is_too_large_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    source = write_prior_bundle(tmp_path / "source", "2.0.0")
    for each in (source, write_zip(source, tmp_path / "bundle.zip")):
        with pytest.raises(BundleError, match=r"more than 1e-05 GB, which \[models\] max_bundle_gb allows"):
            install(each, tmp_path / "models", Policy(max_bytes=10_000))
    assert is_empty(tmp_path / "models")


def test_a_version_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    first = install(write_prior_bundle(tmp_path / "a", "2.0.0"), tmp_path / "models")
    with pytest.raises(BundleError, match=r"mri_prior@2\.0\.0 is on this node already, with other weights"):
        install(write_prior_bundle(tmp_path / "b", "2.0.0", seed=1), tmp_path / "models")
    with pytest.raises(BundleError, match=r"mri_prior@1\.0\.0 is on this node already"):
        install(write_prior_bundle(tmp_path / "c", "1.0.0"), tmp_path / "models")
    assert [facts.digest for facts in registry.list_bundles(tmp_path / "models")] == [first.digest]


@pytest.mark.parametrize("name", ["configs/inference.json", "docs/README.md", "models/model.safetensors"])
def test_a_file_that_was_changed_after_installation_stops_the_load(name: str, tmp_path: Path) -> None:
    facts = install(write_prior_bundle(tmp_path / "source", "2.0.0"), tmp_path / "models")
    path = facts.path / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"not as installed|SHA-256"):
        registry.load("mri_prior", "2.0.0", root=tmp_path / "models")


def _make_key(folder: Path, name: str) -> Path:
    program = require_program("/usr/bin/openssl", "openssl")
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run([program, "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run([program, "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return public


def _sign(bundle: Path, public: Path) -> Path:
    """Sign the bundle as docs/models.md says, with sha256sum and OpenSSL; return its folder."""
    files = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    listed = subprocess.run(["sha256sum", *files], cwd=bundle, capture_output=True, check=True).stdout
    (bundle / "SHA256SUMS").write_bytes(listed)
    command = ["/usr/bin/openssl", "pkeyutl", "-sign", "-rawin", "-inkey", str(public.with_suffix(".key"))]
    command += ["-in", str(bundle / "SHA256SUMS"), "-out", str(bundle / "SHA256SUMS.sig")]
    subprocess.run(command, check=True)
    return bundle


def test_a_signature_by_a_trusted_key_is_demanded_and_checked(tmp_path: Path) -> None:
    own_key, foreign_key = _make_key(tmp_path, "ours"), _make_key(tmp_path, "theirs")
    policy = Policy(trusted=(own_key,), require_signature=True)
    with pytest.raises(BundleError, match="is not signed"):
        install(write_prior_bundle(tmp_path / "unsigned", "2.0.0"), tmp_path / "models", policy)
    other_key = _sign(write_prior_bundle(tmp_path / "wrong", "2.0.0"), foreign_key)
    for each in (policy, Policy(trusted=(own_key,))):
        with pytest.raises(BundleError, match="by none of the 1 keys"):
            install(other_key, tmp_path / "models", each)
    changed = _sign(write_prior_bundle(tmp_path / "changed", "2.0.0"), own_key)
    (changed / "configs" / "inference.json").write_text("{}")
    with pytest.raises(BundleError, match=r"configs/inference\.json differs from its digest in SHA256SUMS"):
        install(changed, tmp_path / "models", policy)
    added = _sign(write_prior_bundle(tmp_path / "added", "2.0.0"), own_key)
    (added / "docs" / "more.md").write_text("more")
    with pytest.raises(BundleError, match=r"docs/more\.md is not in SHA256SUMS"):
        install(added, tmp_path / "models", policy)
    assert is_empty(tmp_path / "models")
    good = install(_sign(write_prior_bundle(tmp_path / "good", "2.0.0"), own_key), tmp_path / "models", policy)
    assert json.loads((good.path / MANIFEST).read_text())["signed_by"] == "ours.pem"


def test_torchscript_is_refused_as_the_program_that_it_is(tmp_path: Path) -> None:
    source = tmp_path / "model.pt"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("model/constants.pkl", b"")
        archive.writestr("model/code/__torch__.py", "pass")
    with pytest.raises(BundleError, match="is TorchScript, a program"):
        state_dicts.convert_to_safetensors(source, tmp_path / "out.safetensors")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}])
def test_what_holds_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "in.pt")
    with pytest.raises(BundleError, match="holds no state dict"):
        state_dicts.convert_to_safetensors(tmp_path / "in.pt", tmp_path / "out.safetensors")


def test_convert_writes_the_same_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor([1, 2])}
    torch.save({"state_dict": weights}, tmp_path / "in.pt")
    words = ["models", "convert", str(tmp_path / "in.pt"), str(tmp_path / "out.safetensors")]
    assert main(words) == 0
    assert "2 tensors" in capsys.readouterr().out
    found = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert main(words) == 1, "nothing is overwritten"


def test_the_command_shows_licence_and_use_and_a_refusal_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "node")
    source = write_prior_bundle(tmp_path / "source", "2.0.0")

    def command(*words: str) -> int:
        return cli.main(["--config", str(config), "models", *words])

    assert command("install", str(source), "--yes") == 0
    printed = capsys.readouterr().out
    for text in ("Tests only.", "Apache-2.0", weights_digest(source / WEIGHTS), "ran on cpu", "finite"):
        assert text in printed
    assert command("list", "--json") == 0
    listed = [(row["name"], row["version"]) for row in json.loads(capsys.readouterr().out)]
    assert ("mri_prior", "2.0.0") in listed
    assert ("mri_prior", "1.0.0") in listed, "the shipped one"
    assert command("install", str(source), "--yes") == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert command("verify", "mri_prior@2.0.0") == 0
    folder = tmp_path / "node" / "data" / "models" / "mri_prior" / "2.0.0"
    (folder / "LICENSE").write_text("another")
    assert command("verify", "mri_prior@2.0.0") == 1
    assert "LICENSE is not as installed" in " ".join(capsys.readouterr().out.split())
