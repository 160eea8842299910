"""The section [web] of node.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from dicomnode.config.oidc import OidcConfig
from dicomnode.config.section import Section
from dicomnode.config.tls import TlsVersion
from dicomnode.config.value_types import OptionalPath, Port
from dicomnode.config.web_address import WebAddress, is_loopback

__all__ = ["WebConfig"]


class WebConfig(Section):
    """The web pages, DICOMweb and the viewer. Beyond loopback a token or accounts are a must.

    ``session_idle_h``, ``session_h``: when the session of an account ends without a request, and in any case.
    ``viewer_dir``: None stands for the folder of 'dicomnode viewer install'; ``public_url``: the address in links of
    notifications. With a certificate the server speaks HTTPS.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8104
    token_file: Path | None = None
    accounts: bool = False
    session_idle_h: float = Field(default=1.0, gt=0, le=24)
    session_h: float = Field(default=12.0, gt=0, le=168)
    max_store_gb: float = Field(default=16.0, gt=0)
    mask_names: bool = False
    may_write_routes: bool = False
    viewer_dir: OptionalPath = None
    public_url: WebAddress | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    oidc: OidcConfig | None = None
    minimum_version: TlsVersion = "1.2"

    @model_validator(mode="after")
    def _check_certificate(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together")
        return self

    @model_validator(mode="after")
    def _check_token(self) -> Self:
        if self.enabled and not self.on_loopback and self.token_file is None and not self.accounts:
            raise ValueError("beyond loopback the web asks for a token: name a file with one as token_file")
        return self

    @model_validator(mode="after")
    def _check_oidc(self) -> Self:
        if self.oidc is not None and not (self.accounts and self.public_url):
            raise ValueError("[web.oidc] needs accounts = true and public_url, to which the provider sends people back")
        return self

    @property
    def on_loopback(self) -> bool:
        """True where only this machine can reach the server."""
        return is_loopback(self.host)
