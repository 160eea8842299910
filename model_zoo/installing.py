"""Install bundles: unpack and check in a separate folder, then move into place by one rename.

Until that rename no running process can see the bundle, and a failure leaves no trace. Bundles of MONAI's Model Zoo are
accepted in their layout: weights become safetensors, and metadata.json gets the keys that this node reads.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_zoo import monai_rules, plain_values, registry, signing, state_dicts, unpacking
from model_zoo.bundle import BundleError, BundleFacts, weights_digest
from model_zoo.registry import MANIFEST, WEIGHTS

__all__ = ["Policy", "StagedBundle", "remove_bundle", "stage_bundle"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,31}")
_SUFFIXES = (".json", ".md", ".txt", ".png", ".jpg", ".jpeg", ".csv")
"""Suffixes of files in an installed bundle beside its weights: neither programs nor weights in other formats."""
_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Policy:
    """A site's conditions for bundles.

    ``trusted``: files with Ed25519 public keys; ``trusted_code``: by bundle the SHA-256 of the configuration whose
    expressions and classes the site has read and allows.
    """

    max_bytes: int = 8_000_000_000
    trusted: Sequence[Path] = ()
    require_signature: bool = False
    trusted_code: Mapping[str, str] = field(default_factory=dict)

    def trusts(self, facts: BundleFacts) -> bool:
        """Return whether the site has allowed the expressions of this bundle's configuration in its current text."""
        return self.trusted_code.get(facts.name) == monai_rules.configuration_digest(facts.path)


@dataclass(frozen=True)
class StagedBundle:
    """A checked bundle that is not installed yet; ``signed_by``: the file name of the key, or empty."""

    facts: BundleFacts
    signed_by: str
    converted_from: str
    root: Path
    trusted_code: bool = False

    def commit(self) -> BundleFacts:
        """Move the bundle into its place, NAME/VERSION, with the digest of every file."""
        place = self.root / self.facts.name / self.facts.version
        _write_manifest(self)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            raise BundleError(f"{self.facts.name}@{self.facts.version} is installed already")
        try:
            self.facts.path.rename(place)
        except OSError as error:
            raise BundleError(f"{self.facts.name}@{self.facts.version}: not put in place ({error.strerror})") from None
        for folder in (place.parent, self.root):
            _sync(folder)
        return registry.read_facts(place)


@contextmanager
def stage_bundle(source: Path, root: Path, policy: Policy) -> Iterator[StagedBundle]:
    """Yield the bundle at ``source``, checked, in a temporary folder. Raises BundleError with the reason."""
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".incoming-", dir=root))
    try:
        unpacking.copy_bundle(source, work / "as-it-came", max_bytes=policy.max_bytes)
        signed_by = signing.check_signature(work / "as-it-came", policy.trusted, required=policy.require_signature)
        converted_from = _arrange(work / "as-it-came", work / "bundle", unpacking.bundle_name(source))
        facts = registry.read_facts(work / "bundle")
        _check_new(facts, root)
        registry.verify(facts)
        trusted_code = policy.trusts(facts)
        if not trusted_code:
            label = f"{facts.name}@{facts.version}"
            monai_rules.check_configuration(
                label, registry.read_definition(facts)[1], monai_rules.configuration_digest(facts.path)
            )
        yield StagedBundle(facts, signed_by, converted_from, root, trusted_code)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_bundle(facts: BundleFacts, root: Path) -> None:
    """Remove an installed bundle by one rename; a job that has loaded the bundle is not affected."""
    if not facts.path.is_relative_to(root):
        raise BundleError(f"{facts.name}@{facts.version} came with the program: only installed bundles are removed")
    trash = Path(tempfile.mkdtemp(prefix=".removed-", dir=root))
    facts.path.rename(trash / "bundle")
    _sync(facts.path.parent)
    shutil.rmtree(trash, ignore_errors=True)
    if facts.path.parent != root and not any(facts.path.parent.iterdir()):
        facts.path.parent.rmdir()


