"""Bundles on disk: find, verify by digest, load. Weights are safetensors; nothing is unpickled, nothing downloaded.

A bundle is a folder in MONAI's layout: ``configs/metadata.json``, ``configs/inference.json``,
``models/model.safetensors``, ``docs/README.md`` (the model card) and ``LICENSE``. ``metadata.json`` names the weights'
SHA-256 as ``weights_sha256``; ``inference.json`` holds the network's definition as ``network_def`` and, beside it, the
fixed scales and settings that the pipeline needs. Below a root, bundles lie as NAME or as NAME/VERSION; ``installing``
writes the latter, with the digest of every file in ``installed.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_zoo import plain_values
from model_zoo.bundle import BundleError, BundleFacts, Model, weights_digest

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "BUNDLES",
    "MANIFEST",
    "NETWORKS",
    "WEIGHTS",
    "advise_on_missing",
    "find",
    "list_bundles",
    "list_damaged",
    "load",
    "load_from",
    "memory_format",
    "read_definition",
    "read_facts",
    "read_installation_time",
    "verify",
    "version_key",
]

BUNDLES = Path(__file__).parent / "bundles"
WEIGHTS = Path("models") / "model.safetensors"
MANIFEST = "installed.json"
_MONAI_NETWORKS = "monai.networks.nets"

NETWORKS = frozenset(
    {
        "model_zoo.networks.dose_transfer.DoseTransfer",
        "model_zoo.networks.latent_flow.LatentFlow",
        "model_zoo.networks.local_unet.LocalUNet",
        "model_zoo.networks.mean_and_flow.MeanAndFlow",
        "model_zoo.networks.slice_filler.SliceFiller",
        "model_zoo.networks.pet_unet.PetUNet",
        "model_zoo.networks.refinement_cascade.RefinementCascade",
        "model_zoo.networks.syndiff.SynDiff",
        "model_zoo.networks.volume_unet.VolumeUNet",
    }
)
"""Classes that ``network_def`` may name as ``_target_``, besides MONAI's networks. No other class can be called."""

_NOT_SHIPPED = {"ct_prior": "ct-prior"}
"""Recipe of each bundle that a pipeline needs and that is not shipped."""

_FORMER_NAMES = {
    "model_zoo.networks.two_looks.TwoLooks": "model_zoo.networks.refinement_cascade.RefinementCascade",
}
"""Current name of a network by its name in bundles written earlier."""


def read_facts(path: Path) -> BundleFacts:
    """Return the metadata of the bundle at ``path``; raises BundleError where a file or a key is missing."""
    try:
        metadata = plain_values.read_json(path / "configs" / "metadata.json")
        name, version, digest = (str(metadata[key]) for key in ("name", "version", "weights_sha256"))
        return BundleFacts(path, name, version, digest, metadata)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path.name}: configs/metadata.json cannot be read ({error})") from error


def list_bundles(root: Path = BUNDLES) -> list[BundleFacts]:
    """Return every bundle below ``root`` that can be read, by name and version, the newest version last."""
    bundles = [facts for facts in map(_read, _folders(root)) if isinstance(facts, BundleFacts)]
    return sorted(bundles, key=lambda facts: (facts.name, version_key(facts.version)))


def list_damaged(root: Path = BUNDLES) -> list[BundleError]:
    """Return the errors of the bundles below ``root`` that cannot be read."""
    return [error for error in map(_read, _folders(root)) if isinstance(error, BundleError)]


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return the key that sorts versions: 1.9 before 1.10, and 2.0-rc1 before 2.0."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    return (*((2, int(part), "") if part.isdigit() else (0, 0, part) for part in parts), (1, 0, ""))


