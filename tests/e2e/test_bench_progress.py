"""How `gather bench` shows how far it is."""

import io
from contextlib import redirect_stderr

import pytest

from gather_bench.bench.progress import RunProgress, show_cursor

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def known_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")


def _run(*, shown: bool = True) -> None:
    with RunProgress(shown, payloads=2, rounds=3) as progress:
        progress.say("2 ranks, [1] :ant: Gatherer")
        for name in ("metrics", "odd:one:x"):
            progress.payload(name)
            for _ in range(3):
                progress.round()


def test_on_a_terminal_a_bar_counts_the_rounds_of_all_payloads_and_goes_away() -> None:
    with redirect_stderr(_Terminal()) as terminal:
        _run()
    shown = terminal.getvalue()
    assert "2 ranks, [1] :ant: Gatherer\n" in shown
    for part in ("[1/2] metrics", "0/6", "[2/2] odd:one:x", "3/6", "6/6"):
        assert part in shown
    assert shown.index("[2/2]") < shown.index("4/6") < shown.index("6/6")
    assert shown.count(_HIDE_CURSOR) == 1
    assert _SHOW_CURSOR in shown
    assert shown.endswith("\x1b[2K"), "the bar stays"


def test_a_payload_that_cannot_be_made_counts_as_done() -> None:
    with redirect_stderr(_Terminal()) as terminal, RunProgress(True, payloads=2, rounds=3) as progress:
        progress.payload("no such")
        progress.payload("metrics")
        progress.round()
    assert "4/6" in terminal.getvalue()


def test_elsewhere_a_payload_is_a_line() -> None:
    with redirect_stderr(io.StringIO()) as file:
        _run()
    assert file.getvalue() == "2 ranks, [1] :ant: Gatherer\n[1/2] metrics\n[2/2] odd:one:x\n"


def test_other_ranks_show_nothing() -> None:
    with redirect_stderr(_Terminal()) as terminal:
        _run(shown=False)
    assert terminal.getvalue() == ""


def test_a_bar_whose_worker_was_ended_gives_the_cursor_back() -> None:
    with redirect_stderr(_Terminal()) as terminal:
        show_cursor()
    assert terminal.getvalue() == _SHOW_CURSOR
