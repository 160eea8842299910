"""Quotas and limits of senders: objects too large or too fast, too many associations, senders that are not listed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydicom.uid import UID
from pynetdicom.presentation import build_context

from db.studies import Sender
from dicomnode.config import Config, Peer
from dicomnode.config.limits import LimitsConfig
from dicomnode.config.node import NodeConfig
from dicomnode.config.senders import SenderConfig
from dicomnode.dimse.associations import association
from dicomnode.errors import PeerRefused
from dicomnode.ingest.limits import (
    UNLISTED,
    ConnectionLimiter,
    RateLimitedSink,
    RateLimiter,
    SenderQuotas,
    ThrottledLog,
)
from dicomnode.monitoring.meters import Meters
from tests.certificates import RunningReceiver, run_receiver
from tests.peers import wait_for
from tests.peers.files import write_instance
from tests.sending import Encoded, associate, read_encoded, run_dcmtk, store_all

SCANNER = SenderConfig(ae_title="SCANNER")
_SIZE, _OUT_OF_RESOURCES = 0x0124, 0xA700


class Clock:
    """A clock that advances only when the test sets it, or when a wait is requested."""

    def __init__(self) -> None:
        self.now, self.waits = 1000.0, list[float]()

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def image(tmp_path: Path) -> Encoded:
    write_instance(tmp_path / "image.dcm")
    return read_encoded(tmp_path / "image.dcm")


def make_images(folder: Path, count: int) -> list[Encoded]:
    for number in range(count):
        write_instance(folder / f"{number}.dcm", InstanceNumber=number + 1)
    return [read_encoded(folder / f"{number}.dcm") for number in range(count)]


def send_all(receiver: RunningReceiver, objects: list[Encoded], folder: Path, ae_title: str = "SCANNER") -> list[int]:
    return [answer.Status for answer in store_all(receiver.port, objects, folder, ae_title=ae_title)]


def test_dcmtk_is_told_that_it_is_not_among_the_senders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_instance(tmp_path / "a.dcm")
    with run_receiver(tmp_path, senders=(SCANNER,)) as receiver:
        refused = run_dcmtk("storescu", receiver.config, receiver.port, "-aet", "STRANGER", str(tmp_path / "a.dcm"))
        assert refused.returncode != 0
        assert "Calling AE Title Not Recognized" in refused.stderr
        assert receiver.count_refused_associations("unknown_sender") == 1
        assert "127.0.0.1 (STRANGER): an association was refused: not among the senders" in caplog.text
        accepted = run_dcmtk("storescu", receiver.config, receiver.port, "-aet", "SCANNER", str(tmp_path / "a.dcm"))
        assert accepted.returncode == 0, accepted.stderr
        assert len(receiver.instances()) == 1


def test_an_object_that_is_too_large_is_refused_and_leaves_nothing(tmp_path: Path, image: Encoded) -> None:
    write_instance(tmp_path / "large.dcm", frames_bytes=2_000_000)
    large = read_encoded(tmp_path / "large.dcm")
    with run_receiver(tmp_path, limits=LimitsConfig(max_object_mb=1)) as receiver:
        with associate(receiver.port, [large, image]) as assoc:
            answer = assoc.send_c_store(large.save(tmp_path / "1.dcm"))
            assert answer.Status == _SIZE
            assert answer.ErrorComment == "larger than the 1 MB that are taken from this sender"
            assert receiver.files() == []
            assert assoc.send_c_store(image.save(tmp_path / "2.dcm")).Status == 0
        assert receiver.count_refused_instances("too_large") == 1
        assert len(receiver.instances()) == 1


def test_what_a_sender_may_send_is_said_of_it_or_of_all(tmp_path: Path) -> None:
    write_instance(tmp_path / "large.dcm", frames_bytes=2_000_000)
    large = [read_encoded(tmp_path / "large.dcm")]
    trusted = SenderConfig(ae_title="TRUSTED", max_object_mb=10)
    with run_receiver(tmp_path, senders=(SCANNER, trusted), limits=LimitsConfig(max_object_mb=1)) as receiver:
        assert send_all(receiver, large, tmp_path / "out", "SCANNER") == [_SIZE]
        assert send_all(receiver, large, tmp_path / "out", "TRUSTED") == [0]


def test_a_sender_that_is_far_too_fast_is_told_to_come_again(tmp_path: Path) -> None:
    """The first is accepted at once; the second would have to wait for longer than a sender is slowed down."""
    objects = make_images(tmp_path / "in", 2)
    sparse = SenderConfig(ae_title="SPARSE", max_objects_per_minute=1)
    with run_receiver(tmp_path, senders=(SCANNER, sparse)) as receiver:
        assert send_all(receiver, objects, tmp_path / "out", "SPARSE") == [0, _OUT_OF_RESOURCES]
        assert receiver.count_refused_instances("over_rate") == 1
        assert {row.sop_instance_uid for row in receiver.instances()} == {objects[0].sop_instance_uid}
        assert send_all(receiver, objects[1:], tmp_path / "out", "SCANNER") == [0]  # no other sender is held back


@pytest.mark.slow
def test_a_sender_that_is_a_little_too_fast_is_slowed_down_and_loses_nothing(tmp_path: Path) -> None:
    objects = make_images(tmp_path / "in", 4)
    write_instance(tmp_path / "in" / "large.dcm", frames_bytes=9_000_000)
    objects.append(read_encoded(tmp_path / "in" / "large.dcm"))
    with run_receiver(tmp_path, limits=LimitsConfig(max_mb_per_minute=80, max_objects_per_minute=3000)) as receiver:
        assert send_all(receiver, objects, tmp_path / "out") == [0] * 5
        assert len(receiver.instances()) == 5


def test_a_pace_lets_a_burst_through_and_then_so_much_per_minute(clock: Clock) -> None:
    limiter = RateLimiter(60, clock)
    assert [limiter.reserve(1) for _ in range(6)] == [0] * 6  # five seconds' worth, and the one that comes in time
    assert limiter.reserve(1) == pytest.approx(1)
    clock.now += 2
    assert limiter.reserve(1) == 0
    clock.now += 3600  # who was silent for an hour has no hour's worth saved up
    assert [limiter.reserve(1) for _ in range(7)] == pytest.approx([0] * 6 + [1])


def test_slowing_down_makes_the_stated_megabytes_per_minute(clock: Clock, tmp_path: Path) -> None:
    quotas = SenderQuotas(Config(limits=LimitsConfig(max_mb_per_minute=60)), clock)
    sizes: list[int] = []

    class Sink:
        def write(self, piece: memoryview) -> None:
            sizes.append(len(piece))

        def finish(self) -> tuple[int, str]:
            return 0, ""

        def discard(self) -> None:
            raise AssertionError

    sink = RateLimitedSink(Sink, quotas.find(Sender("SCANNER", "10.0.0.1")), Meters(), clock.wait)
    began = clock.now
    for _ in range(100):
        sink.write(memoryview(bytes(1_000_000)))
    assert sink.finish() == (0, "")
    assert sum(sizes) == 100_000_000
    assert clock.now - began == pytest.approx(100, abs=7)
    assert max(clock.waits) < 1.1  # the sender sees a slow network, not a stop


def test_rates_are_of_a_sender_however_it_comes(clock: Clock) -> None:
    listed = SenderConfig(ae_title="SCANNER", max_objects_per_minute=6)
    quotas = SenderQuotas(Config(senders=(listed,)), clock)
    assert quotas.find(Sender("SCANNER", "10.0.0.1")) is quotas.find(Sender("SCANNER", "10.0.0.2"))
    anybody = SenderQuotas(Config(), clock)
    assert anybody.find(Sender("A", "10.0.0.1")) is anybody.find(Sender("B", "10.0.0.1"))  # titles are free there
    assert anybody.find(Sender("A", "10.0.0.1")) is not anybody.find(Sender("A", "10.0.0.2"))


def test_a_sender_may_have_so_many_associations(tmp_path: Path, image: Encoded) -> None:
    one = SenderConfig(ae_title="SCANNER", max_associations=1)
    with run_receiver(tmp_path, senders=(one, SenderConfig(ae_title="OTHER"))) as receiver:
        with associate(receiver.port, [image], ae_title="SCANNER"):
            with pytest.raises(PeerRefused, match="limit"), associate(receiver.port, [image], ae_title="SCANNER"):
                pass
            with associate(receiver.port, [image], ae_title="OTHER") as assoc:
                assert assoc.is_established
            assert receiver.count_refused_associations("too_many_associations") == 1
        wait_for(lambda: not receiver.server.active_associations, "the associations end")
        with associate(receiver.port, [image], ae_title="SCANNER") as assoc:
            assert assoc.is_established


def test_addresses_that_no_sender_has_share_the_room_of_one() -> None:
    listed = SenderConfig.model_validate({"ae_title": "MR1", "addresses": ["10.1.0.0/16", "2001:db8::/32"]})
    config = Config(senders=(listed,), limits=LimitsConfig(associations_per_address=2))
    limiter = ConnectionLimiter(config)
    strangers = [limiter.open_connection(f"192.0.2.{number}") for number in range(10)]
    assert [slot.machine for slot in strangers if slot] == [UNLISTED] * 4
    assert [bool(limiter.open_connection("10.1.0.1")) for _ in range(5)] == [True] * 4 + [False]
    assert limiter.open_connection("10.1.0.2")
    for slot in filter(None, strangers):
        slot.release()
    assert limiter.open_connection("192.0.2.99")


def test_a_machine_with_many_addresses_of_ipv6_is_one_machine() -> None:
    limiter = ConnectionLimiter(Config(limits=LimitsConfig(associations_per_address=1)))
    assert [bool(limiter.open_connection(f"2001:db8::{number}")) for number in range(1, 4)] == [True, True, False]
    assert limiter.open_connection("2001:db8:0:1::1")


def test_what_leaves_makes_room() -> None:
    limiter = ConnectionLimiter(Config(node=NodeConfig(max_associations=1)))
    first, second = limiter.open_connection("10.0.0.1"), limiter.open_connection("10.0.0.2")
    assert first
    assert second
    assert first.open_association(Sender("A", "10.0.0.1"))
    assert not second.open_association(Sender("B", "10.0.0.2"))
    first.release()
    assert second.open_association(Sender("B", "10.0.0.2"))


def test_the_log_is_not_flooded(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    log = ThrottledLog(logging.getLogger("flood"), clock)
    for _ in range(100):
        log.write("10.0.0.1", "has too many connections")
    log.write("10.0.0.2", "has too many connections")
    assert [record.message for record in caplog.records] == [
        "10.0.0.1: has too many connections",
        "10.0.0.2: has too many connections",
    ]
    clock.now += 61
    log.write("10.0.0.1", "has too many connections")
    assert caplog.records[-1].message == "10.0.0.1: has too many connections (99 times more in the meantime)"


def test_the_log_names_every_title_of_an_address(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    log = ThrottledLog(logging.getLogger("titles"), clock)
    for title in ("MR1", "CT1", "MR1"):
        log.write("10.0.0.1", "refused", ae_title=title)
    assert [record.message for record in caplog.records] == ["10.0.0.1 (MR1): refused", "10.0.0.1 (CT1): refused"]


def test_ever_new_titles_do_not_flood_the_log(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    log = ThrottledLog(logging.getLogger("titles"), clock)
    for minute in range(2):
        for number in range(500):
            log.write("10.0.0.1", "refused", ae_title=f"AE{number}")
        assert len(caplog.records) == 9 * (minute + 1)
        clock.now += 61
    log.write("10.0.0.2", "refused", ae_title="MR1")
    assert caplog.records[-1].message == "10.0.0.2 (MR1): refused"


def test_a_refusal_for_size_does_not_open_the_door_to_an_endless_object(tmp_path: Path, image: Encoded) -> None:
    """Data beyond the limit are read and dropped, so that the answer reaches the sender."""
    write_instance(tmp_path / "huge.dcm", frames_bytes=30_000_000)
    with run_receiver(tmp_path, limits=LimitsConfig(max_object_mb=1)) as receiver:
        peer = Peer(name="receiver", ae_title="DICOMNODE", port=receiver.port)
        context = build_context(UID(image.sop_class_uid), UID(image.transfer_syntax_uid))
        with association(peer, [context], calling_aet="SCANNER", timeout_s=30) as assoc:
            assert assoc.send_c_store(tmp_path / "huge.dcm").Status == _SIZE
        assert receiver.files() == []
