"""The running node by its former name, until its last user names ``tests.peers``."""

from __future__ import annotations

from tests.peers.nodes import Node as RunningNode
from tests.peers.nodes import write_config

__all__ = ["RunningNode", "write_config"]
