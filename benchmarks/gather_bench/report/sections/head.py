"""What was run, with which versions, where and when."""

import shlex
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from gather_bench.bench.options import Options
from gather_bench.bench.results import Environment, Report
from gather_bench.bench.wording import count, listing, rounds_text
from gather_bench.report.markup import element

_DEFAULTS = Options()


def head(report: Report) -> Element:
    """The title, the command and a list of facts."""
    facts = (part for name, text in _facts(report) for part in (element("dt", name), element("dd", text)))
    return element(
        "header",
        element("h1", "gather bench"),
        element("pre", element("code", command_line(report))),
        element("dl", *facts),
    )


def command_line(report: Report) -> str:
    """The command that measures the same again, without files to write."""
    options, where = report.options, report.environment
    words = ["gather", "bench"]
    if where.launcher == "local":
        words += ["--ranks", ",".join(map(str, where.world_sizes))]
    for option, values in (("codec", options.codecs), ("transport", options.transports), ("payload", options.payloads)):
        words += [word for value in values for word in (f"--{option}", value)]
    return shlex.join([*words, *_less_common(options)])


def _less_common(options: Options) -> Iterator[str]:
    if options.slot_nbytes != _DEFAULTS.slot_nbytes:
        yield from ("--slot-nbytes", str(options.slot_nbytes))
    if options.rounds != _DEFAULTS.rounds:
        yield from ("--rounds", str(options.rounds))
    if options.launches != _DEFAULTS.launches:
        yield from ("--launches", str(options.launches))
    if options.calls is not None:
        yield from ("--calls", str(options.calls))
    if not options.peers:
        yield "--no-peers"


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    where = report.environment
    yield "Date", where.date
    yield "Ranks", _ranks(where)
    yield "CPU", f"{where.cpu_model}, {count(where.cpu_count, 'CPU')} for rank 0; {where.platform}"
    yield "Versions", f"gather-core {where.gather_core}, torch {where.torch}, Python {where.python}"
    yield "Slots", f"{report.options.slot_nbytes:,} bytes"
    yield "Times", f"of one call on the slowest rank; all ways in turns, {rounds_text(report.options)}"


def _ranks(where: Environment) -> str:
    started = "local workers" if where.launcher == "local" else f"started by {where.launcher}"
    return (
        f"{listing(where.world_sizes)} on {count(where.hosts, 'host')}, {started}; the job's backend is {where.backend}"
    )
