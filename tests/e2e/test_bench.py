"""`gather bench`, as a user runs it, and how its ranks measure, fail and end."""

import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from gather_bench import interleaved
from gather_bench.bench.options import Options
from rank_pool import RankPool

_WITHIN_S = 60.0
_BASELINE = "torch_all_gather_object"
_PEERS = [_BASELINE, "all_gather_list", "raw_collective", "raw_copy"]
_BENCH = ["-m", "gather_core", "bench"]
_QUICK = ["--rounds", "2", "--calls", "2"]
_FILES = ["--json", "out.json", "--html", "out.html", "--csv", "out.csv"]


def _run(
    arguments: list[str],
    cwd: Path,
    *,
    stdout: int | IO[str] = subprocess.PIPE,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """A child that imports what this process imports."""
    roots = os.pathsep.join(path for path in sys.path if path)
    merged = os.environ | {"PYTHONPATH": roots, "COLUMNS": "80", "OMP_NUM_THREADS": "1"} | (environment or {})
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=merged, cwd=cwd, capture_output=True, text=True, timeout=_WITHIN_S)


def _as_job_of_one(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """As a launcher would start the only rank of a job."""
    variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return _run([*_BENCH, *arguments], cwd, environment=variables)


def _check_measured(row: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Whether the numbers of a row fit together."""
    seconds = row["seconds"]
    assert len(seconds["rounds"]) == 2
    assert 0 < seconds["lower_quartile"] <= seconds["median"] <= seconds["upper_quartile"]
    assert row["times_faster"] == pytest.approx(baseline["seconds"]["median"] / seconds["median"])
    assert row["encoded_nbytes"] > 0
    assert row["gather_rounds"] == (1 if row["way"] == "gatherer" else None)


def test_local_workers_measure_the_cross_product_and_say_why_a_way_was_not_measured(tmp_path: Path) -> None:
    ways = ["--codec", "pickle", "--codec", "raw", "--transport", "auto", "--transport", "threads"]
    payloads = ["--payload", "metrics", "--payload", "array:1KiB"]
    done = _run([*_BENCH, "--ranks", "2", *ways, *payloads, *_QUICK, *_FILES], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "threads" in (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "threads" in (tmp_path / "out.csv").read_text(encoding="utf-8")
    text = (tmp_path / "out.json").read_text()
    report = json.loads(text)
    rows = {(row["payload"], row["codec"] or row["way"], row["transport"]): row for row in report["rows"]}
    assert len(rows) == len(report["rows"]) == 2 * (2 * 2 + len(_PEERS))
    unavailable = {(p, codec, "threads") for p in ("metrics", "array:1KiB") for codec in ("pickle", "raw")}
    assert {key for key, row in rows.items() if row["status"] == "unavailable"} == unavailable
    assert {key for key, row in rows.items() if row["status"] == "refused"} == {("metrics", "raw", "auto")}
    measured = [row for row in report["rows"] if row["status"] == "measured"]
    assert len(measured) == len(rows) - 5
    for row in measured:
        _check_measured(row, rows[row["payload"], _BASELINE, None])
    assert rows["metrics", "pickle", "auto"]["transport_used"] in done.stdout
    assert rows["metrics", "pickle", "auto"]["payload_nbytes"] == rows["metrics", _BASELINE, None]["encoded_nbytes"]
    assert "REFUSED raw, auto" in done.stdout
    assert "UNAVAILABLE pickle, threads; raw, threads" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80

    assert report["schema_version"] == 2
    assert report["environment"]["world_sizes"] == [2]
    assert report["environment"]["hosts"] == 1
    assert report["options"]["rounds"] == 2
    assert platform.node() not in text
    assert str(tmp_path) not in text


def test_under_torchrun_the_ranks_of_the_job_are_used_and_rank_0_alone_reports(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = _run([*launch, *_BENCH, "--payload", "metrics", "--no-peers", *_QUICK, "--json", "out.json"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["environment"]["world_sizes"] == [2]
    assert [(row["codec"], row["status"]) for row in report["rows"]] == [
        ("pickle", "measured"),
        ("msgpack", "measured"),
    ]
    assert done.stdout.count("metrics:") == 1
    assert done.stderr.count("[1/1]") == 1
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("option", ["--ranks", "--launches"])
def test_ranks_and_launches_cannot_be_chosen_inside_a_job(option: str, tmp_path: Path) -> None:
    done = _as_job_of_one([option, "2"], tmp_path)
    assert done.returncode == 2
    assert option in done.stderr
    assert "torchrun" in done.stderr
    assert done.stdout == ""


def test_a_payload_of_the_user_that_comes_out_different_is_told_by_table_and_exit_status(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Changed:\n"
        "    def __init__(self, rank): self.value = rank\n"
        "    def __reduce__(self): return Changed, (self.value + 1,)\n"
        "def make(rank): return {'inside': Changed(rank)}\n"
    )
    done = _as_job_of_one(["--payload", "mine:make", "--codec", "pickle", *_QUICK], tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG pickle, auto" in done.stdout
    assert "1 became 2" in done.stdout
    assert "median" not in done.stdout, "a wrong result was timed"


def test_a_round_takes_as_long_as_on_the_slowest_rank_and_the_first_does_not_count(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        from gather_bench.interleaved import slowest_rank_rounds

        now = 0.0
        order: list[str] = []

        def taking(name: str, *seconds_per_round: float) -> Any:
            left = [seconds for seconds in seconds_per_round for _ in range(2)]

            def way() -> None:
                nonlocal now
                order.append(name)
                now += left.pop(0)

            return way

        slow, quick = (8, 3), (1, 1)
        ways = {
            "ours": taking("ours", 100, *(slow if rank == 0 else quick), 5),
            "theirs": taking("theirs", 100, *(slow if rank == 1 else quick), 0.5 * rank),
        }
        calls = dict.fromkeys(ways, 2)
        return slowest_rank_rounds(ways, 3, calls, clock=lambda: now), order

    expected = {"ours": [8, 3, 5], "theirs": [8, 3, 0.5]}
    assert pool.values(2, body) == [(expected, ["ours", "ours", "theirs", "theirs"] * 4)] * 2


ROWS_OF_PLANTED = [
    ("right", "measured", None, True),
    ("swapped", "wrong", "rank 1: the object of rank 0 came out different: $: 0 became 1", False),
    (
        "of another type",
        "wrong",
        "rank 1: the object of rank 0 came out different: $: int became float",
        False,
    ),
    ("too few", "wrong", "rank 1: 1 objects came of 2 ranks", False),
    ("refused", "refused", "rank 1: ValueError: not on rank 1", False),
    ("failed", "failed", "rank 1: RuntimeError: lost", False),
    ("unavailable", "unavailable", "not here", False),
]
"""Way, status, reason, whether it was timed."""


def test_planted_faults_of_one_rank_are_reported_by_all_and_the_other_ways_are_measured(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        from gather_bench.bench.cases import Case
        from gather_bench.bench.measure import run_cases
        from gather_bench.bench.ways import ReadyWay
        from gather_bench.peers import torch_all_gather_object

        class Planted(ReadyWay):
            encoded_nbytes = 10 + rank

            def __init__(self, fault: Any) -> None:
                self._fault = fault

            def __call__(self) -> Any:
                gathered = torch_all_gather_object(rank)
                return self._fault(gathered) if rank == 1 else gathered

        def refuse(obj: Any) -> ReadyWay:
            raise ValueError("not on rank 1\nTraceback: of no interest")

        def fail(gathered: list[Any]) -> Any:
            raise RuntimeError("lost")

        cases = [
            Case("right", lambda obj: Planted(lambda gathered: gathered)),
            Case("swapped", lambda obj: Planted(lambda gathered: gathered[::-1])),
            Case("of another type", lambda obj: Planted(lambda gathered: [float(each) for each in gathered])),
            Case("too few", lambda obj: Planted(lambda gathered: gathered[:1])),
            Case("refused", lambda obj: refuse(obj) if rank == 1 else Planted(lambda gathered: gathered)),
            Case("failed", lambda obj: Planted(fail)),
            Case("unavailable", None, unavailable="not here"),
        ]
        rows = run_cases(cases, {"rank": lambda rank: rank}, rounds=1, calls=1)
        return [(row.way, row.status, row.reason, row.seconds is not None) for row in rows], rows[0].encoded_nbytes

    assert pool.values(2, body) == [(ROWS_OF_PLANTED, 11)] * 2


def test_a_payload_that_needs_a_second_round_shows_it(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        from gather_bench.bench.job import run_job
        from gather_bench.bench.options import Options

        options = Options(("pickle",), ("gloo",), ("array:2MiB", "metrics"), rounds=1, peers=False)
        return [(row.payload, row.gather_rounds, row.times_faster) for row in run_job(options).rows]

    assert pool.values(2, body) == [[("array:2MiB", 2, None), ("metrics", 1, None)]] * 2


def test_a_gatherer_that_opens_on_some_ranks_only_is_unavailable_on_all(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        import os

        from gather_bench.bench.job import run_job
        from gather_bench.bench.options import Options

        if rank == 1:
            os.environ["GATHER_FORBID_CODE"] = "1"
        try:
            report = run_job(Options(payloads=("metrics",), rounds=1, peers=False))
        finally:
            os.environ.pop("GATHER_FORBID_CODE", None)
        return [(row.codec, row.status, row.reason) for row in report.rows]

    first, second = pool.values(2, body)
    assert first == second
    (codec, status, reason), msgpack = first
    assert (codec, status) == ("pickle", "unavailable")
    assert reason.startswith("rank 1: codec 'pickle' can execute code")
    assert msgpack == ("msgpack", "measured", None)


def test_a_payload_that_cannot_be_made_or_sent_has_failed_for_every_way(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        import sys

        import torch

        from gather_bench.bench.cases import Case
        from gather_bench.bench.measure import run_cases

        def no_bytes(rank: int) -> Any:
            return (each for each in [rank])

        payloads = {
            "raises": lambda rank: 1 // rank,
            "exits": lambda rank: sys.exit(0),
            "has no bytes": no_bytes,
            "has a graph": lambda rank: [torch.ones(1, requires_grad=True) * 2],
        }
        rows = run_cases([Case("any", lambda obj: pytest.fail("not made"))], payloads, rounds=1)
        return [(row.status, row.reason) for row in rows]

    first, second = pool.values(2, body)
    assert first == second
    assert [status for status, _ in first] == ["failed"] * 4
    assert [reason.removeprefix("the payload cannot be made: ")[:28] for _, reason in first] == [
        "rank 0: ZeroDivisionError: i",
        "SystemExit: 0",
        "TypeError: cannot pickle 'ge",
        "ValueError: it holds a tenso",
    ]


@pytest.mark.parametrize("disturbed", [None, 1, 2, 3])
@pytest.mark.parametrize(
    ("first_s", "call_s", "calls"),
    [
        *((0.001, 0.001, 30), (0.01, 0.002, 15), (1e-6, 1e-6, 20_000), (0.1, 0.1, 2), (9.0, 9.0, 2), (0.016, 0.016, 2)),
        *((0.25, 0.003, 10), (0.02, 15e-6, 2000), (0.001, 40e-6, 750)),  # the first call after something else is slow
    ],
)
def test_as_many_calls_as_fill_a_round_and_at_least_two(
    first_s: float, call_s: float, calls: int, disturbed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def slowest_rank_s(way: object, num_calls: int) -> float:
        other_work_s = 0.05 if len(asked) == disturbed else 0
        asked.append(num_calls)
        return (first_s if len(asked) == 1 else call_s) + (num_calls - 1) * call_s + other_work_s

    monkeypatch.setattr(interleaved, "slowest_rank_s", slowest_rank_s)
    assert interleaved.fitting_calls(lambda: None) == pytest.approx(calls, abs=1)
    assert asked[0] == 1
    assert sum(asked) * call_s < first_s + 4 * (0.03 + call_s)


def test_ranks_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(
        "import os, signal, threading\nfrom pathlib import Path\nimport torch.distributed as dist\n"
        "from gather_bench.local_ranks import run_local_ranks\n"
        "def wait():\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which torch has the system send\n"
        "    Path(f'pid{dist.get_rank()}.tmp').write_text(str(os.getpid()))\n"
        "    os.rename(f'pid{dist.get_rank()}.tmp', f'pid{dist.get_rank()}')\n"
        "    threading.Event().wait()\n"
        "if __name__ == '__main__':\n"
        "    run_local_ranks(2, wait)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    files = [tmp_path / f"pid{rank}" for rank in range(2)]
    with subprocess.Popen([sys.executable, "waiting.py"], cwd=tmp_path, env=environment) as parent:
        try:
            _wait_until(lambda: all(file.exists() for file in files))
        finally:
            parent.kill()
    try:
        _wait_until(lambda: not any(Path("/proc", file.read_text()).exists() for file in files))
    finally:
        for file in files:
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_hanging_up_ends_the_workers_as_being_terminated_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from gather_bench.bench import local_run

    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    local_run.end_workers_on_signals()
    with pytest.raises(SystemExit) as exited:
        handlers[signal.SIGHUP](signal.SIGHUP, None)
    assert (exited.value.code, set(handlers)) == (129, {signal.SIGHUP, signal.SIGTERM})
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    handlers.clear()
    local_run.end_workers_on_signals()
    assert not handlers, "nohup is undone"


def test_a_failure_while_the_clock_runs_is_one_line_of_each_rank(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> Any:
        from contextlib import redirect_stderr
        from unittest import mock

        from gather_bench.bench import job

        failures: list[BaseException] = [RuntimeError("lost\nand more"), KeyboardInterrupt()]
        told = io.StringIO()
        with mock.patch.object(job, "run_job", side_effect=failures[rank]), redirect_stderr(told):
            try:
                job.run_or_exit(Options())
            except SystemExit as exc:
                return exc.code, told.getvalue()

    assert pool.values(2, body) == [
        (1, "Error: rank 0: RuntimeError: lost\n"),
        (130, "Error: rank 1 was interrupted\n"),
    ]
