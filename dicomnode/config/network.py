"""Who calls us and whom we call, in node.toml: [node.tls], [[senders]], [limits] and the addresses of [[peers]]."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dicomnode.config.quantities import Count, Seconds
from dicomnode.config.results import Preferences, Section

__all__ = ["AETitle", "LimitsConfig", "Peer", "Port", "SenderConfig", "TlsConfig", "TlsVersion"]


def _ae_title(value: str) -> str:
    # PS3.5 6.2, AE: at most 16 characters of the default repertoire, no backslash, not only spaces
    title = value.strip()
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


AETitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=0, le=65535)]
TlsVersion = Literal["1.2", "1.3"]


class TlsConfig(Section):
    """Certificate, key and trusted authorities, all as files. ``port``: where TLS is spoken beside [node] port, which
    then stays plain; without, [node] port speaks TLS only."""

    certificate_file: Path
    key_file: Path
    ca_file: Path | None = None
    require_client_certificate: bool = False
    minimum_version: TlsVersion = "1.2"
    port: Port | None = None

    @model_validator(mode="after")
    def _trusts_somebody(self) -> Self:
        if self.require_client_certificate and self.ca_file is None:
            raise ValueError("require_client_certificate needs ca_file: who signs the certificates of our senders")
        return self


class _Rates(Section):
    """How much a sender may send; None: as much as it can."""

    max_object_mb: float | None = Field(default=None, gt=0)
    max_mb_per_minute: float | None = Field(default=None, gt=0)
    max_objects_per_minute: float | None = Field(default=None, gt=0)


class SenderConfig(_Rates):
    """Who may send to us, and from where; what it does not say of rates, [limits] says."""

    ae_title: AETitle
    addresses: tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(ip_network)], ...] = ()
    max_associations: Count | None = None

    def sends_from(self, address: str) -> bool:
        """Whether it may be there."""
        return not self.addresses or any(ip_address(address) in network for network in self.addresses)

    def is_it(self, ae_title: str, address: str) -> bool:
        """Whether it is the one who calls."""
        return self.ae_title == ae_title.strip() and self.sends_from(address)


class LimitsConfig(_Rates):
    """What holds for every sender. ``associations_per_address``: so many of [node] max_associations can one machine
    have; ``request_timeout_s``: so long a caller has for the handshake of TLS, and then for its association request."""

    associations_per_address: Count = 16
    request_timeout_s: Seconds = 15.0


class Peer(Preferences):
    """Another application entity, and what it wants results to be. ``tls_...``: instead of what [node.tls] says;
    ``tls_server_name``: the name in its certificate, where that is not ``host``."""

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

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file belong together")
        if not self.tls and (self.tls_certificate_file or self.tls_ca_file or self.tls_server_name):
            raise ValueError("what begins with tls_ needs tls = true")
        return self

    def beside(self, folder: Path) -> Self:
        """With paths that hold from anywhere, where they were relative to the folder."""
        keys = ("tls_certificate_file", "tls_key_file", "tls_ca_file")
        stated = {key: file for key in keys if (file := getattr(self, key)) is not None}
        return self.model_copy(update={key: folder / file for key, file in stated.items()}) if stated else self
