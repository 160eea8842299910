"""One thread at a time, in an order that the seed decides: tasks, and the locks, events and threads that they use.

The tasks are real threads, of which exactly one runs. At a crossing it may hand over to another one. The node's modules
get this module instead of ``threading`` (see ``loading``), so that a wait of theirs hands over, too, and takes time of
the simulated clock only.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

__all__ = ["Deadlock", "Event", "Lock", "Scheduler", "SerialExecutor", "Task", "Thread", "active"]

_STEP_S = 0.001
"""Time that passes at each crossing."""


class Deadlock(Exception):
    """No task can ever go on."""


class Task:
    """A thread of the simulation; ``held``: number of locks that it holds."""

    def __init__(self, name: str, work: Callable[[], None], parent: Task | None) -> None:
        self.name, self.work, self.parent = name, work, parent
        self.baton = threading.Semaphore(0)
        self.is_ready: Callable[[], bool] | None = None
        self.wakes_at: float | None = None
        self.is_over, self.is_dead = False, False
        self.held = 0
        self.error: BaseException | None = None

    def can_run(self, passed_s: float) -> bool:
        """Return whether the task waits for nothing, or for nothing any more."""
        if self.is_over or self.is_dead:
            return False
        if self.is_ready is None and self.wakes_at is None:
            return True
        if self.wakes_at is not None and self.wakes_at <= passed_s:
            return True
        return self.is_ready is not None and self.is_ready()


class Scheduler:
    """The tasks of one life; ``passed_s``: the monotonic clock."""

    def __init__(self, seed: str, passed_s: float, switch_share: float) -> None:
        self.passed_s, self._switch_share = passed_s, switch_share
        self._random = random.Random(f"schedule {seed}")
        self._tasks: list[Task] = []
        self.current: Task | None = None
        self._main = threading.Semaphore(0)
        self._failure: BaseException | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Run the first task, and whatever it starts, until it ends. Raises what it raised."""
        first = self.spawn("director", work)
        with _activate(self):
            self._hand_to(first)
            self._main.acquire()
        if self._failure is not None:
            raise self._failure
        if first.error is not None:
            raise first.error

    def spawn(self, name: str, work: Callable[[], None]) -> Task:
        """Add a task, which begins when its turn comes."""
        task = Task(name, work, self.current)
        self._tasks.append(task)
        threading.Thread(target=self._live, args=(task,), name=name, daemon=True).start()
        return task

    def cross(self) -> None:
        """Let some time pass, and perhaps another task run."""
        self.passed_s += _STEP_S
        if self._random.random() < self._switch_share:
            self._switch()

    def sleep(self, seconds: float) -> None:
        """Wait for so many seconds of the simulated clock."""
        self.block(None, seconds)

    def block(self, is_ready: Callable[[], bool] | None, seconds: float | None) -> None:
        """Let other tasks run until the condition holds, or so many seconds have passed."""
        task = self._running()
        task.is_ready, task.wakes_at = is_ready, None if seconds is None else self.passed_s + seconds
        self._switch()
        task.is_ready = task.wakes_at = None

    def kill(self, task: Task) -> None:
        """Let the task and those that it started never run again, as when their process dies."""
        for each in self._tasks:
            if each is task or each.parent is task:
                each.is_dead = True

    def leave(self) -> None:
        """Hand over for ever: the running task was killed."""
        self._switch()

    def _running(self) -> Task:
        assert self.current is not None
        return self.current

    def _live(self, task: Task) -> None:
        task.baton.acquire()
        try:
            task.work()
        except BaseException as error:
            task.error = error
        task.is_over = True
        if task is self._tasks[0]:
            self._main.release()
        else:
            self._switch()

    def _switch(self) -> None:
        before = self._running()
        after = self._choose()
        if after is None:
            self._failure = Deadlock(", ".join(each.name for each in self._tasks if not (each.is_over or each.is_dead)))
            self._main.release()
        elif after is not before:
            self._hand_to(after)
        if not before.is_over and after is not before:
            before.baton.acquire()

    def _choose(self) -> Task | None:
        ready = [task for task in self._tasks if task.can_run(self.passed_s)]
        if not ready:
            living = [task for task in self._tasks if not (task.is_over or task.is_dead)]
            if not (times := [task.wakes_at for task in living if task.wakes_at is not None]):
                return None
            self.passed_s = max(self.passed_s, min(times))
            ready = [task for task in living if task.can_run(self.passed_s)]
        return self._random.choice(ready)

    def _hand_to(self, task: Task) -> None:
        self.current = task
        task.baton.release()


_active: Scheduler | None = None


def active() -> Scheduler:
    """Return the scheduler that runs."""
    assert _active is not None
    return _active


@contextmanager
def _activate(scheduler: Scheduler) -> Iterator[None]:
    global _active
    _active = scheduler
    try:
        yield
    finally:
        _active = None


class Event:
    """Stand-in for threading.Event."""

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            active().block(self.is_set, timeout)
        return self._is_set


class Lock:
    """Stand-in for threading.Lock."""

    def __init__(self) -> None:
        self._owner: Task | None = None

    def acquire(self) -> bool:
        if _active is not None:
            while self._owner is not None and not self._owner.is_dead:
                active().block(self._is_free, None)
            self._owner = active().current
            assert self._owner is not None
            self._owner.held += 1
        return True

    def release(self) -> None:
        if self._owner is not None:
            self._owner.held -= 1
            self._owner = None

    def _is_free(self) -> bool:
        return self._owner is None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class Thread:
    """Stand-in for threading.Thread."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...] = (), name: str, daemon: bool) -> None:
        self._work, self._name, self._task = lambda: target(*args), name, None
        del daemon

    _task: Task | None

    def start(self) -> None:
        self._task = active().spawn(self._name, self._work)

    def join(self, timeout: float | None = None) -> None:
        task = self._task
        assert task is not None
        if not task.is_over:
            active().block(lambda: task.is_over, timeout)


class SerialExecutor:
    """Stand-in for a ThreadPoolExecutor: each item is a task."""

    def __init__(self, **settings: Any) -> None:
        del settings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        results: dict[int, Any] = {}

        def put(number: int, item: Any) -> None:
            results[number] = work(item)

        tasks = [active().spawn(f"pool {n}", lambda n=n, item=item: put(n, item)) for n, item in enumerate(items)]  # type: ignore[misc]
        for task in tasks:
            active().block(lambda task=task: task.is_over, None)  # type: ignore[misc]
            if task.error is not None:
                raise task.error
        return [results[number] for number in range(len(tasks))]
