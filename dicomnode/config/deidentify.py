"""[[deidentify]] of node.toml: what a copy for a research destination keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dicomnode.config.results import ResultsConfig, Section, WithoutFaces

if TYPE_CHECKING:
    from dicomnode.config import Config, Peer

__all__ = ["DeidentifyConfig", "kept_apart", "named", "results_of", "wrong"]


class DeidentifyConfig(Section):
    """One profile. ``key_file``: the secret that pseudonyms, UIDs and shifts of dates are derived with; ``map_file``:
    where it is written down who is who, nowhere if empty; ``dates``: "shift" moves each subject's dates by a number of
    days of their own; ``private``: "safe" keeps private elements of scanners that are known to name nobody;
    ``burned_in``: whether images are sent that may have text in their pixels; ``deface``: heads go without faces."""

    name: str = Field(min_length=1, max_length=32)
    key_file: Path
    map_file: str = ""
    pseudonym_prefix: str = Field(default="", max_length=32, pattern=r"^[A-Za-z0-9._-]*$")
    retain_uids: bool = False
    dates: Literal["remove", "shift"] = "remove"
    patient_characteristics: bool = False
    device: bool = False
    institution: bool = False
    clean_descriptors: bool = False
    private: Literal["remove", "safe"] = "remove"
    burned_in: Literal["refuse", "send"] = "refuse"
    deface: bool = False


def named(config: Config, name: str) -> DeidentifyConfig:
    """The profile of that name. Raises ConfigError."""
    from dicomnode.errors import ConfigError

    for profile in config.deidentify:
        if profile.name == name:
            return profile
    known = ", ".join(profile.name for profile in config.deidentify) or "none"
    raise ConfigError(f"no [[deidentify]] is named {name!r} in {config.path} (there: {known})")


def results_of(stated: ResultsConfig, peer: Peer, profiles: Sequence[DeidentifyConfig]) -> ResultsConfig:
    """What results look like for the peer: a page of a report states the study's date in its pixels, so there is none
    where copies are de-identified."""
    profile = next((each for each in profiles if each.name == peer.deidentify), None)
    if profile is None:
        return stated
    kind = WithoutFaces if profile.deface else ResultsConfig
    return kind.model_validate(stated.model_dump() | {"report_page": ()})


def wrong(config: Config) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Names that nothing has, and secrets where a backup of the node's data would take them along."""
    names = {profile.name for profile in config.deidentify}
    for at, peer in enumerate(config.peers):
        if peer.deidentify and peer.deidentify not in names:
            yield ("peers", at, "deidentify"), f"peer {peer.name!r}: no [[deidentify]] is named {peer.deidentify!r}"
    for at, profile in enumerate(config.deidentify):
        for key in ("key_file", "map_file"):
            if (file := getattr(profile, key)) and kept_apart(config, file).is_relative_to(config.data_dir):
                yield ("deidentify", at, key), f"deidentify {profile.name!r}: {key} must not lie in the data_dir"


def kept_apart(config: Config, file: Path | str) -> Path:
    """Where a file lies that the configuration names."""
    return (config.path.parent / file).resolve()
