"""Bundles on disk: find, verify by digest, load. Weights are safetensors; nothing is unpickled, nothing downloaded.

A bundle is a folder in MONAI's layout: ``configs/metadata.json``, ``configs/inference.json``,
``models/model.safetensors``, ``docs/README.md`` (the model card) and ``LICENSE``. ``metadata.json`` names the weights'
SHA-256 as ``weights_sha256``; ``inference.json`` holds the network's definition as ``network_def`` and, beside it, the
fixed scales and settings that the pipeline needs. Below a root, bundles lie as NAME or as NAME/VERSION; the latter are
those that ``installing`` has put there, with the digest of every file in ``installed.json``.
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
    "by_version",
    "damaged",
    "definition_of",
    "find",
    "installed",
    "load",
    "load_from",
    "memory_format",
    "read_facts",
    "verify",
]

BUNDLES = Path(__file__).parent / "bundles"
WEIGHTS = Path("models") / "model.safetensors"
MANIFEST = "installed.json"
_MONAI = "monai.networks.nets"

NETWORKS = frozenset(
    {
        "model_zoo.networks.dose_transfer.DoseTransfer",
        "model_zoo.networks.local_unet.LocalUNet",
        "model_zoo.networks.pet_unet.PetUNet",
        "model_zoo.networks.refinement_cascade.RefinementCascade",
        "model_zoo.networks.volume_unet.VolumeUNet",
    }
)
"""Classes that ``network_def`` may name as ``_target_``, besides MONAI's networks. No other class can be called."""

_FORMER_NAMES = {
    "model_zoo.networks.two_looks.TwoLooks": "model_zoo.networks.refinement_cascade.RefinementCascade",
}
"""Today's name of a network by the one that bundles written earlier hold."""


def read_facts(path: Path) -> BundleFacts:
    """Metadata of the bundle at ``path``; raises BundleError where a file or a key is missing."""
    try:
        metadata = plain_values.from_json(path / "configs" / "metadata.json")
        name, version, digest = (str(metadata[key]) for key in ("name", "version", "weights_sha256"))
        return BundleFacts(path, name, version, digest, metadata)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path.name}: configs/metadata.json cannot be read ({error})") from error


def installed(root: Path = BUNDLES) -> list[BundleFacts]:
    """Every bundle below ``root`` that can be read, by name and version, the newest version last."""
    found = [facts for facts in map(_read, _folders(root)) if isinstance(facts, BundleFacts)]
    return sorted(found, key=lambda facts: (facts.name, by_version(facts.version)))


def damaged(root: Path = BUNDLES) -> list[BundleError]:
    """Why the others cannot be read."""
    return [error for error in map(_read, _folders(root)) if isinstance(error, BundleError)]


