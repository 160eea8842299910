"""A Key Object Selection Document (PS3.3 A.35.4, TID 2010) on the inputs of a study that is held or refused.

The title is never (113001, DCM, "Rejected for Quality Reasons"): archives that follow IHE's Imaging Object Change
Management hide what such a note points at, and this one points at the patient's own images. Held is (113000, DCM, "Of
Interest"); refused is (113010, DCM, "Quality Issue"), both of CID 7010.
"""

from __future__ import annotations

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import RawDataStorage

from dicomnode.results import label
from dicomnode.results.header import Context, Series, add_common_modules, document_arguments
from dicomnode.results.sr import device, evidence
from pipelines.quality import Outcome, Verdict

__all__ = ["write"]

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


def _referenced(source: Dataset) -> Dataset:
    """Return the reference to a source, with the rows and columns by which highdicom recognises an image."""
    item = evidence(source)
    if source.SOPClassUID != RawDataStorage:
        item.Rows = item.Columns = 1
    return item
