"""The sections [[senders]] of node.toml."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated

from pydantic import BeforeValidator

from dicomnode.config.limits import RateConfig
from dicomnode.config.value_types import AETitle, Count

__all__ = ["SenderConfig"]


class SenderConfig(RateConfig):
    """An application entity that may send to this node. Its rates, where set, replace those of [limits]."""

    ae_title: AETitle
    addresses: tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(ip_network)], ...] = ()
    max_associations: Count | None = None

    def allows_address(self, address: str) -> bool:
        """Return whether the sender may call from the address."""
        return not self.addresses or any(ip_address(address) in network for network in self.addresses)

    def matches(self, ae_title: str, address: str) -> bool:
        """Return whether a caller with that title and address is this sender."""
        return self.ae_title == ae_title.strip() and self.allows_address(address)
