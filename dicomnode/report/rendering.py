"""The report page of a job, from its findings to pixels and PDF."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydicom.dataset import Dataset

from dicomnode.report import content, layout
from dicomnode.results.page import Page
from dicomnode.results.provenance import Provenance
from pipelines.contract import Case, Finding
from pipelines.quality import Verdict

__all__ = ["render"]


def render(
    findings: Sequence[Finding],
    case: Case,
    sources: Sequence[Dataset],
    made_by: Provenance,
    now: datetime,
    verdict: Verdict,
    doubts: Sequence[str] = (),
    *,
    identify: bool = False,
    priors: Sequence[Dataset] = (),
) -> Page:
    """Draw the page of a job as pixels and as PDF. The same job gives the same page.

    ``identify``: with the patient's name, identifier and birth date; ``priors``: headers of the earlier examination.
    """
    page = content.compose_page(
        findings, case, sources, made_by, now, verdict, doubts, identify=identify, priors=priors
    )
    return layout.draw_page(page, now)
