"""Content of a notification: its facts, rendered as text, JSON or by a template.

Recipients that may not see patient data get the number of the job. A job's reason may quote attributes of the patient
from a header, such as an age; such clauses, UIDs and the patient's own values are then withheld.
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
"""Names that a template may use."""
PATIENT_NAMES = ("patient_id", "accession_number", "study_date", "study_uid")
"""Further names that a template may use where the recipient may see patient data."""

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
"""Length below which a patient's value is too common a word to be withheld."""
_LONGEST_REASON = 2000


def make_facts(due: ClaimedNotification, config: Config, *, patient_data: bool) -> Facts:
    """Return the facts of a notification, with patient data or without."""
    facts: dict[str, str | int] = {
        "id": due.event_id,
        "event": due.event,
        "at": due.created_at.isoformat(timespec="seconds"),
        "node": config.node.ae_title,
        "job": due.job_id,
        "route": due.route,
        "pipeline": due.pipeline,
        "model": due.model,
        "reason": (due.message if patient_data else _withhold_patient(due.message, due.subject))[:_LONGEST_REASON],
        "link": f"{config.web.public_url.rstrip('/')}/jobs/{due.job_id}" if config.web.public_url else "",
        "summary": _SUMMARIES[due.event],
    }
    return facts | ({name: getattr(due.subject, name) for name in PATIENT_NAMES} if patient_data else {})


def make_example(config: Config, event: str, event_id: str, at: str, *, patient_data: bool) -> Facts:
    """Return facts of no job, for a test; the reason holds characters that a template has to escape."""
    facts: dict[str, str | int] = dict.fromkeys(NAMES, "")
    facts |= {"id": event_id, "event": event, "at": at, "node": config.node.ae_title, "job": 0}
    facts |= {"route": "test", "pipeline": "test", "model": "test@1.0.0", "summary": _SUMMARIES[event]}
    facts |= {"reason": 'χ² is "2.4", above the limit of 2 \\ a test', "link": config.web.public_url or ""}
    return facts | (dict.fromkeys(PATIENT_NAMES, "test") if patient_data else {})


def make_subject_line(facts: Facts) -> str:
    """Return the subject of the e-mail as one printable line."""
    line = f"{facts['node']}: {facts['event']}, job {facts['job']}, {facts['route']}"
    return " ".join("".join(c if c.isprintable() else " " for c in line).split())


def render_text(facts: Facts, template: str | None) -> str:
    """Return the text of the template, or of the node's own. Raises ConfigError for a template that fails."""
    return _render(_DEFAULT if template is None else template, facts)


def render_json(facts: Facts, template: str | None) -> bytes:
    """Return the JSON of the template, or of all facts. Raises ConfigError for a template whose text is no JSON."""
    if template is None:
        return json.dumps(dict(facts), ensure_ascii=False).encode()
    text = _render(template, facts)
    try:
        json.loads(text)
    except ValueError as error:
        at = f", line {error.lineno} of what it makes" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(f"the template makes no JSON{at}: write values as {{{{ reason | tojson }}}}") from None
    return text.encode()


def _render(template: str, facts: Facts) -> str:
    """Render the template. Raises ConfigError, which names the line or the class of error, never a value."""
    try:
        return _compile(template).render(dict(facts))
    except TemplateSyntaxError as error:
        raise ConfigError(f"the template, line {error.lineno}: {error.message}") from None
    except TemplateError as error:
        known = ", ".join(facts)
        raise ConfigError(f"the template: {error.message}; known are {known}") from None
    except Exception as error:
        raise ConfigError(f"the template: {type(error).__name__} while it was filled in") from None


@cache
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template)


def _withhold_patient(reason: str, subject: Subject) -> str:
    """Withhold clauses on attributes of the patient (group 0010) and covariates, UIDs, and the patient's own values."""
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
