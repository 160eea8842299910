"""Limits on connections, associations and data rates, by machine and by sender.

A *connection* is counted from its acceptance, an *association* from its request. The number of both is limited for each
machine, so that a machine that floods the port leaves room for the others. Data above a limit are refused while the
sender still has them: no acknowledged instance is dropped, and no refused instance was acknowledged.
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

__all__ = [
    "ConnectionLimiter",
    "ConnectionSlot",
    "RateLimitedSink",
    "RateLimiter",
    "SenderQuota",
    "SenderQuotas",
    "ThrottledLog",
    "normalise_address",
]

UNLISTED = "elsewhere"
"""Common name of all addresses at which no sender is listed: they share the limits of one machine."""
_CONNECTIONS_PER_ASSOCIATION = 2
_LONGEST_DELAY_S = 10.0
"""Longest time by which a sender is slowed down; beyond it, an object is refused as over the rate."""
_BURST_S = 5.0
_LOG_INTERVAL_S = 60.0
_MOST_ENTRIES = 1000
_MOST_TITLES = 8

Clock = Callable[[], float]


class ConnectionLimiter:
    """Counts of open connections and associations: in all, by machine and by sender."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._most = config.node.max_associations
        self._most_per_machine = config.limits.associations_per_address
        self._lock = threading.Lock()
        self._connections: Counter[str] = Counter()
        self._associations: Counter[str] = Counter()
        self._senders: Counter[str] = Counter()

    def open_connection(self, address: str) -> ConnectionSlot | None:
        """Return a slot for a connection from the address, or None where too many are open."""
        machine = self._find_machine(address)
        with self._lock:
            if self._connections[machine] >= _CONNECTIONS_PER_ASSOCIATION * self._most_per_machine:
                return None
            if self._connections.total() >= _CONNECTIONS_PER_ASSOCIATION * self._most:
                return None
            self._connections[machine] += 1
        return ConnectionSlot(self, machine)

    def open_association(self, slot: ConnectionSlot, sender: Sender) -> bool:
        """Return whether the connection may become an association, and count it if so."""
        listed = self._config.find_sender(sender.ae_title, sender.address)
        most, name = listed.max_associations if listed else None, _find_name(self._config, sender)
        with self._lock:
            if self._associations.total() >= self._most or self._associations[slot.machine] >= self._most_per_machine:
                return False
            if most is not None and self._senders[name] >= most:
                return False
            self._associations[slot.machine] += 1
            self._senders[name] += 1
            slot.sender = name
            return True

    def close_connection(self, slot: ConnectionSlot) -> None:
        """Count the connection, and its association if it became one, as ended."""
        with self._lock:
            _decrement(self._connections, slot.machine)
            if slot.sender is not None:
                _decrement(self._associations, slot.machine)
                _decrement(self._senders, slot.sender)

    def _find_machine(self, address: str) -> str:
        senders = self._config.senders
        if senders and not any(sender.allows_address(address) for sender in senders):
            return UNLISTED
        parsed = ip_address(address)  # a machine has a whole /64 of IPv6
        return str(ip_network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address


class ConnectionSlot:
    """One counted connection, from its acceptance to its end."""

    def __init__(self, limiter: ConnectionLimiter, machine: str) -> None:
        self._limiter, self.machine = limiter, machine
        self.sender: str | None = None

    def open_association(self, sender: Sender) -> bool:
        """Return whether the connection may become an association, and count it if so."""
        return self._limiter.open_association(self, sender)

    def release(self) -> None:
        """Count the connection as ended."""
        self._limiter.close_connection(self)


class RateLimiter:
    """Rate limit of an amount per minute, with a burst of a few seconds' worth."""

    def __init__(self, per_minute: float, clock: Clock = time.monotonic) -> None:
        self._seconds_each = 60 / per_minute
        self._clock, self._lock = clock, threading.Lock()
        self._paid_until = clock() - _BURST_S

    @property
    def delay_s(self) -> float:
        """Seconds that the next request would have to wait."""
        return max(0.0, self._paid_until - self._clock())

    def reserve(self, amount: float) -> float:
        """Reserve the amount; return the seconds to wait before it may be used."""
        with self._lock:
            now = self._clock()
            wait_s = max(0.0, self._paid_until - now)
            self._paid_until = max(self._paid_until, now - _BURST_S) + amount * self._seconds_each
            return wait_s


@dataclass(frozen=True)
class SenderQuota:
    """Limits of one sender: size of an object in bytes, objects per minute, megabytes per minute; None: no limit."""

    max_object_bytes: float | None
    objects: RateLimiter | None
    megabytes: RateLimiter | None

    @property
    def is_unlimited(self) -> bool:
        """True where the sender has no limit at all."""
        return self.max_object_bytes is None and self.objects is None and self.megabytes is None

    def check_rate(self) -> None:
        """Raise OverRate where the sender would have to wait longer than it is slowed down."""
        limiters = (self.objects, self.megabytes)
        if any(limiter is not None and limiter.delay_s > _LONGEST_DELAY_S for limiter in limiters):
            raise OverRate("more per minute than this sender may send; send it again later")


class SenderQuotas:
    """The quota of each sender, shared by all of its associations."""

    def __init__(self, config: Config, clock: Clock = time.monotonic) -> None:
        self._config, self._clock, self._lock = config, clock, threading.Lock()
        self._quotas: dict[str, SenderQuota] = {}

    def find(self, sender: Sender) -> SenderQuota:
        """Return the quota of the sender."""
        name = _find_name(self._config, sender)
        with self._lock:
            if name not in self._quotas:
                if len(self._quotas) >= _MOST_ENTRIES:
                    self._quotas.clear()
                self._quotas[name] = self._make_quota(sender)
            return self._quotas[name]

    def _make_quota(self, sender: Sender) -> SenderQuota:
        listed, general = self._config.find_sender(sender.ae_title, sender.address), self._config.limits

        def limit(key: str) -> float | None:
            own: float | None = getattr(listed, key, None)
            return own if own is not None else getattr(general, key)

        size_mb, objects, megabytes = map(limit, ("max_object_mb", "max_objects_per_minute", "max_mb_per_minute"))
        return SenderQuota(
            None if size_mb is None else size_mb * 1e6,
            None if objects is None else RateLimiter(objects, self._clock),
            None if megabytes is None else RateLimiter(megabytes, self._clock),
        )


class RateLimitedSink:
    """Sink that holds a sender to its quota.

    The sender is slowed down by reading later. An object that is too large, or comes too fast, is read, dropped and
    refused. ``wait`` returns after a number of seconds, or when the node closes.
    """

    def __init__(
        self, open_sink: Callable[[], Sink], quota: SenderQuota, meters: Meters, wait: Callable[[float], object]
    ) -> None:
        self._quota, self._meters, self._wait = quota, meters, wait
        self._sink: Sink | None = None
        self._refusal: RefusedObject | None = None
        self._bytes = 0
        try:
            quota.check_rate()
        except OverRate as error:
            self._refusal = error
            return
        if quota.objects is not None:
            self._pause(quota.objects.reserve(1))
        self._sink = open_sink()

    def write(self, piece: memoryview) -> None:
        """Write the next piece of the encoded data set."""
        self._bytes += len(piece)
        if self._sink is None:
            return
        most = self._quota.max_object_bytes
        if most is not None and self._bytes > most:
            self.discard()
            self._refusal = TooLarge(f"larger than the {most / 1e6:g} MB that are taken from this sender")
            return
        if self._quota.megabytes is not None:
            self._pause(self._quota.megabytes.reserve(len(piece) / 1e6))
        self._sink.write(piece)

    def finish(self) -> tuple[int, str]:
        """Finish the inner sink; return the DIMSE status and, for a failure, an error comment."""
        if self._refusal is not None:
            self._meters.count_refused(self._refusal)
            return self._refusal.dicom_status, str(self._refusal)
        assert self._sink is not None  # without a sink, a refusal was set
        return self._sink.finish()

    def discard(self) -> None:
        """Remove the received part of the object."""
        if self._sink is not None:
            self._sink.discard()
            self._sink = None

    def _pause(self, wait_s: float) -> None:
        if wait_s > 0:
            self._wait(wait_s)


class ThrottledLog:
    """Log of messages about callers: one line a minute for each address, AE title and message, with the number
    suppressed. An address that calls under ever new titles is named with the first ``_MOST_TITLES`` of them."""

    def __init__(self, log: logging.Logger, clock: Clock = time.monotonic) -> None:
        self._log, self._clock, self._lock = log, clock, threading.Lock()
        self._last: dict[tuple[str, str, str], tuple[float, int]] = {}

    def write(self, address: str, message: str, level: int = logging.WARNING, *, ae_title: str = "") -> None:
        """Log the message unless it was logged for the address and AE title less than a minute ago.

        ``message`` ends in no full stop and names no patient.
        """
        with self._lock:
            now = self._clock()
            key = (address, message, self._choose_title(address, message, ae_title, now))
            logged_at, suppressed = self._last.get(key, (float("-inf"), 0))
            if now - logged_at < _LOG_INTERVAL_S:
                self._last[key] = logged_at, suppressed + 1
                return
            if len(self._last) >= _MOST_ENTRIES:
                self._last.clear()
            self._last[key] = now, 0
        count = f" ({suppressed} times more in the meantime)" if suppressed else ""
        caller = f"{address} ({ae_title})" if ae_title else address
        self._log.log(level, "%s: %s%s", caller, message, count)

    def _choose_title(self, address: str, message: str, ae_title: str, now: float) -> str:
        """Return the title, or none where the address has had its most titles within the last minute."""
        recent = {
            title
            for (caller, text, title), (logged_at, _) in self._last.items()
            if (caller, text) == (address, message) and now - logged_at < _LOG_INTERVAL_S
        }
        return ae_title if ae_title in recent or len(recent) < _MOST_TITLES else ""


def normalise_address(address: str) -> str:
    """Return an IPv4 address that came through an IPv6 socket as plain IPv4, any other address unchanged."""
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)


def _find_name(config: Config, sender: Sender) -> str:
    """Return the entry of a sender in [[senders]], or its address where no entry lists it: any caller may claim a
    title that is not listed."""
    listed = config.find_sender(sender.ae_title, sender.address)
    return sender.address if listed is None else f"sender {config.senders.index(listed)}"


def _decrement(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
