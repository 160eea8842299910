"""Frames of compressed files without an offset table are located once for a file, not once for a frame."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from pydicom.encaps import encapsulate, parse_fragments
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage, RLELossless

from dicomnode.transcoding import pixels
from tests.peers.files import write_instance

FRAMES = 40


def _write(path: Path, fragments: list[bytes], frames: int, *, has_bot: bool) -> Path:
    ds = write_instance(path, sop_class_uid=MultiFrameGrayscaleWordSecondaryCaptureImageStorage, NumberOfFrames=frames)
    ds.file_meta.TransferSyntaxUID = RLELossless
    ds.PixelData = encapsulate(fragments, has_bot=has_bot)
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path, enforce_file_format=True)
    return path


def _make_fragments(count: int) -> list[bytes]:
    generator = np.random.default_rng(3)
    return [generator.bytes(2 * int(generator.integers(1, 50))) for _ in range(count)]


@pytest.mark.parametrize("has_bot", [False, True], ids=["no offsets", "offsets"])
def test_each_frame_is_its_own_fragment(has_bot: bool, tmp_path: Path) -> None:
    fragments = _make_fragments(FRAMES)
    found = pixels.read_layout(_write(tmp_path / "a.dcm", fragments, FRAMES, has_bot=has_bot))
    assert found is not None
    assert [pixels.read_frame(found, index) for index in (0, 7, FRAMES - 1)] == [fragments[n] for n in (0, 7, -1)]


def test_fragments_are_walked_once_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pixels.read_layout(_write(tmp_path / "a.dcm", _make_fragments(FRAMES), FRAMES, has_bot=False))
    assert found is not None
    walk = Mock(wraps=parse_fragments)
    monkeypatch.setattr(pixels, "parse_fragments", walk)
    for index in range(FRAMES):
        pixels.read_frame(found, index)
    assert walk.call_count == 1


def test_several_fragments_are_one_frame(tmp_path: Path) -> None:
    fragments = _make_fragments(3)
    found = pixels.read_layout(_write(tmp_path / "a.dcm", fragments, 1, has_bot=False))
    assert found is not None
    assert pixels.read_frame(found, 0) == b"".join(fragments)
