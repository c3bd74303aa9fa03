"""The fuzzer of `make fuzz` finds planted bugs, runs through the decoders' branches, and finds nothing else."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fuzz.__main__ import main
from fuzz.branches import Branches
from fuzz.engine import Finding, Fuzzer
from fuzz.findings import read_case, replay, save
from fuzz.planted import PlantedBug, planted_bugs
from fuzz.seeds import registered
from fuzz.targets import CodecTarget, Target, find_targets
from gather_core.codec import Buffer, Codec, DecodeOptions, Trust
from gather_core.errors import DecodeError
from gather_core.registry import get_codec
from gather_core.testing.codec_frames import as_views

REGRESSIONS = sorted(Path(__file__).parents[1].joinpath("fuzz", "corpus").glob("*.txt"))
EXECUTIONS = 1000
LEAST_COVERED = 0.9


@pytest.fixture(autouse=True)
def _classes_of_the_seeds_are_registered() -> Iterator[None]:
    with registered():
        yield


@pytest.mark.parametrize("bug", planted_bugs(), ids=lambda bug: bug.name)
def test_a_planted_bug_is_found_and_only_while_it_is_there(bug: PlantedBug) -> None:
    with bug.planted():
        fuzzer = Fuzzer(bug.target, branches=Branches(bug.target.places))
        fuzzer.run(executions=EXECUTIONS, stop_at_finding=True)
        findings = list(fuzzer.findings.values())
        assert bug.is_found_in(findings)
    if bug.patches:
        assert all(replay(bug.target, finding.case).problem is None for finding in findings)


@pytest.fixture(scope="module")
def fuzzers() -> list[Fuzzer]:
    """One per target, after a bounded run."""
    places = Branches([place for target in find_targets().values() for place in target.places])
    with registered():
        found = [Fuzzer(target, branches=places) for target in find_targets().values()]
        for fuzzer in found:
            fuzzer.run(executions=EXECUTIONS)
    return found


def test_real_decoders_give_nothing_to_find(fuzzers: Sequence[Fuzzer]) -> None:
    assert [finding for fuzzer in fuzzers for finding in fuzzer.findings.values()] == []
    assert all(fuzzer.num_executions >= EXECUTIONS for fuzzer in fuzzers)
    assert all(0 < fuzzer.num_accepted < fuzzer.num_executions for fuzzer in fuzzers)


def test_nine_tenths_of_the_decoders_branches_are_run(fuzzers: Sequence[Fuzzer]) -> None:
    covered = fuzzers[0].branches.covered()
    assert {"slot.py", "verdict.py", "seed_wire.py", "raw.py", "message_rebuild.py", "zstandard_frames.py"} <= set(
        covered
    )
    ran, total = sum(file[0] for file in covered.values()), sum(file[1] for file in covered.values())
    missing = {name: lines for name, (_, _, lines) in covered.items() if lines}
    assert ran >= LEAST_COVERED * total > 100, missing


def test_every_data_codec_is_a_target_alone_and_compressed_and_no_other() -> None:
    assert set(find_targets()) == {"msgpack", "raw", "msgpack+zstd", "raw+zstd", "slots", "seed_wire"}


class PlainCodec(Codec):
    """One that the fuzzer knows nothing of."""

    name = "fuzz_plain"
    trust = Trust.DATA

    def encode(self, obj: object) -> list[Buffer]:
        return [repr(obj).encode()]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if bytes(frames[0][:1]) != b"[":
            raise DecodeError("no list")
        return [len(frames)]


def test_a_codec_of_an_unknown_format_is_fuzzed_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from gather_core import registry

    monkeypatch.setitem(registry._codecs.registered, PlainCodec.name, PlainCodec)
    assert {"fuzz_plain", "fuzz_plain+zstd"} <= set(find_targets())
    fuzzer = Fuzzer(CodecTarget(PlainCodec()))
    fuzzer.run(executions=EXECUTIONS, stop_at_finding=True)
    (finding,) = fuzzer.findings.values()
    assert (finding.problem, finding.case) == ("raised IndexError: list index out of range", ())


def test_equal_seeds_run_equal_cases() -> None:
    def cases(seed: int) -> list[object]:
        ran: list[object] = []
        target = find_targets()["raw"]
        Fuzzer(target, seed, ran.append, Branches(target.places)).run(executions=200)
        return ran

    assert cases(1) == cases(1) != cases(2)


def test_findings_are_saved_as_text_that_can_be_replayed(tmp_path: Path) -> None:
    target: Target = CodecTarget(get_codec("raw"))
    case = (*map(bytes, as_views(get_codec("raw").encode(b"x"))), b"")
    path = save(Finding("raw", "something", case), tmp_path)
    assert read_case(path) == ("raw", case)
    assert replay(target, case).problem is None
    assert main(["--replay", str(path)]) == 0


def test_the_command_reports_and_fails_where_it_finds_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bug,) = (bug for bug in planted_bugs() if "number of frames" in bug.name)
    options = [
        "--executions",
        "1000",
        "--seed",
        "1",
        "--target",
        "slots",
        "--folder",
        str(tmp_path),
        "--least-covered",
        "0",
        "--in-process",
    ]
    assert main(options) == 0
    assert "0 findings" in capsys.readouterr().out
    with bug.planted():
        assert main(options) == 1
    said = capsys.readouterr().out
    assert "raised error: unpack_from" in said
    assert "--replay" in said
    assert main([*options, "--least-covered", "1.01"]) == 1
    assert "branches" in capsys.readouterr().out


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_what_was_found_once_is_gone(path: Path) -> None:
    name, case = read_case(path)
    assert replay(find_targets()[name], case).problem is None
