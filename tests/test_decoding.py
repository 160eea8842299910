"""Decoding in child processes: a failure there does not reach the node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, JPEGLossless, JPEGLSLossless

from dicomnode import decoding
from dicomnode.datasets import codestreams
from dicomnode.decoding.budget import Budget
from dicomnode.decoding.cache import AnswerCache
from dicomnode.decoding.pool import Pool
from dicomnode.errors import InputRefused, NodeBusy
from dicomnode.reading import frames
from dicomnode.transcoding import pixels
from tests.decoding_work import find_process_id, state_process_id_and_sleep
from tests.peers.files import write_instance
from tests.peers.process import wait_for
from tests.web_node import Web, web

__all__ = ["web"]


@pytest.fixture
def pool() -> Iterator[Pool]:
    created_pool = Pool()
    yield created_pool
    created_pool.close()


def test_an_answer_comes_back_whole(pool: Pool) -> None:
    assert b"".join(pool.run(bytes, 5_000_001)) == bytes(5_000_001)


@pytest.mark.slow
def test_a_decoder_that_crashes_costs_its_answer_only_and_is_not_asked_again(pool: Pool) -> None:
    first = pool.run(find_process_id, "first")
    with pytest.raises(InputRefused, match="ended the process"):
        pool.run(os.abort)
    second = pool.run(find_process_id, "second")
    assert second != first
    with pytest.raises(InputRefused, match="ended the process"):
        pool.run(os.abort)
    assert pool.run(find_process_id, "third") == second


def test_an_idle_child_that_was_ended_costs_no_answer(pool: Pool) -> None:
    first = int(pool.run(find_process_id)[0])
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: has_ended(first), "the idle child has ended")
    assert int(pool.run(find_process_id)[0]) != first


def test_memory_has_a_limit(pool: Pool) -> None:
    child = pool.run(find_process_id)
    with pytest.raises(InputRefused, match="more memory"):
        pool.run(bytes, 2 << 30)
    assert pool.run(find_process_id) == child, "the process itself goes on"


def test_an_answer_has_a_limit(pool: Pool) -> None:
    with pytest.raises(InputRefused, match="128 MiB"):
        pool.run(bytes, decoding.LARGEST_ANSWER + 1)


def test_time_has_a_limit() -> None:
    pool = Pool(work_s=0.5)
    with pytest.raises(InputRefused, match="takes more than"):
        pool.run(time.sleep, 60)  # type: ignore[arg-type]
    pool.close()


def test_a_refusal_in_the_child_is_told_in_its_words(pool: Pool, tmp_path: Path) -> None:
    write_instance(tmp_path / "a.dcm", NumberOfFrames=77)
    with pytest.raises(InputRefused, match="77 frames of 16 x 16 are announced"):
        pool.run(pixels.read_layout, tmp_path / "a.dcm")  # type: ignore[arg-type]


def has_ended(process_id: int) -> bool:
    """Return whether a process has ended, also where nobody has fetched its status yet."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
