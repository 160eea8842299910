"""Fetching the earlier examinations that routing waits for: C-FIND at the route's peer, C-MOVE to ourselves.

What is wanted and how far it came stands in rows (db/searches.py): a search that a stop interrupted is taken up again,
and one whose study waits no longer ends. A peer that is down, or has none, is no error: the study goes without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from db import searches
from db.models import Instance, PriorSearch, Series, Study
from db.states import SearchState, StudyState
from dicomnode import queries
from dicomnode.conditions import Condition
from dicomnode.config import Config, Peer, Route
from dicomnode.errors import NodeError, NotFound
from dicomnode.priors import Examination, examination, present
from dicomnode.queries import Fetched
from dicomnode.received import received

__all__ = ["fetch_wanted"]

_log = logging.getLogger(__name__)
_STUDIES = 10
"""So many of the patient's earlier studies are looked into, the newest first."""


@dataclass(frozen=True)
class _Wanted:
    """A search as the network needs it: who asks whom for what."""

    id: int
    route: Route
    peer: Peer
    study_uid: str
    now: Examination
    state: SearchState
    prior_study_uid: str
    series_uids: tuple[str, ...]


def fetch_wanted(sessions: sessionmaker[Session], config: Config, *, now: Callable[[], datetime]) -> int:
    """Take every open search to its end, one after the other; the number of studies that arrived."""
    with sessions() as session:
        ids = searches.open_ids(session)
    return sum(_search(sessions, config, id, now) for id in ids)


def _search(sessions: sessionmaker[Session], config: Config, id: int, now: Callable[[], datetime]) -> bool:
    """The door of one search: whatever goes wrong ends it, for a study waits for that."""
    try:
        with sessions() as session:
            wanted = _read(session, config, session.get_one(PriorSearch, id), now())
        if wanted.state is SearchState.WANTED:
            study_uid, series_uids = _find(wanted, config)
            wanted = replace(wanted, prior_study_uid=study_uid, series_uids=series_uids)
            with sessions.begin() as session:
                search = session.get_one(PriorSearch, id)
                searches.fetching(session, search, prior_study_uid=study_uid, series_uids=series_uids, now=now())
        reason = _fetch(sessions, wanted, config)
    except Exception as error:
        why = str(error) if isinstance(error, NodeError) else f"the search broke off with {type(error).__name__}"
        _log.warning("search %d for an earlier study: %s", id, why)
        with sessions.begin() as session:
            searches.end(session, session.get_one(PriorSearch, id), reason=why, now=now())
        return False
    with sessions.begin() as session:
        searches.arrived(session, session.get_one(PriorSearch, id), reason=reason, now=now())
    return True


def _read(session: Session, config: Config, search: PriorSearch, now: datetime) -> _Wanted:
    """Raises NotFound where nobody waits for it any more."""
    study = search.study
    route = next((each for each in config.routes if each.name == search.route and each.prior), None)
    if route is None:
        raise NotFound(f"route {search.route} wants no earlier study any more")
    if study.state is not StudyState.COMPLETE or study.revision != search.revision:
        raise NotFound(f"study {study.id} waits no longer")
    if now >= (study.completed_at or now) + timedelta(seconds=route.prior_wait_s):
        raise NotFound(f"not asked within {route.prior_wait_s:g} s")
    who = present(received(session, study))
    if isinstance(who, str):
        raise NotFound(who)
    return _Wanted(
        search.id,
        route,
        config.peer(search.peer),
        study.study_uid,
        who,
        search.state,
        search.prior_study_uid,
        tuple(search.series_uids),
    )


def _find(wanted: _Wanted, config: Config) -> tuple[str, tuple[str, ...]]:
    """The newest earlier study with what the route asks for first, and its series to fetch. Raises NotFound."""
    asked = {
        "PatientID": wanted.now.patient_id,
        "StudyDate": f"-{wanted.now.date}",
        "StudyTime": "",
        "IssuerOfPatientID": "",
        "PatientBirthDate": "",
    }
    found = [
        (then, str(answer.StudyInstanceUID))
        for answer in queries.find(wanted.peer, asked, **_who(config))
        for then in [_answered(answer, wanted.now)]
        if then.is_of(wanted.now) and then.precedes(wanted.now)
    ]
    newest_first = sorted(found, key=lambda each: (each[0].date, each[0].time), reverse=True)
    for _, study_uid in newest_first[:_STUDIES]:
        if study_uid != wanted.study_uid and (series_uids := _series(wanted, config, study_uid)):
            return study_uid, series_uids
    first = next(iter(wanted.route.prior))
    raise NotFound(f"{len(found)} earlier studies there, none with a series for {first}" if found else "none there")


def _answered(answer: Dataset, now: Examination) -> Examination:
    """An issuer that a peer does not tell is checked when the study is here."""
    then = examination({name: answer.get(name) for name in ("PatientID", "IssuerOfPatientID", "PatientBirthDate",
                                                            "StudyDate", "StudyTime")})  # fmt: skip
    return then if then.issuer else replace(then, issuer=now.issuer)


def _series(wanted: _Wanted, config: Config, study_uid: str) -> tuple[str, ...]:
    """Those that may match, as far as the peer tells at this level; none without one for the first name."""
    keywords = {keyword for match in wanted.route.prior.values() for keyword in match}
    asked = dict.fromkeys(sorted(keywords), "") | {"StudyInstanceUID": study_uid}
    answers = queries.find(wanted.peer, asked, level="SERIES", **_who(config))
    named = {
        name: [str(each.SeriesInstanceUID) for each in answers if _may_match(match, each)]
        for name, match in wanted.route.prior.items()
    }
    if not named[next(iter(wanted.route.prior))]:
        return ()
    return tuple(dict.fromkeys(uid for uids in named.values() for uid in uids))


def _may_match(match: Mapping[str, Condition], answer: Dataset) -> bool:
    stated = {keyword: value for keyword in match if (value := _plain(answer.get(keyword))) not in (None, "", [])}
    return all(match[keyword].holds(value) for keyword, value in stated.items())


def _plain(value: Any) -> Any:
    return [str(each) for each in value] if isinstance(value, MultiValue) else value


def _fetch(sessions: sessionmaker[Session], wanted: _Wanted, config: Config) -> str:
    """C-MOVE series by series to our own receiver; in words what came. Raises NotFound or PeerError."""
    fetched = sum(_moves(wanted, config), Fetched())
    came = fetched.completed + fetched.warned
    with sessions() as session:
        rows = select(func.count(Instance.id)).join(Series).join(Study).where(
            Study.study_uid == wanted.prior_study_uid, Series.series_uid.in_(wanted.series_uids)
        )  # fmt: skip
        here = session.scalar(rows) or 0
    if fetched.failed or not came:
        raise NotFound(f"it gave {came} of {came + fetched.failed} instances by C-MOVE; does it know {_us(config)}?")
    if here < came:
        raise NotFound(f"it sent {came} instances by C-MOVE, {here} are here; where does it think {_us(config)} is?")
    return f"{here} instances by C-MOVE from {wanted.peer.name}"


def _moves(wanted: _Wanted, config: Config) -> Iterator[Fetched]:
    for series_uid in wanted.series_uids:
        yield queries.move(
            wanted.peer,
            wanted.prior_study_uid,
            series_uid=series_uid,
            destination_aet=config.node.ae_title,
            **_who(config),
        )


def _us(config: Config) -> str:
    return f"the AE title {config.node.ae_title}"


def _who(config: Config) -> dict[str, Any]:
    node = config.node
    return {"calling_aet": node.ae_title, "timeout_s": node.network_timeout_s, "tls": config.tls}
