"""One study as its routing sees it, loaded once for all decisions about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import retrievals
from db.models import Instance, Output, Series, Study
from dicomnode.config.conditions import Condition, matches
from dicomnode.routing.examination import Examination, read_examination

__all__ = ["SeriesInput", "StudySnapshot", "select_inputs"]


@dataclass(frozen=True)
class SeriesInput:
    """A series that a job may take: the attributes of its first instance, and all its instances."""

    attributes: Mapping[str, Any]
    instances: list[Instance]

    @property
    def series_uid(self) -> str:
        """The UID of the series."""
        return self.instances[0].series.series_uid

    def matches(self, conditions: Mapping[str, Condition]) -> bool:
        """Return whether the series meets all conditions."""
        return matches(conditions, self.attributes)


class StudySnapshot:
    """The facts about a study on which routing decides, each loaded at most once.

    A snapshot holds for one transaction.
    """

    def __init__(self, session: Session, study: Study) -> None:
        self.session, self.study = session, study

    @cached_property
    def is_prefetched_only(self) -> bool:
        """True where retrievals for other studies brought every instance: nobody sent the study to be processed."""
        return retrievals.is_prefetched_only(self.session, self.study)

    @cached_property
    def incomplete_series_uids(self) -> frozenset[str]:
        """The UIDs of the series that retrievals brought in part only."""
        return retrievals.find_partial_series(self.session, self.study)

    @cached_property
    def usable_series(self) -> list[SeriesInput]:
        """The series that a job may take.

        Left out are this node's own results that an archive sent back, series that retrievals brought in part only,
        and series of which retention deleted any part.
        """
        own_result = select(Output.id).where(Output.sop_instance_uid == Instance.sop_instance_uid).exists()
        query = select(Series, Instance).join(Instance).where(Series.study_id == self.study.id, ~own_result)
        by_id: dict[int, SeriesInput] = {}
        for series, instance in self.session.execute(query.order_by(Series.id, Instance.id)):
            if series.series_uid not in self.incomplete_series_uids:
                by_id.setdefault(series.id, SeriesInput(series.attributes, [])).instances.append(instance)
        return [each for each in by_id.values() if all(row.expired_at is None for row in each.instances)]

    @cached_property
    def examination(self) -> Examination | str:
        """The patient and the moment of the study, or in words why they are unknown."""
        examinations = [read_examination(each.attributes) for each in self.usable_series]
        if not examinations:
            return "the study has no series"
        first = examinations[0]
        if not first.patient_id or not first.date:
            return f"the study states no {'Study Date' if first.patient_id else 'Patient ID'}"
        if not all(each.is_same_patient(first) for each in examinations):
            return "the study's series state different patients"
        return first

    @cached_property
    def earlier_studies(self) -> list[StudySnapshot]:
        """The patient's earlier studies that are here, the newest first; empty where the examination is unknown."""
        if isinstance(self.examination, str):
            return []
        query = select(Study).where(Study.patient_id == self.study.patient_id, Study.id != self.study.id)
        dated: list[tuple[str, str, int, StudySnapshot]] = []
        for study in self.session.scalars(query.order_by(Study.id)):
            candidate = StudySnapshot(self.session, study)
            then = candidate.examination
            if isinstance(then, str) or not then.is_same_patient(self.examination):
                continue
            if then.precedes(self.examination):
                dated.append((then.date, then.time, study.id, candidate))
        return [each[3] for each in sorted(dated, key=lambda each: each[:3], reverse=True)]

    def has_match(self, conditions: Mapping[str, Condition]) -> bool:
        """Return whether any usable series meets all conditions."""
        return any(each.matches(conditions) for each in self.usable_series)


def select_inputs(
    conditions_by_name: Mapping[str, Mapping[str, Condition]], series: Sequence[SeriesInput]
) -> dict[str, list[int]]:
    """Return the row numbers of the instances of the first matching series, by input name; unmatched names left out."""
    inputs: dict[str, list[int]] = {}
    for name, conditions in conditions_by_name.items():
        first = next((each for each in series if each.matches(conditions)), None)
        if first is not None:
            inputs[name] = [row.id for row in first.instances]
    return inputs
