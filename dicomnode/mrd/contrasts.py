"""Every image of one acquisition: its contrasts (echoes) and sets, each k-space of its own on a common grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dicomnode.mrd.acquisitions import MRD
from dicomnode.mrd.kspace import to_kspace
from dicomnode.mrd.lines import list_images
from pipelines.contract import KSpace

__all__ = ["to_images"]


def to_images(mrd: MRD) -> list[tuple[KSpace, dict[str, Any]]]:
    """Return k-space and facts of each contrast and set, labelled "contrast 2 of 3"; a single image has no label.

    Raises ``Refused`` as :func:`to_kspace` does.
    """
    choices = list_images(mrd)
    if not choices:
        return [to_kspace(mrd)]
    return [_labelled(mrd, choice, choices) for choice in choices]


def _labelled(
    mrd: MRD, choice: Mapping[str, int], choices: Sequence[Mapping[str, int]]
) -> tuple[KSpace, dict[str, Any]]:
    kspace, facts = to_kspace(mrd, contrast=choice["contrast"], set=choice["set"])
    words = []
    for counter, value in choice.items():
        values = sorted({other[counter] for other in choices})
        if len(values) == 1:
            continue
        words.append(f"{counter} {values.index(value) + 1} of {len(values)}")
        if counter == "contrast":
            facts["te_ms"] = _echo_time(facts["te_ms"], values, value)
    label = ", ".join(words)
    return replace(kspace, label=label), facts | {"image": label}


def _echo_time(echo_times_ms: tuple[float, ...], contrasts: Sequence[int], contrast: int) -> tuple[float, ...]:
    """Return the echo time of a contrast; empty unless the header states one for each, in the order of the counter."""
    return (echo_times_ms[contrast],) if len(echo_times_ms) > max(contrasts) else ()
