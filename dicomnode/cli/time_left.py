"""The time that a progress bar says is left."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from rich.progress import ProgressColumn
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Task, TaskID

__all__ = ["TimeLeftColumn"]


class TimeLeftColumn(ProgressColumn):
    """Time left at the pace so far. It counts down between two updates; rich's own stands still, for minutes."""

    max_refresh = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._ends: dict[TaskID, tuple[float, float]] = {}

    def render(self, task: Task) -> Text:
        """Return the time left, or dashes where nothing is done yet."""
        elapsed_s = task.elapsed
        if task.finished:
            return Text(str(timedelta(0)), style="progress.remaining")
        if not task.completed or not task.total or elapsed_s is None:
            return Text("-:--:--", style="progress.remaining")
        completed, end_s = self._ends.get(task.id, (0.0, 0.0))
        if completed != task.completed:
            end_s = elapsed_s * task.total / task.completed
            self._ends[task.id] = task.completed, end_s
        left_s = max(0, round(end_s - elapsed_s))
        return Text(str(timedelta(seconds=left_s)), style="progress.remaining")
