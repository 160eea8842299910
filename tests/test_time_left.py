"""The time left of a progress bar."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from dicomnode.cli.time_left import TimeLeftColumn

pytestmark = pytest.mark.fast


def test_the_time_left_counts_down_between_two_updates() -> None:
    clock = [0.0]
    progress = Progress(get_time=lambda: clock[0], disable=True)
    task = progress.add_task("run", total=1.0)
    column = TimeLeftColumn()

    def read() -> str:
        return column.render(progress.tasks[0]).plain

    assert read() == "-:--:--"
    clock[0] = 10.0
    progress.update(task, completed=0.1)
    assert read() == "0:01:30"
    clock[0] = 40.0
    assert read() == "0:01:00"
    clock[0] = 200.0
    assert read() == "0:00:00"
    progress.update(task, completed=0.5)
    assert read() == "0:03:20"
    progress.update(task, completed=1.0)
    assert read() == "0:00:00"
