"""Conversion of weights to safetensors. A file that would run code when it is read is refused, not read."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_zoo.bundle import BundleError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["convert_to_safetensors", "refuse_disguise"]

_WRAPPED = ("state_dict", "model_state_dict", "model", "network")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_MOST_SWELLING = 16
_LONGEST_HEADER = 100_000_000


def convert_to_safetensors(source: Path, target: Path) -> int:
    """Write the tensors of a state dict as safetensors, and return their number.

    ``source``: a file by ``torch.save(network.state_dict(), ...)``, or of a dict that holds a state dict under a usual
    name. It is read with ``weights_only=True``: tensors and plain containers, no other object. Raises BundleError for
    any other file.
    """
    from safetensors.torch import save_file

    tensors = _tensors(source.name, _read(source))
    _check_size(source, tensors)
    try:
        save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, target)
    except Exception as error:  # kinds of tensors and names that safetensors cannot hold
        raise BundleError(f"{source.name}: its tensors cannot be stored ({_reason(error)})") from None
    target.chmod(0o644)
    return len(tensors)


def _check_size(source: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise BundleError for tensors that repeat one number endlessly, in a small file."""
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    if total > _MOST_SWELLING * source.stat().st_size:
        raise BundleError(f"{source.name}: its tensors would take {total / 1e6:.3g} MB, more than the file can hold")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def refuse_disguise(path: Path, label: str) -> None:
    """Raise BundleError unless the file begins as safetensors do: a header's length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise BundleError(f"{label} is a pickle in disguise, which runs code when it is read: it was not read")
    if len(start) < 9 or start[8:9] != b"{" or int.from_bytes(start[:8], "little") > _LONGEST_HEADER:
        raise BundleError(f"{label} is not safetensors")


def _read(source: Path) -> Any:
    import torch

    if zipfile.is_zipfile(source):
        inner = _names(source)
        if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
            raise BundleError(
                f"{source.name} is TorchScript, a program: bring the state dict that it was made from instead"
            )
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        global_name = _GLOBAL.search(str(error))
        reason = f"it asks for {global_name[1]}" if global_name else "it holds more than tensors"
        raise BundleError(f"{source.name} was not read: {reason}, and only state dicts are taken") from None
    except Exception as error:  # damaged files fail in many ways
        raise BundleError(f"{source.name} cannot be read as a state dict ({_reason(error)})") from None


def _names(source: Path) -> set[str]:
    """Return the names in the archive without its folder. Raises BundleError for an archive that swells when read."""
    try:
        with zipfile.ZipFile(source) as archive:
            total = sum(info.file_size for info in archive.infolist())
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BundleError(f"{source.name} cannot be read as a state dict ({_reason(error)})") from None
    if total > _MOST_SWELLING * source.stat().st_size:
        raise BundleError(f"{source.name}: its archive would take {total / 1e6:.3g} MB, more than the file can hold")
    return {name.partition("/")[2] for name in names}


def _tensors(label: str, content: Any) -> dict[str, Tensor]:
    import torch

    for _ in _WRAPPED:
        wrapped = [content[name] for name in _WRAPPED if isinstance(content, Mapping) and name in content]
        content = next((each for each in wrapped if isinstance(each, Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise BundleError(f"{label} holds no state dict")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise BundleError(f"{label} holds no state dict: {others[0][:64]!r} is not a tensor")
    return dict(content)