def _folders(root: Path) -> list[Path]:
    """Return the folders of bundles; names with a dot belong to an installation or removal under way."""
    metadata = [*root.glob("*/configs/metadata.json"), *root.glob("*/*/configs/metadata.json")]
    folders = [path.parent.parent for path in metadata]
    return [path for path in folders if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def _read(path: Path) -> BundleFacts | BundleError:
    try:
        return read_facts(path)
    except BundleError as error:
        return error


def find(name: str, version: str | None = None, root: Path = BUNDLES) -> BundleFacts:
    """Return the bundle of that name (and version). Raises BundleError naming the installed ones."""
    matches = [f for f in list_bundles(root) if f.name == name and version in (None, f.version)]
    if not matches:
        known = ", ".join(f"{f.name}@{f.version}" for f in list_bundles(root)) or "none"
        raise BundleError(
            f"no bundle {name}{'@' + version if version else ''}; installed: {known}{advise_on_missing(name)}"
        )
    return matches[-1]


def advise_on_missing(name: str) -> str:
    """Return how to make a bundle that does not come with the program, as the end of a message; "" for another."""
    if name not in _NOT_SHIPPED:
        return ""
    makes = f"'dicomnode train {_NOT_SHIPPED[name]}' makes one"
    return f"; it is not shipped: {makes}, 'dicomnode models install' puts it in place"


def verify(facts: BundleFacts) -> None:
    """Raise BundleError unless weights and files have the digests of the metadata and of the installation."""
    label = f"{facts.name}@{facts.version}"
    weights = facts.path / WEIGHTS
    if not weights.is_file():
        raise BundleError(f"{label}: {WEIGHTS} is missing")
    actual = weights_digest(weights)
    if actual != facts.digest:
        raise BundleError(f"{label}: the weights' SHA-256 is {actual}, but metadata.json says {facts.digest}")
    for name, digest in _installed_digests(label, facts.path).items():
        path = facts.path / name
        if name != str(WEIGHTS) and (not path.is_file() or weights_digest(path) != digest):
            raise BundleError(f"{label}: {name} is {'not as installed' if path.is_file() else 'missing'}")
        if name == str(WEIGHTS) and digest != actual:
            raise BundleError(f"{label}: {name} is not as installed")


def _installed_digests(label: str, path: Path) -> Mapping[str, str]:
    """Return the digests of an installed bundle's files; none for a bundle that was shipped or copied by hand."""
    try:
        files: Mapping[str, str] = json.loads((path / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, ValueError) as error:
        raise BundleError(f"{label}: {MANIFEST} cannot be read ({type(error).__name__})") from None
    return files


def read_installation_time(facts: BundleFacts) -> float:
    """Return when the bundle was installed, in seconds since 1970; of a folder copied by hand, when it was written."""
    try:
        return float(json.loads((facts.path / MANIFEST).read_text())["installed_at"])
    except (OSError, KeyError, TypeError, ValueError):
        return (facts.path / "configs" / "metadata.json").stat().st_mtime


def load(
    name: str, version: str | None = None, *, device: str = "cpu", bf16: bool = False, root: Path = BUNDLES
) -> Model:
    """Verify and load a bundle. Raises BundleError when it is missing, damaged or of an unknown network."""
    return load_from(find(name, version, root), device=device, bf16=bf16)


def load_from(facts: BundleFacts, *, device: str = "cpu", bf16: bool = False) -> Model:
    """Verify and load a bundle that ``find`` or ``read_facts`` returned."""
    verify(facts)
    definition, settings = read_definition(facts)
    network = _build_network(
        f"{facts.name}@{facts.version}", _evaluate_references(definition, settings), facts.path / WEIGHTS
    )
    network.to(device, memory_format=memory_format(network))  # type: ignore[call-overload]  # unknown to torch's stubs
    network.eval().requires_grad_(False)
    return Model(facts.name, facts.version, facts.digest, facts.metadata, network, settings, device, bf16)


def read_definition(facts: BundleFacts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``network_def`` of inference.json, and the rest of that file. Raises BundleError."""
    try:
        settings = plain_values.read_json(facts.path / "configs" / "inference.json")
        if not isinstance(settings, dict) or not isinstance(settings["network_def"], dict):
            raise ValueError("it is no table with a table 'network_def'")
        return dict(settings.pop("network_def")), settings
    except (OSError, KeyError, TypeError, ValueError) as error:
        label = f"{facts.name}@{facts.version}"
        raise BundleError(f"{label}: configs/inference.json cannot be read ({error})") from error


def _evaluate_references(definition: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definition with the values of its references and harmless expressions; others stay."""
    if not any(_find_expressions(each) for name, each in definition.items() if name != "_target_"):
        return definition  # and MONAI is not imported, which takes seconds
    from model_zoo import monai_config

    return monai_config.evaluate_definition(definition, settings)


def _build_network(label: str, definition: dict[str, Any], weights: Path) -> nn.Module:
    """Build the network of ``definition`` with its weights in float32."""
    from safetensors.torch import load_file

    from model_zoo.building import limit_network_size
    from model_zoo.monai_rules import disable_downloads
    from model_zoo.offline import offline

    network_class = _network_class(label, definition.pop("_target_", None))
    if expressions := _find_expressions(definition):
        raise BundleError(
            f"{label}: network_def holds {expressions[0]!r}; only plain values are taken, nothing is evaluated"
        )
    definition = disable_downloads(label, network_class, definition)
    try:
        with offline(label), limit_network_size(label, weights):
            network: nn.Module = network_class(**definition)
        weights_by_name = load_file(weights)
        network.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in weights_by_name.items()}, strict=True
        )
    except BundleError:
        raise
    except Exception as error:  # networks raise anything for arguments that they do not take
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{label}: the weights and inference.json do not fit together ({reason})") from error
    return network


def _network_class(label: str, target: object) -> type[nn.Module]:
    """Return the network's class: one of ours, or one of MONAI's by its short or its full name."""
    target = _FORMER_NAMES.get(str(target), target)
    module, _, name = str(target).rpartition(".")
    if target in NETWORKS:
        network_class: type[nn.Module] = getattr(import_module(module), name)
        return network_class
    if module in ("", _MONAI_NETWORKS) and name.isidentifier():
        return _monai_class(label, name)
    raise BundleError(f"{label}: this node does not know the network {target!r}")


def _monai_class(label: str, name: str) -> type[nn.Module]:
    from torch import nn

    try:
        network_class = getattr(import_module(_MONAI_NETWORKS), name, None)
    except ModuleNotFoundError:
        raise BundleError(
            f"{label}: its network {name} is MONAI's, which is not installed here: pip install monai"
        ) from None
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise BundleError(f"{label}: this node does not know the network {name!r}")
    return network_class


def _find_expressions(value: object) -> list[str]:
    """Return the strings that MONAI's parser would evaluate or look up; a definition needs none."""
    if isinstance(value, Mapping):
        return [text for key, each in value.items() for text in _find_expressions(each) + _find_expressions(key)]
    if isinstance(value, list):
        return [text for each in value for text in _find_expressions(each)]
    return [value] if isinstance(value, str) and (value[:1] in ("$", "@", "%") or value == "_target_") else []


def memory_format(network: nn.Module) -> torch.memory_format:
    """Return channels last for the dimension of the network's convolutions: bfloat16 convolutions are fast in it."""
    import torch

    dimensions = {p.dim() for p in network.parameters()}
    if 5 in dimensions:
        return torch.channels_last_3d
    return torch.channels_last if 4 in dimensions else torch.preserve_format
