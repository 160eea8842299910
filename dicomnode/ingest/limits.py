"""Who gets in, and how much of the receiver one caller can have.

A *connection* is counted from its acceptance, an *association* from its request. Of both a machine can have so many and
no more, so that one which floods the port leaves room for the others. What is above a limit is refused while the
sender still has it: nothing that was acknowledged is dropped, nothing that is refused was acknowledged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from dicomnode.errors import OverRate, RefusedObject, TooLarge
from dicomnode.monitoring.meters import Meters

if TYPE_CHECKING:
    from db.studies import Sender
    from dicomnode.config import Config
    from dicomnode.ingest.pdata import Sink

__all__ = ["Allowance", "Complaints", "Doors", "Measured", "Pace", "Rates", "Visit", "plain_address"]

STRANGERS = "elsewhere"
"""All addresses together that no sender is listed at."""
_CONNECTIONS_PER_ASSOCIATION = 2
_PATIENCE_S = 10.0
"""A sender is slowed down by as much; one that is further ahead is told to come again."""
_BURST_S = 5.0
_MOST_KEPT = 1000

Clock = Callable[[], float]


class Doors:
    """How many connections and associations there are, in all, by place and by sender; a *place* is a machine."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._most = config.node.max_associations
        self._most_here = config.limits.associations_per_address
        self._lock = threading.Lock()
        self._connections: Counter[str] = Counter()
        self._associations: Counter[str] = Counter()
        self._senders: Counter[str] = Counter()

    def enter(self, address: str) -> Visit | None:
        """A connection from there; None when there are too many."""
        place = self._place(address)
        with self._lock:
            here, all_of_them = self._connections[place], self._connections.total()
            if here >= _CONNECTIONS_PER_ASSOCIATION * self._most_here:
                return None
            if all_of_them >= _CONNECTIONS_PER_ASSOCIATION * self._most:
                return None
            self._connections[place] += 1
        return Visit(self, place)

    def associate(self, visit: Visit, sender: Sender) -> bool:
        """Whether the visitor may have an association."""
        listed = self._config.find_sender(sender.ae_title, sender.address)
        most, name = listed.max_associations if listed else None, _name(self._config, sender)
        with self._lock:
            if self._associations.total() >= self._most or self._associations[visit.place] >= self._most_here:
                return False
            if most is not None and self._senders[name] >= most:
                return False
            self._associations[visit.place] += 1
            self._senders[name] += 1
            visit.sender = name
            return True

    def leave(self, visit: Visit) -> None:
        """The connection has ended."""
        with self._lock:
            _less(self._connections, visit.place)
            if visit.sender is not None:
                _less(self._associations, visit.place)
                _less(self._senders, visit.sender)

    def _place(self, address: str) -> str:
        senders = self._config.senders
        if senders and not any(sender.allows_address(address) for sender in senders):
            return STRANGERS
        parsed = ip_address(address)  # a machine has a whole /64 of IPv6
        return str(ip_network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address


class Visit:
    """One connection, as long as it lasts."""

    def __init__(self, doors: Doors, place: str) -> None:
        self._doors, self.place = doors, place
        self.sender: str | None = None

    def associate(self, sender: Sender) -> bool:
        """Whether it may become an association."""
        return self._doors.associate(self, sender)

    def end(self) -> None:
        """It is over."""
        self._doors.leave(self)


class Pace:
    """So much per minute: what comes sooner waits. A few seconds' worth may come at once."""

    def __init__(self, per_minute: float, clock: Clock = time.monotonic) -> None:
        self._seconds_each = 60 / per_minute
        self._clock, self._lock = clock, threading.Lock()
        self._paid_until = clock() - _BURST_S

    @property
    def ahead_s(self) -> float:
        """How long the next one would have to wait."""
        return max(0.0, self._paid_until - self._clock())

    def take(self, amount: float) -> float:
        """Take so much; the seconds to wait before."""
        with self._lock:
            now = self._clock()
            wait_s = max(0.0, self._paid_until - now)
            self._paid_until = max(self._paid_until, now - _BURST_S) + amount * self._seconds_each
            return wait_s


@dataclass(frozen=True)
class Allowance:
    """What one sender may send. ``max_object_bytes`` None: whatever it is."""

    max_object_bytes: float | None
    objects: Pace | None
    megabytes: Pace | None

    @property
    def is_boundless(self) -> bool:
        """Whether nothing limits it."""
        return self.max_object_bytes is None and self.objects is None and self.megabytes is None

    def check_pace(self) -> None:
        """Raises OverRate when the sender is so far ahead that it had better come again."""
        if any(pace is not None and pace.ahead_s > _PATIENCE_S for pace in (self.objects, self.megabytes)):
            raise OverRate("more per minute than this sender may send; send it again later")


class Rates:
    """The allowance of each sender, shared by all of its associations."""

    def __init__(self, config: Config, clock: Clock = time.monotonic) -> None:
        self._config, self._clock, self._lock = config, clock, threading.Lock()
        self._of: dict[str, Allowance] = {}

    def of(self, sender: Sender) -> Allowance:
        """What that sender may send."""
        name = _name(self._config, sender)
        with self._lock:
            if name not in self._of:
                if len(self._of) >= _MOST_KEPT:
                    self._of.clear()
                self._of[name] = self._allowance(sender)
            return self._of[name]

    def _allowance(self, sender: Sender) -> Allowance:
        listed, general = self._config.find_sender(sender.ae_title, sender.address), self._config.limits

        def stated(key: str) -> float | None:
            own: float | None = getattr(listed, key, None)
            return own if own is not None else getattr(general, key)

        size_mb, objects, megabytes = map(stated, ("max_object_mb", "max_objects_per_minute", "max_mb_per_minute"))
        return Allowance(
            None if size_mb is None else size_mb * 1e6,
            None if objects is None else Pace(objects, self._clock),
            None if megabytes is None else Pace(megabytes, self._clock),
        )


class Measured:
    """A sink for what a sender sends within its allowance. It is slowed down by reading later; what is too large, or
    too far ahead, is let pass and refused. ``wait``: returns after so many seconds, or when the node closes."""

    def __init__(
        self, open_sink: Callable[[], Sink], allowance: Allowance, meters: Meters, wait: Callable[[float], object]
    ) -> None:
        self._allowance, self._meters, self._wait = allowance, meters, wait
        self._sink: Sink | None = None
        self._refusal: RefusedObject | None = None
        self._bytes = 0
        try:
            allowance.check_pace()
        except OverRate as error:
            self._refusal = error
            return
        if allowance.objects is not None:
            self._pause(allowance.objects.take(1))
        self._sink = open_sink()

    def write(self, piece: memoryview) -> None:
        """A piece of the data set."""
        self._bytes += len(piece)
        if self._sink is None:
            return
        most = self._allowance.max_object_bytes
        if most is not None and self._bytes > most:
            self.discard()
            self._refusal = TooLarge(f"larger than the {most / 1e6:g} MB that are taken from this sender")
            return
        if self._allowance.megabytes is not None:
            self._pause(self._allowance.megabytes.take(len(piece) / 1e6))
        self._sink.write(piece)

    def finish(self) -> tuple[int, str]:
        """The status to answer with, and a comment."""
        if self._refusal is not None:
            self._meters.count_refused(self._refusal)
            return self._refusal.dicom_status, str(self._refusal)
        assert self._sink is not None  # there is a refusal without
        return self._sink.finish()

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._sink is not None:
            self._sink.discard()
            self._sink = None

    def _pause(self, wait_s: float) -> None:
        if wait_s > 0:
            self._wait(wait_s)


class Complaints:
    """Log lines about callers: once a minute for each place and reason, with how many there were."""

    def __init__(self, log: logging.Logger, clock: Clock = time.monotonic) -> None:
        self._log, self._clock, self._lock = log, clock, threading.Lock()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def say(self, address: str, what: str, level: int = logging.WARNING) -> None:
        """``what`` ends in no full stop and names nobody."""
        with self._lock:
            now = self._clock()
            said_at, unsaid = self._said.get((address, what), (now - 61, 0))
            if now - said_at < 60:
                self._said[address, what] = said_at, unsaid + 1
                return
            if len(self._said) >= _MOST_KEPT:
                self._said.clear()
            self._said[address, what] = now, 0
        self._log.log(level, "%s: %s%s", address, what, f" ({unsaid} times more in the meantime)" if unsaid else "")


def plain_address(address: str) -> str:
    """An IPv4 address that came through an IPv6 socket, as IPv4."""
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)


def _name(config: Config, sender: Sender) -> str:
    """By its entry in [[senders]]; where none is listed titles are anybody's, and it goes by its address."""
    listed = config.find_sender(sender.ae_title, sender.address)
    return sender.address if listed is None else f"sender {config.senders.index(listed)}"


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
