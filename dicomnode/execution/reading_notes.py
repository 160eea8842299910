"""Key Object notes of a reader's decision, one for all destinations that have the same objects of the result.

They go to the destinations that are configured for Key Objects (``key_object``), without one to none. A held result
that is rejected has left the node nowhere: no note tells of it. The notes are written in a child process,
because the writers import packages that the serving process does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from db import keywords
from db.models import Job, Output, Series
from db.result_files import OutputFile
from db.states import JobState
from dicomnode import decoding
from dicomnode.config import Config
from dicomnode.config.results import ResultsConfig
from dicomnode.datasets import headers
from dicomnode.datasets.objects import KEY_OBJECT, encode
from dicomnode.reading import frames
from dicomnode.results.reader_decision import ReaderDecision
from dicomnode.storage import spool

__all__ = ["write_notes"]

_KINDS = ("image", "labelled image", "parametric map", "segmentation", "report")
"""Kinds of result that a decision is about."""
_NO_SOURCES = ("SR", "KO", "DOC")


def write_notes(job: Job, decision: ReaderDecision, config: Config) -> list[OutputFile]:
    """Write the notes on a job's result to the spool. Raises InputRefused, NodeBusy."""
    if job.state is not JobState.DONE:
        return []
    sources = [_path(config, each.instance.sha256) for each in job.inputs if _is_source(job, each.instance.series)]
    first = config.results.series_number_base + len({each.series_uid for each in job.outputs})
    notes = []
    for number, (outputs, destinations) in enumerate(_group_destinations(job, config).items()):
        objects = tuple(_path(config, output.sha256) for output in outputs)
        content = decoding.run(_encode_note, decision, tuple(sources), objects, config.results, job.key, first + number)
        notes.append(_store(config.spool_dir, content, destinations))
    return notes


def _is_source(job: Job, series: Series) -> bool:
    return series.study_id == job.study_id and series.modality not in _NO_SOURCES


def _path(config: Config, sha256: str) -> Path:
    return spool.path(config.spool_dir, sha256)


def _group_destinations(job: Job, config: Config) -> dict[tuple[Output, ...], tuple[str, ...]]:
    """Return the destinations that get notes by the objects of the result that they have."""
    outputs = [each for each in job.outputs if each.kind in _KINDS and each.expired_at is None]
    groups: dict[tuple[Output, ...], tuple[str, ...]] = {}
    for destination in filter(config.sends_key_objects, job.destinations):
        own = tuple(each for each in outputs if each.destinations is None or destination in each.destinations)
        groups[own] = (*groups.get(own, ()), destination)
    groups.pop((), None)
    return groups


def _encode_note(
    decision: ReaderDecision,
    sources: Sequence[Path],
    objects: Sequence[Path],
    config: ResultsConfig,
    job_key: str,
    number: int,
) -> bytes:
    from dicomnode.results import key_object, marking
    from dicomnode.results.header import Context
    from dicomnode.results.provenance import read_provenance

    results = [frames.read_header(path) for path in objects]
    context = Context(
        [frames.read_header(path) for path in sources], read_provenance(results[0], job_key), (), config, decision.at
    )
    ds = key_object.write_decision(decision, results, context, number)
    marking.check_marks(ds)
    return encode(ds)


def _store(root: Path, content: bytes, destinations: tuple[str, ...]) -> OutputFile:
    file = spool.write(root, content)
    facts = headers.read(spool.path(root, file))
    return OutputFile(
        sop_instance_uid=facts.sop_instance_uid,
        sop_class_uid=facts.sop_class_uid,
        series_uid=facts.series_uid,
        kind=KEY_OBJECT,
        file=file,
        transfer_syntax_uid=facts.transfer_syntax_uid,
        attributes=keywords.pick(facts.attributes, keywords.RESULT_STORED),
        destinations=destinations,
    )
