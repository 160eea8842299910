"""A Key Object Selection Document (PS3.3 A.35.4, TID 2010) on the inputs of a study that is held or refused, or on the
result that a reader accepted or rejected.

The title is never (113001, DCM, "Rejected for Quality Reasons"): archives that follow IHE's Imaging Object Change
Management hide what such a note points at, and this one points at the patient's own images. Held is (113000, DCM, "Of
Interest"); refused is (113010, DCM, "Quality Issue"), both of CID 7010; accepted and rejected likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import RawDataStorage

from dicomnode.results import label
from dicomnode.results.header import Context, Series, add_common_modules, document_arguments
from dicomnode.results.reader_decision import READERS_WORDS, ReaderDecision
from dicomnode.results.sr import device, evidence
from pipelines.quality import Outcome, Verdict

__all__ = ["write", "write_decision"]

_TITLES = {Outcome.HOLD: codes.DCM.OfInterest, Outcome.REFUSE: codes.DCM.QualityIssue}
_WORDS = {
    Outcome.HOLD: "the result is held on the node for a person's decision",
    Outcome.REFUSE: "nothing was made of these images",
}


def write(verdict: Verdict, context: Context, number: int) -> Dataset:
    """Return the note for a verdict to hold or to refuse. Raises ``ValueError`` for a verdict to accept."""
    if verdict.outcome not in _TITLES:
        raise ValueError("a key object note tells of what is held or refused")
    name = "\n".join(("key object", verdict.outcome, *verdict.reasons))
    held = verdict.outcome is Outcome.HOLD
    sources = [_referenced(each) for each in context.sources]
    ds: Dataset = hd.ko.KeyObjectSelectionDocument(
        evidence=sources,
        content=hd.ko.KeyObjectSelection(
            document_title=_TITLES[verdict.outcome],
            referenced_objects=sources,
            observer_device_context=device(context),
            description=f"{label.TEXT}. {context.provenance.pipeline}: {_WORDS[verdict.outcome]}. {verdict.reason}",
        ),
        **document_arguments(context, name, number),
    )
    description = f"{'Held' if held else 'Not processed'}: {context.provenance.pipeline}"
    add_common_modules(ds, context, Series(name, number, description, description))
    return ds


def write_decision(decision: ReaderDecision, objects: Sequence[Dataset], context: Context, number: int) -> Dataset:
    """Return the note of a reader's decision on the result ``objects``, given by their headers."""
    verb = "Accepted" if decision.is_accepted else "Rejected"
    name = "\n".join(("reader's decision", verb, decision.who, decision.reason, decision.at.isoformat(),
                      *sorted(str(each.SOPInstanceUID) for each in objects)))  # fmt: skip
    results = [_referenced_result(each) for each in objects]
    reader = hd.sr.ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(name=decision.who),
    )
    ds: Dataset = hd.ko.KeyObjectSelectionDocument(
        evidence=results,
        content=hd.ko.KeyObjectSelection(
            document_title=_TITLES[Outcome.HOLD if decision.is_accepted else Outcome.REFUSE],
            referenced_objects=results,
            observer_person_context=reader,
            observer_device_context=device(context),
            description=f"{label.TEXT}. {context.provenance.pipeline}: {verb.lower()} by a reader.\r\n"
            f"{READERS_WORDS}{decision.who}: {decision.reason}",
        ),
        **document_arguments(context, name, number),
    )
    description = f"{verb} by reader: {context.provenance.pipeline}"
    add_common_modules(ds, context, Series(name, number, description, description))
    return ds


def _referenced_result(result: Dataset) -> Dataset:
    """Return the reference to a result: an image, or a document, which has no rows."""
    item = evidence(result)
    if "Rows" in result:
        item.Rows = item.Columns = 1
    return item


def _referenced(source: Dataset) -> Dataset:
    """Return the reference to a source, with the rows and columns by which highdicom recognises an image."""
    item = evidence(source)
    if source.SOPClassUID != RawDataStorage:
        item.Rows = item.Columns = 1
    return item
