"""``dicomnode init``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["init"]


def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for node.toml.")] = Path(".")) -> None:
    """Write a commented node.toml and make the folders it names."""
    from dicomnode.config import load
    from dicomnode.errors import ConfigError

    target = folder / "node.toml"
    if target.exists():
        raise ConfigError(f"{target} exists already: edit it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(files("dicomnode").joinpath("node.toml").read_text(encoding="utf-8"), encoding="utf-8")
    config = load(target)
    config.spool_dir.mkdir(parents=True, exist_ok=True)
    print(f"{target} written, data in {config.data_dir}; its routes send nothing until you add 'destinations'")
    print("next: edit it, then 'dicomnode check'")
