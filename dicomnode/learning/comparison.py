"""The comparison of two versions on the test cases: one figure for each case, and a sentence on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, isfinite
from statistics import fmean
from typing import Any

from dicomnode.errors import NodeError
from model_zoo.scores import is_better

__all__ = ["Summary", "compare_rows", "summarize"]


@dataclass(frozen=True)
class Summary:
    """The cases of a run by what the new version is on them: better, worse, or equal.

    ``chance``: how often two equally good versions would come out at least as good for the new one, counted in
    patients, as cases of one patient are alike; None without a difference.
    """

    better: int
    worse: list[Mapping[str, Any]]
    total: int
    patients: int
    chance: float | None

    @property
    def sentence(self) -> str:
        """The result in words."""
        cases = "case" if self.total == 1 else "cases"
        first = f"The new version is better on {self.better} of {self.total} test {cases}"
        equal = self.total - self.better - len(self.worse)
        rest = f"; equal on {equal}" if equal else ""
        if not self.worse:
            return f"{first}{rest}, and worse on none."
        here = "here is the one on which it is worse" if len(self.worse) == 1 else f"here are the {len(self.worse)}"
        return f"{first}{rest}; {here}" + ("." if len(self.worse) == 1 else " on which it is worse.")


def compare_rows(
    rows: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]], new: str, old: str, figure: str
) -> list[dict[str, Any]]:
    """Return the test cases with the figure of both versions, worse ones first.

    ``rows``: as ``dicomnode evaluate --json`` prints them. ``figure``: begin of the names of the numbers whose mean is
    compared. Raises NodeError where no row has such a number.
    """
    by_line = {case["line"]: case for case in cases if "line" in case}
    found = []
    for row in rows:
        values = [_mean(row["scores"], name, figure) for name in (new, old)]
        case = by_line[row["line"]]
        scores = {"new": values[0], "old": values[1], "is_better": _is_better(figure, *values)}
        scores["fault"] = row.get("fault", "")
        found.append({name: case[name] for name in ("job_id", "study_id", "subject", "verdict")} | scores)
    if all(each["new"] is None and each["old"] is None for each in found):
        raise NodeError(f"the evaluation has no number {figure}…")
    return sorted(found, key=lambda each: (each["is_better"] is not False, each["job_id"]))


def summarize(scores: Sequence[Mapping[str, Any]]) -> Summary:
    """Return the numbers of better and worse cases of a run."""
    better = sum(each["is_better"] is True for each in scores)
    worse = [each for each in scores if each["is_better"] is False]
    verdicts = [_judge_patient([each for each in scores if each["subject"] == name]) for name in _list_subjects(scores)]
    chance = _compute_chance(verdicts.count(True), len(verdicts) - verdicts.count(None))
    return Summary(better, worse, len(scores), len(verdicts), chance)


def _list_subjects(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(each["subject"] for each in scores))


def _judge_patient(scores: Sequence[Mapping[str, Any]]) -> bool | None:
    """Return whether the new version is better on more cases of a patient than it is worse; None for neither."""
    balance = sum({True: 1, False: -1, None: 0}[each["is_better"]] for each in scores)
    return None if balance == 0 else balance > 0


def _is_better(figure: str, new: float | None, old: float | None) -> bool | None:
    """Return whether the new value is better. A version without a value is worse than one that has it."""
    if new is None or old is None:
        return None if new is old else old is None
    return is_better(figure, new, old)


def _compute_chance(better: int, different: int) -> float | None:
    """Return the probability of at least ``better`` heads in ``different`` throws of a coin (one-sided sign test)."""
    if not different:
        return None
    return float(sum(comb(different, n) for n in range(better, different + 1)) / 2**different)


def _mean(scores: Mapping[str, Mapping[str, float | None]], version: str, figure: str) -> float | None:
    """Return the mean of a version's numbers of the figure, of those that every version has; None for no finite one."""
    shared = set.intersection(*(set(numbers) for numbers in scores.values()))
    values = [scores[version][name] for name in sorted(shared) if name.startswith(figure)]
    finite = [value for value in values if value is not None and isfinite(value)]
    return fmean(finite) if finite and len(finite) == len(values) else None
