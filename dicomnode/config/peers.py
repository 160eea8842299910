"""The sections [[peers]] of node.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import StrictBool, model_validator

from dicomnode.config.results import Preferences
from dicomnode.config.value_types import AETitle, Port
from dicomnode.config.web_address import WebAddress, is_encrypted

__all__ = ["Peer"]


class Peer(Preferences):
    """Another application entity, with its preferences for results. ``tls_...`` replaces [node.tls];
    ``tls_server_name``: the name in its certificate, where that differs from ``host``. ``commitment``: whether it is
    asked to commit what was delivered; ``verify``: how it is searched for that otherwise; ``dicomweb_url``: the root of
    its DICOMweb services; ``availability_notification``: whether it learns where delivered results can be
    retrieved."""

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
    verify: Literal["", "c-find", "wado-rs"] = ""
    dicomweb_url: WebAddress | None = None
    dicomweb_token_file: Path | None = None
    dicomweb_ca_file: Path | None = None
    availability_notification: bool = False

    @property
    def availability_name(self) -> str:
        """The peer as a receiver of notifications: the name that lists have."""
        return f"availability: {self.name}"

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file belong together")
        if not self.tls and (self.tls_certificate_file or self.tls_ca_file or self.tls_server_name):
            raise ValueError("what begins with tls_ needs tls = true")
        return self

    @model_validator(mode="after")
    def _check_dicomweb(self) -> Self:
        if self.dicomweb_url is None:
            if self.verify == "wado-rs":
                raise ValueError('verify = "wado-rs" needs dicomweb_url')
            if self.dicomweb_token_file or self.dicomweb_ca_file:
                raise ValueError("what begins with dicomweb_ needs dicomweb_url")
        elif self.dicomweb_token_file and not is_encrypted(self.dicomweb_url):
            raise ValueError("a token is not sent without TLS: dicomweb_url begins with https://")
        return self
