"""The progress bar of the commands: on a terminal only, and on stderr."""

from __future__ import annotations

import pytest

from dicomnode.cli import context


def test_nothing_is_drawn_where_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with context.show_progress_bar("starting") as bar:
        bar.update(0.5, "segmentation")
        bar.print_line("step 3  [loss 0.5]")
    assert not bar.is_drawn
    assert capsys.readouterr() == ("", "step 3  [loss 0.5]\n")


def test_a_terminal_shows_step_items_and_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with context.show_progress_bar("starting", None) as bar:
        bar.update(1, "step 1/4", 4)
        bar.print_line("step 1  loss 0.5")
    with context.show_progress_bar("to peer", 2, counts_items=True) as items:
        items.advance()
    assert bar.is_drawn
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 1/4" in err
    assert "step 1  loss 0.5" in err
    assert "1/2" in err