def _arrange(source: Path, target: Path, name: str) -> str:
    """Move the files to install to ``target``, weights as safetensors; return the file these were made from."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        inner = path.relative_to(source)
        if path.suffix.lower() in (*_SUFFIXES, *_YAML) or path.name.upper().startswith(
            ("LICENSE", "LICENCE", signing.LIST)
        ):
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            path.rename(target / inner)
    (target / MANIFEST).unlink(missing_ok=True)  # of another installation
    (target / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
    converted_from = _install_weights(source, target)
    _write_as_json(target / monai_rules.INFERENCE)
    _complete_metadata(target, name, converted_from)
    return converted_from


def _install_weights(source: Path, target: Path) -> str:
    """Move or convert the weights; return the converted file. MONAI's bundles have model.pt, some also model.ts."""
    if (source / WEIGHTS).is_file():
        state_dicts.refuse_disguise(source / WEIGHTS, str(WEIGHTS))
        (source / WEIGHTS).rename(target / WEIGHTS)
        return ""
    for name in ("model.pt", "model.pth", "model.ts"):
        if (path := source / "models" / name).is_file():
            state_dicts.convert_to_safetensors(path, target / WEIGHTS)
            return f"models/{name}"
    raise BundleError("the bundle holds no weights: neither models/model.safetensors nor models/model.pt")


def _write_as_json(inference: Path) -> None:
    """Convert a configuration in YAML, plain values only, to the JSON that all other code reads."""
    yaml_files = [path for suffix in _YAML if (path := inference.with_suffix(suffix)).is_file()]
    if inference.is_file():
        return
    if not yaml_files:
        raise BundleError("the bundle holds no configs/inference.json, nor one in YAML")
    try:
        inference.write_text(json.dumps(plain_values.read_yaml(yaml_files[0]), indent=2) + "\n")
    except ModuleNotFoundError:
        raise BundleError(f"configs/{yaml_files[0].name} needs PyYAML: pip install pyyaml") from None
    except (OSError, TypeError, ValueError) as error:
        raise BundleError(f"configs/{yaml_files[0].name} cannot be read ({error})") from None


def _complete_metadata(bundle: Path, name: str, converted_from: str) -> None:
    """Add missing keys to the metadata of bundles not of ours, with the digest of the converted weights."""
    path = bundle / "configs" / "metadata.json"
    try:
        metadata: dict[str, Any] = plain_values.read_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"configs/metadata.json cannot be read ({error})") from None
    _check_metadata(metadata)
    if not converted_from and "weights_sha256" in metadata:
        return
    if not _NAME.fullmatch(str(metadata.get("name", ""))):
        metadata |= {"title": metadata.get("name", ""), "name": name}
    metadata["version"] = str(metadata.get("version", ""))
    metadata.setdefault("licence", _first_line(bundle / "LICENSE"))
    metadata.setdefault("trained_on", str(metadata.get("data_source", "")) or "not stated")
    metadata["weights_sha256"] = weights_digest(bundle / WEIGHTS)
    metadata |= {"converted_from": converted_from} if converted_from else {}
    path.write_text(json.dumps(metadata, indent=2) + "\n")


def _check_metadata(metadata: object) -> None:
    """Raise BundleError unless the values have the types on which all other code relies."""
    if not isinstance(metadata, dict):
        raise BundleError("configs/metadata.json is no table of keys and values")
    for key in ("name", "version"):
        if not isinstance(metadata.get(key, ""), str | int | float):
            raise BundleError(f"configs/metadata.json: {key} is no text")
    declared = metadata.get("network_data_format", {})
    if not isinstance(declared, dict) or not all(
        isinstance(side, dict) and all(isinstance(each, dict) for each in side.values())
        for side in (declared.get(name, {}) for name in ("inputs", "outputs"))
    ):
        raise BundleError("configs/metadata.json: network_data_format is no table of inputs and outputs")


def _first_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line.strip() for line in lines if line.strip()), "not stated")


def _check_new(facts: BundleFacts, root: Path) -> None:
    if not (_NAME.fullmatch(facts.name) and _VERSION.fullmatch(str(facts.version))):
        raise BundleError(f"{facts.name!r} version {facts.version!r}: letters, digits and . _ - only, no more than 64")
    for folder in (root, registry.BUNDLES):
        for bundle in registry.list_bundles(folder):
            if (bundle.name, bundle.version) == (facts.name, facts.version):
                same = "with the same weights" if bundle.digest == facts.digest else "with other weights"
                raise BundleError(f"{facts.name}@{facts.version} is on this node already, {same}")


def _write_manifest(bundle: StagedBundle) -> None:
    path = bundle.facts.path
    files = sorted(each for each in path.rglob("*") if each.is_file() and each.name != MANIFEST)
    digests = {str(each.relative_to(path)): weights_digest(each) for each in files}
    content: dict[str, Any] = {"files": digests, "signed_by": bundle.signed_by, "converted_from": bundle.converted_from}
    content["installed_at"] = time.time()
    (path / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")
    for each in (*files, path / MANIFEST):
        each.chmod(0o644)
        _sync(each)
    for folder in sorted({each.parent for each in files}, reverse=True):
        folder.chmod(0o755)
        _sync(folder)
    path.chmod(0o755)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
