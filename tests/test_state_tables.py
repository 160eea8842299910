"""The allowed transitions, written down once more by the stored values that databases and other programs rely on."""

from __future__ import annotations

import itertools

import pytest

from db import states
from db.states import TRANSITIONS, InvalidTransition, check_transition

ALLOWED = {
    states.StudyState: """
        receiving -> complete
        complete -> routed receiving
        routed -> receiving complete
    """,
    states.JobState: """
        ready -> running cancelled
        running -> done held refused ready dead cancelled
        held -> done cancelled
        done ->
        refused -> ready cancelled
        dead -> ready cancelled
        cancelled -> ready
    """,
    states.DeliveryState: """
        waiting -> sending given_up
        sending -> delivered waiting given_up
        delivered -> waiting
        given_up -> waiting
    """,
    states.ProofState: """
        sent -> committed verified unproven
        committed -> sent
        verified -> committed sent
        unproven -> committed sent
    """,
    states.NotificationState: """
        waiting -> sending given_up
        sending -> sent waiting
        sent ->
        given_up ->
    """,
    states.ReportState: """
        waiting -> sending given_up
        sending -> sent waiting
        sent -> waiting
        given_up -> waiting
    """,
    states.QuarantineState: """
        kept -> released discarded
        released ->
        discarded ->
    """,
    states.RetrievalState: """
        wanted -> fetching ended
        fetching -> arrived ended
        arrived ->
        ended ->
    """,
    states.LearningState: """
        exporting -> training failed
        training -> evaluated failed
        evaluated ->
        failed ->
    """,
    states.WorkitemState: """
        SCHEDULED -> IN PROGRESS,
        IN PROGRESS -> COMPLETED, CANCELED
        COMPLETED ->
        CANCELED ->
    """,
}
OTHER_VALUES = {
    states.ProofStep: ["request", "report", "read_back", "none"],
    states.DeploymentMode: ["current", "shadow", "share"],
    states.RetrievalPurpose: ["prior", "series"],
}


def _parse_table(text: str) -> dict[str, set[str]]:
    rows = [line.split("->") for line in text.strip().splitlines()]
    return {old.strip(): _split_values(new) for old, new in rows}


def _split_values(text: str) -> set[str]:
    """Split at commas where there are any: some values have a space."""
    return {each.strip() for each in (text.split(",") if "," in text else text.split()) if each.strip()}


def test_every_kind_of_state_has_its_table() -> None:
    assert set(TRANSITIONS) == set(ALLOWED)


@pytest.mark.parametrize("kind", ALLOWED, ids=lambda kind: str(kind.__name__))
def test_exactly_the_listed_transitions_are_allowed(kind: type[states.JobState]) -> None:
    allowed = _parse_table(ALLOWED[kind])
    assert {state.value for state in kind} == set(allowed)
    for old, new in itertools.product(kind, repeat=2):
        if new.value in allowed[old.value]:
            check_transition(old, new)
        else:
            with pytest.raises(InvalidTransition, match=rf"^{kind.__name__} {old} may not become {new}, only "):
                check_transition(old, new)


def test_a_refusal_lists_what_is_allowed() -> None:
    with pytest.raises(InvalidTransition, match=r"only cancelled, running$"):
        check_transition(states.JobState.READY, states.JobState.DONE)
    with pytest.raises(InvalidTransition, match=r"^JobState done may not become ready, only nothing$"):
        check_transition(states.JobState.DONE, states.JobState.READY)


@pytest.mark.parametrize("kind", OTHER_VALUES, ids=lambda kind: str(kind.__name__))
def test_other_stored_values(kind: type[states.DeploymentMode]) -> None:
    assert [value.value for value in kind] == OTHER_VALUES[kind]
