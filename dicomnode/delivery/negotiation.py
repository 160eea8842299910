"""Which kinds of results a destination gets: those that it wants, or the next that it accepts.

A job asks each of its destinations when it ends, by an association that carries nothing. One that does not answer gets
what it took before; of one that never answered nobody knows, so the plainest kinds lie ready beside the wanted ones,
and the delivery asks again before it sends. What was chosen and why is in the job's report and the audit trail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import build_context

from db import destinations
from dicomnode.config.results import ResultsConfig
from dicomnode.dimse.associations import association
from dicomnode.errors import ConfigError, PeerError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from dicomnode.config import Config, Peer

__all__ = ["CHOICES", "Chosen", "ask", "choose", "for_job", "forms"]

TIMEOUT_S = 5.0
_LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")
_IMAGES: Mapping[str, tuple[UID, ...]] = MappingProxyType({
    "multiframe": (MultiFrameGrayscaleWordSecondaryCaptureImageStorage,),
    "single": (SecondaryCaptureImageStorage,),
    "parametric": (ParametricMapStorage,),
    "modality": (PositronEmissionTomographyImageStorage, MRImageStorage),
})  # fmt: skip
_SEGMENTATIONS: Mapping[str, tuple[UID, ...]] = MappingProxyType({
    "binary": (SegmentationStorage,),
    "labelmap": (_LABEL_MAP,),
})  # fmt: skip
_PAGES: Mapping[str, tuple[UID, ...]] = MappingProxyType({
    "sc": (SecondaryCaptureImageStorage,),
    "pdf": (EncapsulatedPDFStorage,),
})  # fmt: skip
CHOICES = frozenset(str(uid) for kinds in (_IMAGES, _SEGMENTATIONS) for uids in kinds.values() for uid in uids)
"""The SOP classes between which there is a choice."""
_PLAINEST = MappingProxyType({"image_kind": "single", "labelled_kind": "single", "segmentation_kind": "binary"})


@dataclass(frozen=True)
class Chosen:
    """What a destination gets; ``spare``: what lies ready should it not take that; ``why``: in words, where it is not
    what it wants or nobody knows."""

    results: ResultsConfig
    spare: ResultsConfig | None = None
    why: str = ""


def ask(peer: Peer, config: Config) -> frozenset[str]:
    """The SOP classes of results that the peer takes now. Raises PeerUnreachable or PeerRefused."""
    classes = sorted(CHOICES | {str(each) for uids in _PAGES.values() for each in uids})
    contexts = [build_context(each, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]) for each in classes]
    node = config.node
    timeout_s = min(TIMEOUT_S, node.network_timeout_s)
    with association(
        peer, contexts, calling_aet=config.node.ae_title, timeout_s=timeout_s, tls=config.node.tls
    ) as assoc:
        return frozenset(str(context.abstract_syntax) for context in assoc.accepted_contexts)


def choose(wanted: ResultsConfig, taken: frozenset[str] | None) -> Chosen:
    """By what is taken; without an answer what is wanted, and the plainest kinds as a spare."""
    if taken is None:
        spare = wanted.with_values(dict(_PLAINEST))
        return Chosen(
            wanted, spare if spare.rendition_key != wanted.rendition_key else None, "it does not answer and never did"
        )
    image, why_image = _first((wanted.image_kind, "multiframe", "single"), _IMAGES, taken)
    labelled, _ = _first((wanted.labelled_kind, "multiframe", "single"), _IMAGES, taken)
    mask, why_mask = _first((wanted.segmentation_kind, "binary", "labelmap"), _SEGMENTATIONS, taken)
    pages = [_first((page, "sc", "pdf"), _PAGES, taken) for page in wanted.report_page]
    changed = wanted.with_values({
        "image_kind": image, "labelled_kind": labelled, "segmentation_kind": mask,
        "report_page": tuple(dict.fromkeys(page for page, _ in pages)),
    })  # fmt: skip
    return Chosen(changed, None, "; ".join(why for why in (why_image, why_mask, *(why for _, why in pages)) if why))


def for_job(
    sessions: sessionmaker[Session], config: Config, names: Iterable[str], *, now: datetime
) -> dict[str, Chosen]:
    """By destination; one that the configuration no longer names gets what the node keeps."""
    found: dict[str, Chosen] = {}
    for name in names:
        try:
            peer, wanted = config.find_peer(name), config.results_for(name)
        except ConfigError:
            found[name] = Chosen(config.results, None, "no peer of that name is configured")
            continue
        found[name] = choose(wanted, _taken(sessions, config, peer, now))
    return found


def forms(chosen: Mapping[str, Chosen]) -> list[ResultsConfig]:
    """Every one that somebody gets or may get."""
    wanted = [each for one in chosen.values() for each in (one.results, one.spare) if each is not None]
    return list(dict.fromkeys(wanted))


def _taken(sessions: sessionmaker[Session], config: Config, peer: Peer, now: datetime) -> frozenset[str] | None:
    """As it says now, else as it last said."""
    try:
        taken = ask(peer, config)
    except PeerError:
        with sessions() as session:
            return destinations.find_accepted_classes(session, peer.name)
    with sessions.begin() as session:
        destinations.record_accepted_classes(session, peer.name, taken, now=now)
    return taken


def _first(chain: Sequence[str], classes: Mapping[str, Sequence[str]], taken: frozenset[str]) -> tuple[str, str]:
    """The first kind all of whose classes are taken, and why it is not the one wanted; that one where none is."""
    wanted = chain[0]
    lacking = [UID(each).name for each in classes[wanted] if each not in taken]
    for kind in chain:
        if set(classes[kind]) <= taken:
            return kind, "" if kind == wanted else f"{kind} instead of {wanted}: it does not take {', '.join(lacking)}"
    return wanted, f"{wanted}, though it does not take {', '.join(lacking)}: it takes no other kind either"
