"""The section [node.tls] of node.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from dicomnode.config.section import Section
from dicomnode.config.value_types import Port

__all__ = ["TlsConfig", "TlsVersion"]

TlsVersion = Literal["1.2", "1.3"]


class TlsConfig(Section):
    """Certificate, key and trusted authorities, all as files. ``port``: a second port, for TLS, while [node] port stays
    plain; None: [node] port speaks TLS only."""

    certificate_file: Path
    key_file: Path
    ca_file: Path | None = None
    require_client_certificate: bool = False
    minimum_version: TlsVersion = "1.2"
    port: Port | None = None

    @model_validator(mode="after")
    def _check_authority(self) -> Self:
        if self.require_client_certificate and self.ca_file is None:
            raise ValueError("require_client_certificate needs ca_file: who signs the certificates of our senders")
        return self
