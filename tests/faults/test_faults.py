"""The command behind `make faults`: it finds what is planted, and nothing in some cases that are quick."""

import json
from pathlib import Path
from typing import Any

import pytest

from faults import __main__ as command
from faults.case import MAIN, Case
from faults.cases import CASES
from faults.names import named_ranks
from faults.planted import PLANTED, clean_up
from faults.report import END, START, put_into
from faults.runner import Runner
from gather_core import AbortedError, PeerLostError, RemoteEncodeError, TransportTimeoutError
from rank_pool import RankPool


@pytest.mark.parametrize(("case", "said"), PLANTED, ids=lambda value: value.name if isinstance(value, Case) else "")
def test_what_is_planted_is_found(pool: RankPool, case: Case, said: list[str]) -> None:
    transport = "gloo" if case.dies else "threads"
    hang_s = 1.0 if case.name == "hangs" else 60.0
    try:
        with Runner(pool, hang_s=hang_s, patience_s=0.1) as runner:
            row = runner.run(case, transport)
    finally:
        clean_up(pool.scratch / "tmp")
    for text in said:
        assert any(text in problem for problem in row.problems), row.problems


@pytest.mark.parametrize("transport", MAIN)
def test_bytes_that_come_late_are_not_taken_for_those_of_a_new_gatherer(pool: RankPool, transport: str) -> None:
    (case,) = (case for case in CASES if case.name == "SIGSTOP, then a new Gatherer")
    with Runner(pool) as runner:
        assert runner.run(case, transport).problems == []


def test_the_command_shows_writes_and_judges(
    pool: RankPool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Runner", lambda: Runner(pool))
    page, written = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    only = ["--case", "1", "--case", "16", "--transport", "threads", "--transport", "shm"]
    assert command.main([*only, "--json", str(written), "--markdown", str(page)]) == 0
    said = capsys.readouterr().out
    rows: list[Any] = json.loads(written.read_text())["rows"]
    assert {(row["number"], row["transport"], row["survivors"]) for row in rows} == {
        (number, transport, error)
        for number, error in ((1, "RemoteEncodeError"), (16, "DesyncError"))
        for transport in ("shm", "threads")
    }
    for text in (said, page.read_text()):
        assert "encode raises on one rank" in text
    assert "old" not in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    monkeypatch.setattr(command, "CASES", [case for case, _ in PLANTED if case.name == "raises another error"])
    assert command.main(["--transport", "threads"]) == 1
    assert "WRONG: 1 raises another error, threads: rank 0: GatherError instead of" in capsys.readouterr().out


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(END + START)
    with pytest.raises(ValueError, match="must hold the lines"):
        put_into(page, "table")


@pytest.mark.parametrize(
    ("exc", "ranks"),
    [
        (RemoteEncodeError({2: "text", 0: "text"}), (0, 2)),
        (TransportTimeoutError("late", (1,), (3,)), (1, 3)),
        (PeerLostError("the process of ranks 1-3, 5 has ended"), (1, 2, 3, 5)),
        (AbortedError("rank 0 aborted: the process of rank 1 has ended", 0), (0, 1)),
        (ValueError("no ranks here"), ()),
    ],
)
def test_the_ranks_that_an_error_names_are_found(exc: Exception, ranks: tuple[int, ...]) -> None:
    assert named_ranks(exc) == ranks
