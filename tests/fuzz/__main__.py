"""The command behind `make fuzz`: fuzzes every decoder for a time, reports, and fails where it found something."""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fuzz.branches import Branches
from fuzz.byte_mutations import Case
from fuzz.engine import Finding, Fuzzer
from fuzz.findings import read_case, replay, save, to_text
from fuzz.seeds import registered
from fuzz.targets import find_targets

_SLICE_S = 5.0
_MOST_ADDRESSES_NBYTES = 4 << 30
"""How much address space the fuzzing process may take beyond what it has when it starts."""
_LAST_CASE = "last-case.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 1 where something was found, or too few branches were run."""
    options = _parser().parse_args(arguments)
    with registered():
        if options.replay is not None:
            return _replay(options.replay)
        folder = options.folder or Path(tempfile.mkdtemp(prefix="gather-fuzz-"))
        folder.mkdir(parents=True, exist_ok=True)
        return _fuzz(options, folder) if options.in_process else _supervised(options, folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for how long, in all")
    parser.add_argument("--executions", type=int, help="of each target, in place of a time")
    parser.add_argument("--seed", type=int, default=None, help="of the mutations; else another one each time")
    parser.add_argument("--target", action="append", choices=sorted(find_targets()), help="only this one; repeatable")
    parser.add_argument("--folder", type=Path, help="where findings are saved; else a temporary folder")
    parser.add_argument("--least-covered", type=float, default=0.9, help="the part of the branches that must run")
    parser.add_argument("--replay", type=Path, help="run the input of this file instead")
    parser.add_argument("--in-process", action="store_true", help="do not fork: a crash is then one of this process")
    return parser


def _replay(path: Path) -> int:
    name, case = read_case(path)
    problem = replay(find_targets()[name], case).problem
    print(f"{name}: {problem or 'nothing is wrong with it'}")
    return int(problem is not None)


def _supervised(options: argparse.Namespace, folder: Path) -> int:
    """Fuzzes in a child, so that its crash is a finding too: the case that it ran last is in a file."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _limit_memory()
            status = _fuzz(options, folder)
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        print(f"FOUND: killed by signal {os.WTERMSIG(status)}; reproduce with:")
        print(f"  {_replay_command(folder / _LAST_CASE)}")
        return 1
    return os.waitstatus_to_exitcode(status)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        most = pages * os.sysconf("SC_PAGE_SIZE") + _MOST_ADDRESSES_NBYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _fuzz(options: argparse.Namespace, folder: Path) -> int:
    targets = {name: target for name, target in find_targets().items() if name in (options.target or [name])}
    seed = int(time.time()) if options.seed is None else options.seed
    length = f"{options.seconds:g} s" if options.executions is None else f"{options.executions} executions each"
    print(f"fuzzing {', '.join(targets)} for {length} with seed {seed}; findings go to {folder}")
    branches = Branches([place for target in targets.values() for place in target.places])
    with open(folder / _LAST_CASE, "w+") as last:
        fuzzers = [Fuzzer(target, seed, _Recorder(name, last.fileno()), branches) for name, target in targets.items()]
        if options.executions is None:
            _take_turns(fuzzers, options.seconds)
        else:
            for fuzzer in fuzzers:
                fuzzer.run(executions=options.executions)
    (folder / _LAST_CASE).unlink()
    for fuzzer in fuzzers:
        print(
            f"{fuzzer.target.name}: {fuzzer.num_executions} executions, of which {fuzzer.num_accepted} decoded, "
            f"{fuzzer.executions_per_s:.0f} a second"
        )
    found = _report_findings(fuzzers, folder)
    return int(not _report_branches(branches, options.least_covered) or found)


class _Recorder:
    """Writes each case into a file before it is run."""

    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self._descriptor = descriptor

    def __call__(self, case: Case) -> None:
        text = to_text(Finding(self._name, "the case that was run last", case)).encode()
        os.pwrite(self._descriptor, text, 0)
        os.truncate(self._descriptor, len(text))


def _take_turns(fuzzers: Sequence[Fuzzer], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        for fuzzer in fuzzers:
            fuzzer.run(seconds=min(_SLICE_S, left / len(fuzzers)))


def _report_findings(fuzzers: Sequence[Fuzzer], folder: Path) -> bool:
    findings = [finding for fuzzer in fuzzers for finding in fuzzer.findings.values()]
    print(f"{len(findings)} findings")
    for finding in findings:
        print(f"FOUND in {finding.target}: {finding.problem}")
        print(f"  {' '.join(frame.hex()[:200] or '-' for frame in finding.case)}")
        print(f"  {_replay_command(save(finding, folder))}")
    return bool(findings)


def _replay_command(path: Path) -> str:
    return f"make fuzz FUZZ_OPTIONS='--replay {path}'"


def _report_branches(branches: Branches, least_covered: float) -> bool:
    """Prints what part of the branches ran; returns whether it is enough."""
    covered = branches.covered()
    for name, (ran, total, missing) in sorted(covered.items()):
        print(f"{name}: {ran} of {total} branches{'; never ' + ', '.join(missing) if missing else ''}")
    ran, total = sum(file[0] for file in covered.values()), sum(file[1] for file in covered.values())
    print(
        f"{ran} of {total} branches of the decoders, {ran / max(total, 1):.0%}; at least {least_covered:.0%} must run"
    )
    return ran >= least_covered * total


if __name__ == "__main__":
    sys.exit(main())
