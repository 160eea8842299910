"""The series of a study as its routes may use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import retrievals
from db.models import Instance, Output, Series, Study

__all__ = ["Received", "received"]


@dataclass(frozen=True)
class Received:
    """A series: the attributes of its first instance, and all its instances."""

    attributes: Mapping[str, Any]
    instances: list[Instance]


def received(session: Session, study: Study) -> list[Received]:
    """The study's series without those that nobody may take: our results that an archive sent back, and what a search
    has brought in part only, and of what retention has taken away any part."""
    in_part = retrievals.find_partial_series(session, study)
    ours = select(Output.id).where(Output.sop_instance_uid == Instance.sop_instance_uid).exists()
    query = select(Series, Instance).join(Instance).where(Series.study_id == study.id, ~ours)
    found: dict[int, Received] = {}
    for series, instance in session.execute(query.order_by(Series.id, Instance.id)):
        if series.series_uid in in_part:
            continue
        found.setdefault(series.id, Received(series.attributes, [])).instances.append(instance)
    return [each for each in found.values() if all(row.expired_at is None for row in each.instances)]