def by_version(version: str) -> tuple[tuple[int, int, str], ...]:
    """What sorts versions: 1.9 before 1.10, and 2.0-rc1 before 2.0."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    return (*((2, int(part), "") if part.isdigit() else (0, 0, part) for part in parts), (1, 0, ""))


def _folders(root: Path) -> list[Path]:
    """What is about to be installed, or to be removed, begins with a dot."""
    found = [*root.glob("*/configs/metadata.json"), *root.glob("*/*/configs/metadata.json")]
    folders = [path.parent.parent for path in found]
    return [path for path in folders if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def _read(path: Path) -> BundleFacts | BundleError:
    try:
        return read_facts(path)
    except BundleError as error:
        return error


def find(name: str, version: str | None = None, root: Path = BUNDLES) -> BundleFacts:
    """The bundle of that name (and version). Raises BundleError naming what there is instead."""
    found = [f for f in installed(root) if f.name == name and version in (None, f.version)]
    if not found:
        known = ", ".join(f"{f.name}@{f.version}" for f in installed(root)) or "none"
        raise BundleError(f"no bundle {name}{'@' + version if version else ''}; installed: {known}")
    return found[-1]


def verify(facts: BundleFacts) -> None:
    """Raise BundleError unless the weights have the digest of the metadata, and every file that of its installation."""
    called = f"{facts.name}@{facts.version}"
    weights = facts.path / WEIGHTS
    if not weights.is_file():
        raise BundleError(f"{called}: {WEIGHTS} is missing")
    actual = weights_digest(weights)
    if actual != facts.digest:
        raise BundleError(f"{called}: the weights' SHA-256 is {actual}, but metadata.json says {facts.digest}")
    for name, digest in _recorded(called, facts.path).items():
        path = facts.path / name
        if name != str(WEIGHTS) and (not path.is_file() or weights_digest(path) != digest):
            raise BundleError(f"{called}: {name} is {'not as installed' if path.is_file() else 'missing'}")
        if name == str(WEIGHTS) and digest != actual:
            raise BundleError(f"{called}: {name} is not as installed")


def _recorded(called: str, path: Path) -> Mapping[str, str]:
    """The digests of an installed bundle's files; none for one that was shipped or laid there by hand."""
    try:
        files: Mapping[str, str] = json.loads((path / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, ValueError) as error:
        raise BundleError(f"{called}: {MANIFEST} cannot be read ({type(error).__name__})") from None
    return files


def load(
    name: str, version: str | None = None, *, device: str = "cpu", bf16: bool = False, root: Path = BUNDLES
) -> Model:
    """Verify and load a bundle. Raises BundleError when it is missing, damaged or of an unknown network."""
    return load_from(find(name, version, root), device=device, bf16=bf16)


def load_from(facts: BundleFacts, *, device: str = "cpu", bf16: bool = False) -> Model:
    """The same for a bundle that ``find`` or ``read_facts`` found."""
    verify(facts)
    definition, settings = definition_of(facts)
    network = _network(f"{facts.name}@{facts.version}", _plain(definition, settings), facts.path / WEIGHTS)
    network.to(device, memory_format=memory_format(network))  # type: ignore[call-overload]  # unknown to torch's stubs
    network.eval().requires_grad_(False)
    return Model(facts.name, facts.version, facts.digest, facts.metadata, network, settings, device, bf16)


def definition_of(facts: BundleFacts) -> tuple[dict[str, Any], dict[str, Any]]:
    """``network_def`` of inference.json, and the rest of it. Raises BundleError."""
    try:
        settings = plain_values.from_json(facts.path / "configs" / "inference.json")
        if not isinstance(settings, dict) or not isinstance(settings["network_def"], dict):
            raise ValueError("it is no table with a table 'network_def'")
        return dict(settings.pop("network_def")), settings
    except (OSError, KeyError, TypeError, ValueError) as error:
        called = f"{facts.name}@{facts.version}"
        raise BundleError(f"{called}: configs/inference.json cannot be read ({error})") from error


def _plain(definition: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The definition with what its references and harmless expressions stand for; what is not harmless stays."""
    if not _expressions(definition):
        return definition
    from model_zoo import monai_config

    return monai_config.evaluated(definition, settings)


def _network(called: str, definition: dict[str, Any], weights: Path) -> nn.Module:
    """The network of ``definition`` with its weights in float32."""
    from safetensors.torch import load_file

    from model_zoo.building import limit_network_size
    from model_zoo.monai_rules import without_downloads
    from model_zoo.offline import offline

    kind = _kind(called, definition.pop("_target_", None))
    if words := _expressions(definition):
        raise BundleError(
            f"{called}: network_def holds {words[0]!r}; only plain values are taken, nothing is evaluated"
        )
    definition = without_downloads(called, kind, definition)
    try:
        with offline(called), limit_network_size(called, weights):
            network: nn.Module = kind(**definition)
        found = load_file(weights)
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in found.items()}, strict=True)
    except BundleError:
        raise
    except Exception as error:  # whatever a network makes of arguments that it does not take
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{called}: the weights and inference.json do not fit together ({reason})") from error
    return network


def _kind(called: str, target: object) -> type[nn.Module]:
    """The network's class: one of ours, or one of MONAI's by its short or its whole name."""
    target = _FORMER_NAMES.get(str(target), target)
    module, _, name = str(target).rpartition(".")
    if target in NETWORKS:
        found: type[nn.Module] = getattr(import_module(module), name)
        return found
    if module in ("", _MONAI) and name.isidentifier():
        return _kind_of_monai(called, name)
    raise BundleError(f"{called}: this node does not know the network {target!r}")


def _kind_of_monai(called: str, name: str) -> type[nn.Module]:
    from torch import nn

    try:
        found = getattr(import_module(_MONAI), name, None)
    except ModuleNotFoundError:
        raise BundleError(
            f"{called}: its network {name} is MONAI's, which is not installed here: pip install 'dicomnode[monai]'"
        ) from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise BundleError(f"{called}: this node does not know the network {name!r}")
    return found


def _expressions(value: object) -> list[str]:
    """What MONAI's parser would evaluate or look up; a definition needs none of it."""
    if isinstance(value, Mapping):
        return [word for key, each in value.items() for word in _expressions(each) + _expressions(key)]
    if isinstance(value, list):
        return [word for each in value for word in _expressions(each)]
    return [value] if isinstance(value, str) and (value[:1] in ("$", "@", "%") or value == "_target_") else []


def memory_format(network: nn.Module) -> torch.memory_format:
    """Channels last for convolutions of the network's dimension: what bfloat16 convolutions are fast in."""
    import torch

    dimensions = {p.dim() for p in network.parameters()}
    if 5 in dimensions:
        return torch.channels_last_3d
    return torch.channels_last if 4 in dimensions else torch.preserve_format
