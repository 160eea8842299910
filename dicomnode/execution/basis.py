"""The content of a result before it becomes files of one form or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicomnode.results.provenance import Provenance
from pipelines.contract import Case, Finding
from pipelines.quality import Verdict

__all__ = ["Basis"]


@dataclass(frozen=True)
class Basis:
    """Findings, inputs with their headers, provenance, verdict, and doubts about the input; ``priors``: headers of
    earlier studies."""

    findings: Sequence[Finding]
    case: Case
    sources: Sequence[Dataset]
    made_by: Provenance
    verdict: Verdict
    doubts: Sequence[str]
    priors: Sequence[Dataset] = ()
