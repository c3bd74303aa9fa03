"""What `gather bench` recommends, and the settings file that it writes of it."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gather_bench.bench.options import Options
from gather_bench.bench.recommendation import may_be_replaced, reasons, recommend, to_settings, with_recommendation
from gather_bench.bench.results import Environment, Recommendation, Report, Row, Timing
from gather_bench.bench.table import print_report
from gather_bench.report.outputs import Outputs, read_report
from gather_core import Gatherer

_SLOT = 16384
_ENVIRONMENT = Environment("0", "2.8", "3.11", "Linux", "A CPU", 2, (2, 4), 1, "gloo", "local", "2025-01-31")
_UNMEASURED = Row("small", None, 2, 1, "gatherer", "raw", "auto", "shm", "refused", "it is a dict")


def _row(codec: str, payload: str, seconds: float, *, transport: str = "auto", world_size: int = 2) -> Row:
    timing = Timing.of([seconds])
    row = Row(payload, 10, world_size, 1, "gatherer", codec, transport, "shm", "measured", seconds=timing)
    return replace(row, encoded_nbytes=10, gather_rounds=1, fitting_slot_nbytes=128)


def _rows(seconds: Mapping[tuple[str, str], tuple[float, float]]) -> list[Row]:
    """Of codec and transport: the times of a small and a large payload."""
    return [
        _row(codec, payload, time, transport=transport)
        for (codec, transport), times in seconds.items()
        for payload, time in zip(("small", "large"), times, strict=True)
    ]


def _about(number: float) -> Any:
    return pytest.approx(number)


def test_each_payload_counts_alike_however_long_it_takes() -> None:
    rows = _rows({("pickle", "auto"): (1e-6, 3.0), ("cloudpickle", "auto"): (4e-6, 2.0)})
    assert recommend(rows, _SLOT) == Recommendation("pickle", "auto", _SLOT, _about(1.5**0.5))


def test_each_number_of_ranks_counts_alike() -> None:
    rows = [_row("pickle", "any", 1.0), _row("cloudpickle", "any", 2.0)]
    rows += [_row("pickle", "any", 3.0, world_size=4), _row("cloudpickle", "any", 1.0, world_size=4)]
    found = recommend(rows, _SLOT)
    assert found is not None
    assert found.codec == "cloudpickle"


def test_what_does_not_carry_every_payload_is_not_recommended() -> None:
    rows = [*_rows({("pickle", "auto"): (2.0, 2.0)}), _UNMEASURED, _row("raw", "large", 1.0)]
    assert recommend(rows, _SLOT) == Recommendation("pickle", "auto", _SLOT, _about(2**0.5))
    assert recommend([_row("pickle", "one", 1.0), _row("raw", "other", 1.0)], _SLOT) is None
    assert recommend([_UNMEASURED], _SLOT) is None


def test_what_cannot_be_told_from_the_fastest_is_named_with_it() -> None:
    def row(codec: str, seconds: list[float], payload: str) -> Row:
        return replace(_row(codec, payload, 1.0), seconds=Timing.of(seconds))

    rows = [
        *(row("pickle", [1.0, 1.1, 1.2], payload) for payload in ("small", "large")),
        *(row("msgpack", [1.1, 1.2, 1.3], payload) for payload in ("small", "large")),
        row("cloudpickle", [1.0, 1.1, 1.2], "small"),
        row("cloudpickle", [2.0, 2.0, 2.0], "large"),
    ]
    found = recommend(rows, _SLOT)
    assert found is not None
    assert (found.codec, found.ties) == ("pickle", ("msgpack over auto",))
    assert reasons(found)[1] == "so close that no difference can be told: msgpack over auto"


def test_only_a_file_of_its_own_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    assert may_be_replaced(path)
    path.write_text(to_settings(_report(_row("pickle", "small", 1.0))))
    assert may_be_replaced(path)
    path.write_text('[gather]\ncodec = "raw"\n')
    assert not may_be_replaced(path)
    assert "not from gather bench" in str(Outputs(settings=path).find_problem())


@pytest.mark.parametrize(("slowdown", "named"), [(1.4, "msgpack"), (1.6, None)])
def test_a_codec_that_runs_no_code_is_named_beside_where_it_is_not_much_slower(
    slowdown: float, named: str | None
) -> None:
    seconds = {
        ("pickle", "auto"): (1.0, 1.0),
        ("msgpack", "auto"): (slowdown, slowdown),
        ("msgpack", "gloo"): (1.0, 2.0),
    }
    found = recommend(_rows(seconds), _SLOT)
    assert found is not None
    assert (found.codec, found.data_codec) == ("pickle", named)
    assert found.data_slowdown == (pytest.approx(slowdown) if named else None)


def test_beside_a_codec_that_runs_no_code_none_is_named() -> None:
    found = recommend(_rows({("msgpack", "auto"): (1.0, 1.0), ("raw", "auto"): (1.1, 1.1)}), _SLOT)
    assert found == Recommendation("msgpack", "auto", _SLOT, 1)


@pytest.mark.parametrize(
    ("rounds", "fitting", "slot"), [(2, 20_032, 20_032), (2, 1 << 20, _SLOT), (1, 20_032, _SLOT), (2, 64, _SLOT)]
)
def test_slots_grow_for_what_has_needed_a_second_exchange_unless_it_is_large(
    rounds: int, fitting: int, slot: int
) -> None:
    row = replace(_row("pickle", "payload", 1.0), gather_rounds=rounds, fitting_slot_nbytes=fitting)
    found = recommend([row], _SLOT)
    assert found is not None
    assert found.slot_nbytes == slot


def _report(*rows: Row) -> Report:
    return with_recommendation(Report(_ENVIRONMENT, Options(payloads=("small", "bad:\nname")), rows))


def test_the_settings_file_makes_a_gatherer_that_is_what_was_recommended(tmp_path: Path) -> None:
    codec = "msgpack+zstd:level=3"
    row = replace(_row(codec, "small", 1.0, transport="single"), gather_rounds=2, fitting_slot_nbytes=32_768)
    path = tmp_path / "job.toml"
    path.write_text(to_settings(_report(row)))
    with Gatherer.from_settings(path) as gatherer:
        assert (gatherer.codec.spec, gatherer.transport.spec, gatherer.slot_nbytes) == (codec, "single", 32_768)
        assert gatherer.all_gather({"loss": 0.5}) == [{"loss": 0.5}]
    assert "# payloads: small, bad:?name\n" in path.read_text()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ((_UNMEASURED, _row("raw", "large", 1.0)), "no codec and transport carried small (2 ranks)"),
        ((_row("pickle", "one", 1.0), _row("raw", "other", 1.0)), "no codec and transport carried every payload"),
    ],
)
def test_where_a_payload_was_carried_by_none_nothing_is_recommended_nor_written(
    rows: tuple[Row, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _report(*rows)
    assert report.recommendation is None
    path = tmp_path / "job.toml"
    assert Outputs(settings=path).publish(report) == 1
    assert not path.exists()
    printed = capsys.readouterr()
    assert f"Nothing is recommended: {told}" in printed.out
    assert printed.err == f"Error: --settings {path} is not written: {told}\n"


def test_a_saved_recommendation_that_the_rows_do_not_bear_out_is_left_out(tmp_path: Path) -> None:
    sound = _report(_row("pickle", "small", 1.0))
    path = tmp_path / "out.json"
    path.write_text(sound.to_json())
    assert read_report(path) == sound
    for rows in ((), (_UNMEASURED,), (*sound.rows, replace(_UNMEASURED, payload="large"))):
        path.write_text(replace(sound, rows=rows).to_json())
        assert read_report(path).recommendation is None


def test_the_table_ends_with_what_is_recommended_and_why() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_report(console, _report(*_rows({("pickle", "auto"): (1.0, 1.0), ("msgpack", "auto"): (1.25, 1.25)})))
    assert console.file.getvalue().endswith(  # type: ignore[attr-defined]
        "Recommended: codec 'pickle', transport 'auto', slot_nbytes 16,384\n"
        "pickle over auto was the fastest of the Gatherers everywhere\n"
        "msgpack, with which decoding runs no code, takes 1.25 x\n"
    )
