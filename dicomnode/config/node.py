"""The section [node] of node.toml."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field

from dicomnode.config.section import Section
from dicomnode.config.tls import TlsConfig
from dicomnode.config.value_types import AETitle, Count, Port, Seconds, TimeZone

__all__ = ["NodeConfig"]


class NodeConfig(Section):
    """The node's own application entity, its data folder and its log."""

    ae_title: AETitle = "DICOMNODE"
    host: str = "0.0.0.0"
    port: Port = 11112
    data_dir: Path = Path("data")
    max_associations: Count = 32
    max_pdu: int = Field(default=131072, ge=4096, le=4294967294)
    network_timeout_s: Seconds = 60.0
    log_format: Literal["text", "json"] = "text"
    timezone: TimeZone = ""
    tls: TlsConfig | None = None

    def to_local_time(self, moment: datetime) -> datetime:
        """Return the moment in the zone of ``timezone``, or in that of the machine."""
        return moment.astimezone(ZoneInfo(self.timezone) if self.timezone else None)
