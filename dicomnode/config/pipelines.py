"""The section [pipelines] of node.toml."""

from __future__ import annotations

from dicomnode.config.section import Section

__all__ = ["PipelinesConfig"]


class PipelinesConfig(Section):
    """Pipelines of the site. ``site``: names of entry points of the group dicomnode.pipelines; no other is loaded."""

    site: tuple[str, ...] = ()
