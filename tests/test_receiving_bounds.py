"""Limits on data sets; a sender of an endless one does not keep another waiting."""

from __future__ import annotations

import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicomnode.datasets import encoding, headers, inflating
from dicomnode.errors import CannotUnderstand, InputRefused
from dicomnode.reading import frames, stored_values
from tests import databases
from tests.receivers import Receiver, an_instance, make_instances, receiver, start
from tests.sending import Encoded, associate, store_all

__all__ = ["an_instance", "receiver", "start"]  # fixtures

_PIXELS = b"\xe0\x7f\x10\0OW"
_SEQUENCE, _SEQUENCE_END = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\xdd\xe0\0\0\0\0"
_ITEM, _ITEM_END = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0"


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Return an SQLite database: its single write lock could make other senders wait."""
    return databases.copy_sqlite(tmp_path / "node.sqlite")


def _insert_before_pixels(each: Encoded, content: bytes) -> Encoded:
    at = each.data_set.index(_PIXELS)
    return each.with_changes(data_set=each.data_set[:at] + content + each.data_set[at:])


def _encode_empty_private(count: int) -> bytes:
    """Return empty elements in the private groups 0029 to 7FDF, in order."""
    tags = ((group, number) for group in range(0x29, 0x7FE0, 2) for number in range(0x1000, 0x10000))
    return b"".join(struct.pack("<HH", *next(tags)) + b"LO\0\0" for _ in range(count))


def _encode_nested(count: int) -> bytes:
    return _SEQUENCE + _ITEM + b"\x08\0\x60\0CS\0\0" * count + _ITEM_END + _SEQUENCE_END


def _deflate(content: bytes, zeros: int = 0) -> bytes:
    """Return a deflated data set whose last element has so many megabytes of zeros."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [deflate.compress(content), *(deflate.compress(bytes(1 << 20)) for _ in range(zeros)), deflate.flush()]
    content = b"".join(parts)
    return content + b"\0" * (len(content) % 2)


def _make_bomb(each: Encoded, megabytes: int) -> Encoded:
    at = each.data_set.index(_PIXELS)
    pixels = _PIXELS + struct.pack("<HL", 0, megabytes << 20)
    content = _deflate(each.data_set[:at] + pixels, megabytes)
    return each.with_changes(transfer_syntax_uid=DeflatedExplicitVRLittleEndian, data_set=content)


@pytest.mark.slow
def test_six_million_empty_elements_are_refused_and_another_sender_is_served_meanwhile(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "MOST_NESTED", 1_000_000)
    (each, *others) = make_instances(tmp_path / "folder", 40)
    path = _insert_before_pixels(each, b"\x29\0\0\x10LO\0\0" * 6_000_000).save(tmp_path / "endless.dcm")
    nested = _insert_before_pixels(each, _encode_nested(2_000_000)).save(tmp_path / "nested.dcm")
    answers: list[Dataset] = []
    waits: list[float] = []
    done = threading.Event()

    def send() -> None:
        with associate(receiver.port, [each], timeout_s=120) as assoc:
            answers.extend((assoc.send_c_store(path), assoc.send_c_store(nested)))
        done.set()

    thread = threading.Thread(target=send)
    start = time.monotonic()
    thread.start()
    with associate(receiver.port, [each], ae_title="OTHER") as assoc:
        for number, other in enumerate(others):
            begun = time.monotonic()
            assert assoc.send_c_store(other.save(tmp_path / f"{number}.dcm")).Status == 0
            waits.append(time.monotonic() - begun)
            if done.is_set():
                break
    thread.join()
    duration_s = time.monotonic() - start
    assert [answer.Status for answer in answers] == [0xC000, 0xC000]
    assert f"more than {encoding.MOST_ELEMENTS} elements" in answers[0].ErrorComment
    assert f"more than {encoding.MOST_NESTED} nested" in answers[1].ErrorComment
    assert max(waits) < max(2, duration_s / 4), "the other sender waits for the first one"
    assert len(receiver.rows()) == len(receiver.files()) == len(waits)


