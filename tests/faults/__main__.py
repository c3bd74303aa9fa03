"""The command behind `make faults`: runs the faults of plan.toml, prints a table, and fails where one is wrong."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from faults.case import EVERY, Case
from faults.cases import CASES
from faults.host_cases import HOST_CASES, HostCase, run_on_network
from faults.report import put_into, show, to_json, to_markdown
from faults.runner import Row, Runner
from plan_marks import carried


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 1 where something hung, was wrong, or was left behind."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no rank outlives it
    rows = [*_run(options.case, options.transport)]
    tests = {} if options.case else _shown_by_tests()
    print(show(rows, tests))
    if options.json is not None:
        options.json.write_text(to_json(rows, tests))
    if options.markdown is not None:
        put_into(options.markdown, to_markdown(rows, tests))
    return int(any(row.problems for row in rows) or not rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--case", type=int, action="append", help="only this number of plan.toml; repeatable")
    parser.add_argument("--transport", choices=EVERY, action="append", help="only over this one; repeatable")
    parser.add_argument("--json", type=Path, help="write everything to this file too")
    parser.add_argument("--markdown", type=Path, help="put the table between the markers of this page")
    return parser


def _run(numbers: Sequence[int] | None, transports: Sequence[str] | None) -> Iterator[Row]:
    """Number by number; those that need hosts of their own after those of one number that do not."""
    with Runner() as runner:
        for case in _all():
            for transport in case.transports:
                if (numbers is None or case.number in numbers) and transport in (transports or EVERY):
                    yield _told(case, transport, runner)


def _all() -> list[Case | HostCase]:
    both: list[Case | HostCase] = [*CASES, *HOST_CASES]
    return sorted(both, key=lambda case: case.number)


def _told(case: Case | HostCase, transport: str, runner: Runner) -> Row:
    """Runs one case, and says so."""
    print(f"{case.number} {case.name}, {transport}: ", end="", file=sys.stderr, flush=True)
    row = run_on_network(case, transport) if isinstance(case, HostCase) else runner.run(case, transport)
    print(f"{row.survivors}{'; WRONG' if row.problems else ''}", file=sys.stderr, flush=True)
    return row


def _shown_by_tests() -> dict[int, str]:
    """The numbers without a case, and the tests that carry them."""
    numbers = {case.number for case in _all()}
    return {
        number: ", ".join(f"`{name}`" for name in names)
        for number, names in sorted(carried("fault").items())
        if number not in numbers
    }


if __name__ == "__main__":
    sys.exit(main())
