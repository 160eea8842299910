"""Weights of other formats as safetensors. A file that would run code when it is read is refused, not read."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_zoo.registry import BundleError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["convert", "refuse_disguise"]

_WRAPPED = ("state_dict", "model_state_dict", "model", "network")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_LONGEST_HEADER = 100_000_000


def convert(source: Path, target: Path) -> int:
    """Write the tensors of a state dict as safetensors; their number. Raises BundleError for anything else.

    ``source`` is what ``torch.save(network.state_dict(), ...)`` writes, or a dict that holds one under a usual name. It
    is read with ``weights_only=True``: tensors and plain containers, never an object of its choice.
    """
    from safetensors.torch import save_file

    tensors = _tensors(source.name, _read(source))
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, target)
    target.chmod(0o644)
    return len(tensors)


def refuse_disguise(path: Path, called: str) -> None:
    """Raise BundleError unless the file begins as safetensors do: a header's length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise BundleError(f"{called} is a pickle in disguise, which runs code when it is read: it was not read")
    if len(start) < 9 or start[8:9] != b"{" or int.from_bytes(start[:8], "little") > _LONGEST_HEADER:
        raise BundleError(f"{called} is not safetensors")


def _read(source: Path) -> Any:
    import torch

    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            inner = {name.partition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
            raise BundleError(
                f"{source.name} is TorchScript, a program: bring the state dict that it was made from instead"
            )
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))
        wanted = f"it asks for {named[1]}" if named else "it holds more than tensors"
        raise BundleError(f"{source.name} was not read: {wanted}, and only state dicts are taken") from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{source.name} cannot be read as a state dict ({type(error).__name__}: {reason})") from None


def _tensors(called: str, content: Any) -> dict[str, Tensor]:
    import torch

    if isinstance(content, Mapping):
        for name in _WRAPPED:
            if isinstance(content.get(name), Mapping):
                return _tensors(called, content[name])
    if not isinstance(content, Mapping) or not content:
        raise BundleError(f"{called} holds no state dict")
    wrong = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise BundleError(f"{called} holds no state dict: {wrong[0]!r} is not a tensor")
    return dict(content)