@pytest.mark.slow
def test_what_is_legal_is_stored_to_the_bound(receiver: Receiver, tmp_path: Path) -> None:
    flat, nested = make_instances(tmp_path / "folder", 2)
    sent = [
        _insert_before_pixels(flat, _encode_empty_private(encoding.MOST_ELEMENTS - 100)),
        _insert_before_pixels(nested, _encode_nested(200_000)),
    ]
    assert [answer.Status for answer in store_all(receiver.port, sent, tmp_path / "out")] == [0, 0]
    assert [receiver.data_set(row) for row in receiver.rows()] == [each.data_set for each in sent]


@pytest.mark.slow
def test_a_deflated_object_is_stored_unless_it_inflates_beyond_the_bound(receiver: Receiver, tmp_path: Path) -> None:
    good, bad = make_instances(tmp_path / "folder", 2)
    sent = [_make_bomb(good, 40), _make_bomb(bad, 300)]
    assert max(len(each.data_set) for each in sent) < 1_100_000
    answers = store_all(receiver.port, sent, tmp_path / "out")
    assert [answer.Status for answer in answers] == [0, 0xC000]
    assert answers[1].ErrorComment == f"the data set inflates to more than {inflating.MOST_INFLATED} bytes"
    assert [row.sop_instance_uid for row in receiver.rows()] == [good.sop_instance_uid]


@pytest.mark.slow
def test_of_many_deflated_objects_one_at_a_time_is_held_in_memory(tmp_path: Path) -> None:
    paths = [
        _make_bomb(each, 40).save(tmp_path / f"{n}.dcm")
        for n, each in enumerate(make_instances(tmp_path / "folder", 5))
    ]
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(len(paths)) as pool:
            assert len({facts.sop_instance_uid for facts in pool.map(headers.read, paths)}) == len(paths)
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_file_that_inflates_beyond_the_bound_is_not_read_as_an_image(tmp_path: Path) -> None:
    (each,) = make_instances(tmp_path / "folder", 1)
    path = _make_bomb(each, 300).save(tmp_path / "a.dcm")
    readers: list[Callable[[Path], object]] = [frames.read_header, partial(stored_values.decode_frame, index=0)]
    for read in readers:
        tracemalloc.start()
        try:
            with pytest.raises(InputRefused, match="inflates to more than"):
                read(path)
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()


def test_a_file_is_inflated_no_further_than_asked(tmp_path: Path) -> None:
    (each,) = make_instances(tmp_path / "folder", 1)
    path = _make_bomb(each, 40).save(tmp_path / "a.dcm")
    encoding.check_inflated_size(path, at_most=50 << 20)
    encoding.check_inflated_size(each.save(tmp_path / "plain.dcm"), at_most=1)  # is not deflated
    tracemalloc.start()
    try:
        with pytest.raises(CannotUnderstand, match="inflates to more than 1048576 bytes"):
            encoding.check_inflated_size(path, at_most=1 << 20)
        with pytest.raises(CannotUnderstand):
            inflating.inflate(_make_bomb(each, 40).data_set, at_most=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("broken", [b"", b"\xff" * 40, "cut"])
def test_what_cannot_be_inflated_is_not_understood(tmp_path: Path, broken: bytes | str) -> None:
    (each,) = make_instances(tmp_path / "folder", 1)
    content = _deflate(each.data_set)[:-20] if broken == "cut" else bytes(broken)  # type: ignore[arg-type]
    with pytest.raises(CannotUnderstand):
        headers.read(
            each.with_changes(transfer_syntax_uid=DeflatedExplicitVRLittleEndian, data_set=content).save(tmp_path / "a")
        )


def test_a_sequence_that_says_more_than_there_is_is_not_understood(tmp_path: Path) -> None:
    """The length of an item may lead beyond the end of the file."""
    (each,) = make_instances(tmp_path / "folder", 1)
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\x7f"
    with pytest.raises(CannotUnderstand, match="delimiter is missing"):
        headers.read(_insert_before_pixels(each, _SEQUENCE + item).save(tmp_path / "a"))
