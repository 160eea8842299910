"""The section [web] of node.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from dicomnode.config.network import Port, TlsVersion
from dicomnode.config.notifications import WebAddress, is_loopback
from dicomnode.config.quantities import PathText
from dicomnode.config.results import Section

__all__ = ["WebConfig"]


class WebConfig(Section):
    """The web pages, DICOMweb and the viewer. Beyond loopback a token is a must; ``viewer_dir`` empty: where
    'dicomnode viewer install' puts the viewer. ``public_url``: how people reach it, for links in notifications. With a
    certificate it is HTTPS."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8104
    token_file: Path | None = None
    max_store_gb: float = Field(default=16.0, gt=0)
    mask_names: bool = False
    viewer_dir: PathText = ""
    public_url: WebAddress | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    minimum_version: TlsVersion = "1.2"

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together")
        return self

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.enabled and not self.on_loopback and self.token_file is None:
            raise ValueError("beyond loopback the web asks for a token: name a file with one as token_file")
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether nobody but this machine reaches it."""
        return is_loopback(self.host)
