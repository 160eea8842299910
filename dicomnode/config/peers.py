"""The sections [[peers]] of node.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import StrictBool, model_validator

from dicomnode.config.results import Preferences
from dicomnode.config.value_types import AETitle, Port

__all__ = ["Peer"]


class Peer(Preferences):
    """Another application entity, with its preferences for results. ``tls_...`` replaces [node.tls];
    ``tls_server_name``: the name in its certificate, where that differs from ``host``. ``commitment``: whether it is
    asked to commit what was delivered; ``verify``: how it is searched for that otherwise."""

    name: str
    ae_title: AETitle
    host: str = "127.0.0.1"
    port: Port
    tls: bool = False
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    tls_ca_file: Path | None = None
    tls_server_name: str = ""
    deidentify: str = ""
    commitment: Literal["auto"] | StrictBool = "auto"
    verify: Literal["", "c-find"] = ""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file belong together")
        if not self.tls and (self.tls_certificate_file or self.tls_ca_file or self.tls_server_name):
            raise ValueError("what begins with tls_ needs tls = true")
        return self
