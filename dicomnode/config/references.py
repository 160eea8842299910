"""References between the sections of node.toml: names that occur twice, and names that nothing has."""

from __future__ import annotations

from collections.abc import Iterator

from dicomnode.config.config import Config
from dicomnode.config.routes import TRIAL_PREFIX, WORKITEM_PREFIX

__all__ = ["Violation", "find_violations"]

Violation = tuple[tuple[str | int, ...], str]
"""The place in the file, as keys and numbers of entries, and the reason."""


def find_violations(config: Config) -> Iterator[Violation]:
    """Yield each reference that cannot be followed and each name that is not unique. Paths must be absolute."""
    yield from _find_repeated_names(config)
    yield from _check_peers(config)
    yield from _check_routes(config)
    yield from _check_profiles(config)
    yield from _check_learning(config)
    yield from config.notifications.find_violations([route.name for route in config.routes])


def _find_repeated_names(config: Config) -> Iterator[Violation]:
    for section in ("peers", "routes", "deidentify", "learning"):
        names = [entry.name for entry in getattr(config, section)]
        for at, name in enumerate(names):
            if name in names[:at]:
                yield (section, at, "name"), f"another of the {section} is already named {name!r}"


def _check_peers(config: Config) -> Iterator[Violation]:
    for at, peer in enumerate(config.peers):
        try:
            config.results.with_overrides(peer)
        except ValueError:
            yield ("peers", at, "name"), f"peer {peer.name!r}: labelled and clean cannot both be off, with [results]"


def _check_routes(config: Config) -> Iterator[Violation]:
    peers = {peer.name for peer in config.peers}
    for at, route in enumerate(config.routes):
        if route.name.startswith(TRIAL_PREFIX):
            yield ("routes", at, "name"), f"route {route.name!r}: names that begin with {TRIAL_PREFIX!r} are of trials"
        if route.name.startswith(WORKITEM_PREFIX):
            reason = f"route {route.name!r}: names that begin with {WORKITEM_PREFIX!r} are of workitems"
            yield ("routes", at, "name"), reason
        for unknown in set(route.destinations) - peers:
            yield ("routes", at, "destinations"), f"route {route.name!r} delivers to {unknown!r}, which is no peer"
        for key in ("with_from", "prior_from"):
            if (source := getattr(route, key)) and source not in peers:
                yield ("routes", at, key), f"route {route.name!r} asks {source!r}, which is no peer"
        for repeated in sorted(set(route.with_) & set(route.prior)):
            yield ("routes", at, "prior"), f"route {route.name!r} has the input {repeated!r} under 'with' and 'prior'"


def _check_profiles(config: Config) -> Iterator[Violation]:
    """Yield profiles that are missing, and secrets in the data folder, where a backup would take them along."""
    names = {profile.name for profile in config.deidentify}
    for at, peer in enumerate(config.peers):
        if peer.deidentify and peer.deidentify not in names:
            yield ("peers", at, "deidentify"), f"peer {peer.name!r}: no [[deidentify]] is named {peer.deidentify!r}"
    for at, profile in enumerate(config.deidentify):
        for key in ("key_file", "map_file"):
            if (file := getattr(profile, key)) and file.resolve().is_relative_to(config.data_dir):
                yield ("deidentify", at, key), f"deidentify {profile.name!r}: {key} must not lie in the data_dir"


def _check_learning(config: Config) -> Iterator[Violation]:
    """Yield learning from a pipeline that no route runs, or whose routes name their model, which nothing replaces."""
    for at, each in enumerate(config.learning):
        models = [route.model for route in config.routes if route.pipeline == each.pipeline]
        if not models:
            yield ("learning", at, "pipeline"), f"learning {each.name!r}: no route runs the pipeline {each.pipeline!r}"
        elif all(models):
            reason = f"learning {each.name!r}: the routes of {each.pipeline!r} name their model, which nothing replaces"
            yield ("learning", at, "pipeline"), reason
