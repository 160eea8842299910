"""What a notification says: its facts, and the words, JSON or template that carry them.

Who may not see patient data hears of a job by its number. A job's reason may quote what a header says of the patient,
such as an age; those parts of it, UIDs, and the patient's own values are then left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from db.notifications import ClaimedNotification, Subject
from dicomnode.config import Config
from dicomnode.errors import ConfigError

__all__ = [
    "NAMES",
    "PATIENT_NAMES",
    "Facts",
    "make_example",
    "make_facts",
    "make_subject_line",
    "render_json",
    "render_text",
]

NAMES = ("id", "event", "at", "node", "job", "route", "pipeline", "model", "reason", "link", "summary")
"""What a template may use."""
PATIENT_NAMES = ("patient_id", "accession_number", "study_date", "study_uid")
"""What it may use where the notification is allowed patient data."""

Facts = Mapping[str, str | int]

_SUMMARIES = MappingProxyType({
    "delivered": "results are delivered",
    "held": "a result is held until somebody releases or discards it",
    "failed": "a job failed, or its results did not reach their destination",
    "refused": "an input or a result was refused",
    "test": "this is a test",
})  # fmt: skip
_DEFAULT = """\
{{ node }}: {{ summary }}.

job:      {{ job }}
route:    {{ route }}
pipeline: {{ pipeline }}
{% if model %}
model:    {{ model }}
{% endif %}
{% if reason %}
reason:   {{ reason }}
{% endif %}
at:       {{ at }}
{% if patient_id is defined %}

patient ID:         {{ patient_id }}
accession number:   {{ accession_number }}
study date:         {{ study_date }}
Study Instance UID: {{ study_uid }}
{% endif %}
{% if link %}

{{ link }}
{% endif %}

Results of this node are synthetic and for research use only. Event {{ id }}.
"""
_UID = re.compile(r"\b[0-2](?:\.\d+){3,}\b")
_WITHHELD = "[withheld]"
_SHORTEST = 4
"""Characters of a patient's value below which it is too common a word to be told from others."""
_LONGEST_REASON = 2000


def make_facts(due: ClaimedNotification, config: Config, *, patient_data: bool) -> Facts:
    """What there is to say."""
    found: dict[str, str | int] = {
        "id": due.event_id,
        "event": due.event,
        "at": due.created_at.isoformat(timespec="seconds"),
        "node": config.node.ae_title,
        "job": due.job_id,
        "route": due.route,
        "pipeline": due.pipeline,
        "model": due.model,
        "reason": (due.message if patient_data else _without_patient(due.message, due.subject))[:_LONGEST_REASON],
        "link": f"{config.web.public_url.rstrip('/')}/jobs/{due.job_id}" if config.web.public_url else "",
        "summary": _SUMMARIES[due.event],
    }
    return found | ({name: getattr(due.subject, name) for name in PATIENT_NAMES} if patient_data else {})


def make_example(config: Config, event: str, event_id: str, at: str, *, patient_data: bool) -> Facts:
    """Facts of no job, for a test; the reason holds what a template has to escape."""
    found: dict[str, str | int] = dict.fromkeys(NAMES, "")
    found |= {"id": event_id, "event": event, "at": at, "node": config.node.ae_title, "job": 0}
    found |= {"route": "test", "pipeline": "test", "model": "test@1.0.0", "summary": _SUMMARIES[event]}
    found |= {"reason": 'χ² is "2.4", above the limit of 2 \\ a test', "link": config.web.public_url or ""}
    return found | (dict.fromkeys(PATIENT_NAMES, "test") if patient_data else {})


def make_subject_line(told: Facts) -> str:
    """On one line, whatever the names of nodes and routes hold."""
    words = f"{told['node']}: {told['event']}, job {told['job']}, {told['route']}"
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())


def render_text(told: Facts, template: str | None) -> str:
    """The template's words, or the node's own. Raises ConfigError for a template that does not work."""
    return _rendered(_DEFAULT if template is None else template, told)


def render_json(told: Facts, template: str | None) -> bytes:
    """The JSON that the template makes, or all facts. Raises ConfigError for a template that makes none."""
    if template is None:
        return json.dumps(dict(told), ensure_ascii=False).encode()
    text = _rendered(template, told)
    try:
        json.loads(text)
    except ValueError as error:
        at = f", line {error.lineno} of what it makes" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(f"the template makes no JSON{at}: write values as {{{{ reason | tojson }}}}") from None
    return text.encode()


def _rendered(template: str, told: Facts) -> str:
    """A template's error names a line and a name; others may quote a value and are told by their kind."""
    try:
        return _compiled(template).render(dict(told))
    except TemplateSyntaxError as error:
        raise ConfigError(f"the template, line {error.lineno}: {error.message}") from None
    except TemplateError as error:
        known = ", ".join(told)
        raise ConfigError(f"the template: {error.message}; known are {known}") from None
    except Exception as error:
        raise ConfigError(f"the template: {type(error).__name__} while it was filled in") from None


@cache
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template)


def _without_patient(reason: str, subject: Subject) -> str:
    """Without clauses on attributes of the patient (group 0010) and covariates, UIDs, and the patient's own values."""
    clauses = [
        _WITHHELD if "(0010," in clause or "covariate" in clause.casefold() else clause for clause in reason.split("; ")
    ]
    text = _UID.sub(_WITHHELD, "; ".join(clauses))
    values = [
        subject.patient_id,
        subject.accession_number,
        subject.study_date,
        *re.split(r"[\^=\s]+", subject.patient_name),
    ]
    for value in sorted({each for each in values if len(each) >= _SHORTEST}, key=len, reverse=True):
        text = re.sub(re.escape(value), _WITHHELD, text, flags=re.IGNORECASE)
    return text
