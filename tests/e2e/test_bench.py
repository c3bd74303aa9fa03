"""`gather bench`, as a user runs it, and the arithmetic and checks behind its table."""

import io
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rank_pool import RankPool

_WITHIN_S = 60.0
_BASELINE = "torch_all_gather_object"
_PEERS = [_BASELINE, "all_gather_list", "raw_collective", "raw_copy"]
_BENCH = ["-m", "gather_core", "bench"]
_QUICK = ["--rounds", "2", "--calls", "2"]


def _run(arguments: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A child that imports what this process imports."""
    roots = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": roots, "COLUMNS": "80", "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=_WITHIN_S)


def _as_job_of_one(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """As a launcher would start the only rank of a job."""
    variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return _run([*_BENCH, *arguments], cwd, **variables)


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
    done = _run([*_BENCH, "--ranks", "2", *ways, *payloads, *_QUICK, "--json", "out.json"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
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

    assert report["schema_version"] == 1
    assert report["environment"]["world_size"] == 2
    assert report["environment"]["hosts"] == 1
    assert report["options"]["rounds"] == 2
    assert platform.node() not in text
    assert str(tmp_path) not in text


def test_under_torchrun_the_ranks_of_the_job_are_used_and_rank_0_alone_reports(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = _run([*launch, *_BENCH, "--payload", "metrics", "--no-peers", *_QUICK, "--json", "out.json"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["environment"]["world_size"] == 2
    assert [(row["codec"], row["status"]) for row in report["rows"]] == [
        ("pickle", "measured"),
        ("msgpack", "measured"),
    ]
    assert done.stdout.count("metrics:") == 1
    assert done.stderr.count("[1/1]") == 1
    assert "Warning" not in done.stderr


def test_ranks_cannot_be_chosen_inside_a_job(tmp_path: Path) -> None:
    done = _as_job_of_one(["--ranks", "2"], tmp_path)
    assert done.returncode == 2
    assert "--ranks" in done.stderr
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
    assert "$['inside']" in done.stdout
    assert "median" not in done.stdout, "a wrong result was timed"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--codec", "msgpakc"], "Did you mean 'msgpack'?"),
        (["--transport", "gloo", "--transport", "glooo"], "Did you mean 'gloo'?"),
        (["--payload", "metrisc"], "Did you mean 'metrics'?"),
        (["--payload", "bytes:many"], "'many' is not a size"),
        (["--payload", "math:no_such"], "cannot be imported"),
        (["--payload", "math:pi"], "no function of the rank"),
        (["--json", "no_such_folder/out.json"], "its folder does not exist"),
    ],
)
def test_a_wrong_option_is_named_before_any_worker_starts(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer
    from typer.testing import CliRunner

    from gather_bench import local_ranks
    from gather_bench.bench.command import bench

    monkeypatch.setattr(local_ranks, "run_local_ranks", lambda *_: pytest.fail("workers were started"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RANK", raising=False)
    app = typer.Typer()
    app.command()(bench)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert arguments[0] in done.output
    assert told in done.output


@pytest.mark.parametrize("arguments", [["--ranks", "0"], ["--ranks", "100000"], ["--rounds", "0"], ["--calls", "0"]])
def test_a_number_out_of_range_is_refused(arguments: list[str]) -> None:
    import typer
    from typer.testing import CliRunner

    from gather_bench.bench.command import bench

    app = typer.Typer()
    app.command()(bench)
    assert CliRunner().invoke(app, arguments).exit_code == 2


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


def test_the_spread_is_that_of_the_rounds() -> None:
    from gather_bench.bench.results import Timing

    assert Timing.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 4.0, (5.0, 1.0, 2.0, 4.0, 3.0))
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, (7.0,))


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

    expected = [
        ("right", "measured", None, True),
        ("swapped", "wrong", "rank 1: the object of rank 0 came out different: $ has another value", False),
        (
            "of another type",
            "wrong",
            "rank 1: the object of rank 0 came out different: $ is of type float instead of int",
            False,
        ),
        ("too few", "wrong", "rank 1: 1 objects came of 2 ranks", False),
        ("refused", "refused", "rank 1: ValueError: not on rank 1", False),
        ("failed", "failed", "rank 1: RuntimeError: lost", False),
        ("unavailable", "unavailable", "not here", False),
    ]
    assert pool.values(2, body) == [(expected, 11)] * 2


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


def _nested(value: float) -> Any:
    import numpy as np
    import torch

    return {"a": [(1, value), torch.tensor([value])], "b": {"array": np.array([value]), "text": "x"}}


@pytest.mark.parametrize(
    ("sent", "got", "where"),
    [
        (_nested(math.nan), _nested(math.nan), None),
        (_nested(1.5), _nested(2.5), "$['a'][0][1] has another value"),
        ([1, 2], (1, 2), "$ is of type tuple instead of list"),
        ([True], [1], "$[0] is of type int instead of bool"),
        ({"a": 1}, {"b": 1}, "$ has other keys"),
        ([1], [1, 1], "$ has 2 items instead of 1"),
        (b"ab", b"ac", "$ has another value"),
    ],
)
def test_a_difference_is_found_all_the_way_down(sent: object, got: object, where: str | None) -> None:
    from gather_bench.bench.difference import difference

    assert difference(sent, got) == where


@pytest.mark.parametrize("change", ["dtype", "shape", "value"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_arrays_and_tensors_are_compared_by_dtype_shape_and_value(kind: str, change: str) -> None:
    import numpy as np
    import torch

    from gather_bench.bench.difference import difference

    array = np.zeros((2, 3), np.float32)
    other = {"dtype": np.zeros((2, 3), np.float64), "shape": np.zeros((3, 2), np.float32), "value": array + 1}[change]
    wrap = torch.from_numpy if kind == "torch" else np.asarray
    assert difference(wrap(array), wrap(array.copy())) is None
    assert difference(wrap(array), wrap(other)) == "$ has another value"


def test_objects_that_hold_themselves_and_objects_without_equality_are_compared() -> None:
    from gather_bench.bench.difference import difference

    one: list[Any] = [1]
    other: list[Any] = [1]
    for each in (one, other):
        each.append(each)
    assert difference(one, other) is None
    with_attributes = [_Holder(1), _Holder(1), _Holder(2)]
    assert difference(*with_attributes[:2]) is None
    assert difference(*with_attributes[1:]) == "$ as a dict['value'] has another value"


class _Holder:
    def __init__(self, value: int) -> None:
        self.value = value


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_nothing_is_cut_off_at_any_width(width: int) -> None:
    from rich.console import Console

    from gather_bench.bench.options import Options
    from gather_bench.bench.results import Environment, Report, Row, Timing
    from gather_bench.bench.table import print_report

    timing = Timing.of([0.00123, 0.00123, 0.00123])
    rows = (
        Row("payload", 10, "gatherer", "pickle", "auto", "gloo", "measured", None, 123_456, 2, 3, timing, 1.25),
        Row("payload", 10, "gatherer", "raw", "auto", "gloo", "refused", "it is a dict"),
    )
    where = Environment("0", "2.8", "3.11", "Linux", 2, 4, 1, "gloo")
    console = Console(file=io.StringIO(), width=width)
    print_report(console, Report(where, Options(), rows))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, printed.splitlines())) <= width
    for part in ("pickle, auto (gloo)", "123,456", "1.23", "1.23 - 1.23", "1.25", "REFUSED raw, auto (gloo)"):
        assert part in printed, part
