"""The negotiation of the kinds of results for each destination: the configured ones, or the next that it accepts.

At its end a job queries each of its destinations by an association without data. A destination that does not answer
gets the kinds that it accepted before. For one that never answered, objects of the plainest kinds are stored as spares,
and the delivery queries again before it sends. The choice and its reason are in the job's report and the audit trail.
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

__all__ = [
    "NEGOTIABLE_CLASSES",
    "KindChoice",
    "choose_kinds",
    "list_renditions",
    "negotiate_kinds",
    "query_accepted_classes",
]

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
NEGOTIABLE_CLASSES = frozenset(
    str(uid) for kinds in (_IMAGES, _SEGMENTATIONS) for uids in kinds.values() for uid in uids
)
"""The SOP classes among which the negotiation chooses."""
_PLAINEST = MappingProxyType({"image_kind": "single", "labelled_kind": "single", "segmentation_kind": "binary"})


@dataclass(frozen=True)
class KindChoice:
    """The kinds of results for a destination.

    ``spare``: the kinds to send should it not accept these. ``why``: the reason in words where the kinds are not the
    configured ones, or the destination never answered.
    """

    results: ResultsConfig
    spare: ResultsConfig | None = None
    why: str = ""


def query_accepted_classes(peer: Peer, config: Config) -> frozenset[str]:
    """Return the SOP classes of results that the peer accepts now. Raises PeerUnreachable or PeerRefused."""
    classes = sorted(NEGOTIABLE_CLASSES | {str(each) for uids in _PAGES.values() for each in uids})
    contexts = [build_context(each, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]) for each in classes]
    node = config.node
    timeout_s = min(TIMEOUT_S, node.network_timeout_s)
    with association(
        peer, contexts, calling_aet=config.node.ae_title, timeout_s=timeout_s, tls=config.node.tls
    ) as assoc:
        return frozenset(str(context.abstract_syntax) for context in assoc.accepted_contexts)


def choose_kinds(configured: ResultsConfig, accepted: frozenset[str] | None) -> KindChoice:
    """Choose the kinds by the accepted SOP classes; without an answer the configured ones, the plainest as spare."""
    if accepted is None:
        spare = configured.with_values(dict(_PLAINEST))
        is_other = spare.rendition_key != configured.rendition_key
        return KindChoice(configured, spare if is_other else None, "it does not answer and never did")
    image, why_image = _first_accepted((configured.image_kind, "multiframe", "single"), _IMAGES, accepted)
    labelled, _ = _first_accepted((configured.labelled_kind, "multiframe", "single"), _IMAGES, accepted)
    mask, why_mask = _first_accepted((configured.segmentation_kind, "binary", "labelmap"), _SEGMENTATIONS, accepted)
    pages = [_first_accepted((page, "sc", "pdf"), _PAGES, accepted) for page in configured.report_page]
    changed = configured.with_values({
        "image_kind": image, "labelled_kind": labelled, "segmentation_kind": mask,
        "report_page": tuple(dict.fromkeys(page for page, _ in pages)),
    })  # fmt: skip
    return KindChoice(changed, None, "; ".join(why for why in (why_image, why_mask, *(why for _, why in pages)) if why))


def negotiate_kinds(
    sessions: sessionmaker[Session], config: Config, names: Iterable[str], *, now: datetime
) -> dict[str, KindChoice]:
    """Choose the kinds for each destination; one that is no longer configured gets the node's own kinds."""
    choices: dict[str, KindChoice] = {}
    for name in names:
        try:
            peer, configured = config.find_peer(name), config.results_for(name)
        except ConfigError:
            choices[name] = KindChoice(config.results, None, "no peer of that name is configured")
            continue
        choices[name] = choose_kinds(configured, _load_accepted_classes(sessions, config, peer, now))
    return choices


def list_renditions(choices: Mapping[str, KindChoice]) -> list[ResultsConfig]:
    """Return each rendition that any destination gets or may get, once."""
    renditions = [each for one in choices.values() for each in (one.results, one.spare) if each is not None]
    return list(dict.fromkeys(renditions))


def _load_accepted_classes(
    sessions: sessionmaker[Session], config: Config, peer: Peer, now: datetime
) -> frozenset[str] | None:
    """Return the classes that the peer accepts now, else those of its last answer; None if it never answered."""
    try:
        accepted = query_accepted_classes(peer, config)
    except PeerError:
        with sessions() as session:
            return destinations.find_accepted_classes(session, peer.name)
    with sessions.begin() as session:
        destinations.record_accepted_classes(session, peer.name, accepted, now=now)
    return accepted


def _first_accepted(
    chain: Sequence[str], classes: Mapping[str, Sequence[str]], accepted: frozenset[str]
) -> tuple[str, str]:
    """Return the first kind all of whose classes are accepted, and why it is not the first of the chain.

    Where none is accepted, the first of the chain is returned.
    """
    preferred = chain[0]
    refused = [UID(each).name for each in classes[preferred] if each not in accepted]
    for kind in chain:
        if set(classes[kind]) <= accepted:
            reason = f"{kind} instead of {preferred}: it does not take {', '.join(refused)}"
            return kind, "" if kind == preferred else reason
    return preferred, f"{preferred}, though it does not take {', '.join(refused)}: it takes no other kind either"