def test_children_end_with_the_one_that_asks_them() -> None:
    code = (
        "import os; from dicomnode.decoding.pool import Pool; from tests.decoding_work import find_process_id;"
        "pool = Pool(); print(pool.run(find_process_id)[0].decode(), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    wait_for(lambda: has_ended(int(done.stdout)), "the child has gone")


def test_closing_ends_a_child_at_its_work(pool: Pool, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as other:
        answer = other.submit(pool.run, state_process_id_and_sleep, tmp_path / "child", 60)
        wait_for((tmp_path / "child").exists, "a child is at work")
        pool.close()
        with pytest.raises(InputRefused, match="ended the process"):
            answer.result(20)
    assert has_ended(int((tmp_path / "child").read_text()))


@pytest.mark.slow
def test_a_child_at_endless_work_ends_without_a_parent() -> None:
    code = "from dicomnode.decoding import child; child.limit_cpu_time(1)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGXCPU


@pytest.mark.slow
def test_what_is_too_much_is_told_to_come_again_and_health_answers(web: Web, tmp_path: Path) -> None:
    ds = write_instance(tmp_path / "a.dcm")
    assert web.store([tmp_path / "a.dcm"]).status_code == 200
    where = f"/dicom-web/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "general_pool", Pool(children=0, wait_s=0.05))
        for path in (f"{where}/rendered", f"{where}/thumbnail", f"/studies/{ds.StudyInstanceUID}/thumbnail"):
            answer = web.get(path)
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
        for path in ("/healthz", "/readyz", "/", f"{where}/frames/1"):  # native frames need no decoding
            assert web.get(path).status_code == 200
    assert web.get(f"{where}/rendered").status_code == 200, "being busy is not remembered"


def test_bytes_on_their_way_have_a_limit_and_are_given_back() -> None:
    budget = Budget(100)
    first = budget.stream([b"a" * 60])
    assert next(first) == b"a" * 60
    assert budget.available == 40
    later = threading.Thread(target=lambda: list(budget.stream([b"b" * 60])))
    later.start()
    first.close()  # the client has disconnected
    later.join(10)
    assert not later.is_alive()
    assert budget.available == 100


def test_answers_are_remembered_up_to_a_number_of_bytes() -> None:
    cache, calls = AnswerCache(100_000), []

    def compute() -> bytes:
        calls.append(1)
        return bytes(10_000)

    for key in (1, 1, *range(2, 30), 1):
        cache.get(key, compute)
    assert len(calls) == 30  # once for each key, and again for key 1 after its eviction
    assert cache.size_bytes <= 100_000


def test_refusals_are_remembered_and_busyness_is_not() -> None:
    cache, tries = AnswerCache(100_000), iter([NodeBusy("later"), InputRefused("never")])

    def refuse() -> bytes:
        raise next(tries)

    with pytest.raises(NodeBusy):
        cache.get(1, refuse)
    for _ in range(2):
        with pytest.raises(InputRefused, match="never"):
            cache.get(1, refuse)


SIZ = b"".join(number.to_bytes(4, "big") for number in (900, 700, 100, 100))
"""Image and tile sizes of a JPEG 2000 codestream: 600 rows and 800 columns."""


@pytest.mark.parametrize(
    ("syntax", "head"),
    [
        (JPEG2000Lossless, b"\xff\x4f\xff\x51\0\x29\0\0" + SIZ + bytes(16) + b"\0\1"),
        (JPEGLSLossless, b"\xff\xd8\xff\xf7\0\x0b\x08\x02\x58\x03\x20\x01"),
        (JPEGLossless, b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xc3\0\x0b\x08\x02\x58\x03\x20\x01"),
    ],
)
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path, syntax: UID, head: bytes) -> None:
    assert codestreams.read_size(head) == (600, 800, 1)
    write_instance(tmp_path / "a.dcm", transfer_syntax_uid=syntax, PixelData=encapsulate([head + b"\0" * 50]))
    place = pixels.read_layout(tmp_path / "a.dcm")
    assert place is not None
    with pytest.raises(InputRefused, match="is 600 x 800 x 1, its header announces 16 x 16 x 1"):
        pixels.decode_array(place, 0)


@pytest.mark.parametrize("damaged", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc3\0", b"\xff\x4f\xff\x51\0", b"\0" * 64])
def test_a_codestream_that_says_no_size_is_left_to_its_decoder(damaged: bytes) -> None:
    assert codestreams.read_size(damaged) is None


@pytest.mark.parametrize("number", ["0", "1", " 1 "])
def test_frames_that_there_are_bytes_for_are_taken(tmp_path: Path, number: str) -> None:
    write_instance(tmp_path / "a.dcm", NumberOfFrames=number)
    place = pixels.read_layout(tmp_path / "a.dcm")
    assert place is not None
    assert place.frames == 1


@pytest.mark.parametrize("number", [2, 2_000_000_000, -1])
def test_frames_that_there_are_no_bytes_for_are_refused(tmp_path: Path, number: int) -> None:
    write_instance(tmp_path / "a.dcm", NumberOfFrames=number)
    with pytest.raises(InputRefused, match=f"{number} frames of 16 x 16 are announced"):
        pixels.read_layout(tmp_path / "a.dcm")


def test_a_header_of_more_frames_than_its_file_has_bytes_is_refused(tmp_path: Path) -> None:
    write_instance(tmp_path / "a.dcm", NumberOfFrames=2_000_000_000)
    with pytest.raises(InputRefused, match="2000000000 frames are announced"):
        frames.read_header(tmp_path / "a.dcm")
