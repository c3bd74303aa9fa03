"""The options of `gather bench`, by the panels in which its help shows them."""

from pathlib import Path
from typing import Annotated

import typer

_WHAT = "What to measure"
_HOW = "How to measure it"
_REPORTS = "Reports"
_MODEL = "Cost model"
_CODECS_ALONE = "Codecs alone"

Ranks = Annotated[
    str | None,
    typer.Option(
        help="Local workers, such as 4, or 2,4,8 for one run after the other; default 2. Not in a job.",
        rich_help_panel=_WHAT,
    ),
]
Codecs = Annotated[
    list[str] | None,
    typer.Option(
        help="Codec spec; repeatable. Default: pickle, msgpack; with --only-codecs all built-in ones.",
        rich_help_panel=_WHAT,
    ),
]
Transports = Annotated[
    list[str] | None, typer.Option(help="Transport spec; repeatable. Default: auto.", rich_help_panel=_WHAT)
]
Payloads = Annotated[
    list[str] | None,
    typer.Option(
        help="metrics, dpr_step, predictions, tokens, dataframe, state_dict, images, config; demo_step, "
        "demo_predictions; bytes:SIZE, array:SIZE (such as 64KiB), skewed:SIZE,SIZE (rank 0 and all others), or "
        "module:function, called with the rank; repeatable. Default: metrics, dpr_step, array:1MiB; with "
        "--only-codecs the first eight.",
        rich_help_panel=_WHAT,
    ),
]
Peers = Annotated[bool, typer.Option(help="Also measure what gather-core replaces.", rich_help_panel=_WHAT)]

Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Ends in under a minute on two cores: metrics, dpr_step and array:256KiB, in 5 rounds, unless told "
        "otherwise.",
        rich_help_panel=_HOW,
    ),
]
SlotNbytes = Annotated[int, typer.Option(min=1024, help="Slot size in bytes.", rich_help_panel=_HOW)]
Rounds = Annotated[
    int | None, typer.Option(min=1, help="Counted rounds; one more warms up. Default: 15.", rich_help_panel=_HOW)
]
Launches = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Start local workers so often, each time for a part of the rounds: with 3 or more, 8 better, --compare "
        "sees smaller changes. Default: 1; with --compare as in the old report. Not in a job.",
        rich_help_panel=_HOW,
    ),
]
Calls = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Calls behind one barrier; default: what fills 30 ms, 2 to 20,000. With --only-codecs calls in a row; "
        "default: what fills 20 ms, 1 to 5000.",
        rich_help_panel=_HOW,
    ),
]

Json = Annotated[Path | None, typer.Option(help="Write all that was measured.", rich_help_panel=_REPORTS)]
Html = Annotated[Path | None, typer.Option(help="Write a page with drawings.", rich_help_panel=_REPORTS)]
Csv = Annotated[Path | None, typer.Option(help="Write a line per row.", rich_help_panel=_REPORTS)]
Settings = Annotated[
    Path | None,
    typer.Option(help="Write what is recommended, for Gatherer.from_settings.", rich_help_panel=_REPORTS),
]
Compare = Annotated[
    Path | None,
    typer.Option(help="Say what is slower or faster than in this file of --json.", rich_help_panel=_REPORTS),
]
FailOnSlower = Annotated[
    bool, typer.Option("--fail-on-slower", help="With --compare: exit with 1 if so.", rich_help_panel=_REPORTS)
]
From = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        help="Measure nothing: take this file of --json. Repeatable with --model, which takes their points together; "
        "table, --compare and files are of the first one.",
        rich_help_panel=_REPORTS,
    ),
]
Markdown = Annotated[
    Path | None,
    typer.Option(
        help="With --only-codecs or --model: also put its tables between the markers of this page.",
        rich_help_panel=_REPORTS,
    ),
]

Model = Annotated[
    bool,
    typer.Option(
        "--model",
        help="Fit a cost model to what was measured with up to 4 ranks, check it on the rest, and predict up to 8,192 "
        "ranks, as with --ranks 1,2,3,4,8,16.",
        rich_help_panel=_MODEL,
    ),
]
RanksPerHost = Annotated[int, typer.Option(min=1, help="Of the hosts in predictions.", rich_help_panel=_MODEL)]
LatencyUs = Annotated[float, typer.Option(min=0, help="Between those hosts.", rich_help_panel=_MODEL)]
GbitPerS = Annotated[float, typer.Option(min=0.001, help="Of each of those hosts.", rich_help_panel=_MODEL)]
ThreadsPerCore = Annotated[
    int | None,
    typer.Option(min=1, help="Of the CPUs measured on, where a report does not know.", rich_help_panel=_MODEL),
]

OnlyCodecs = Annotated[
    bool,
    typer.Option(
        "--only-codecs",
        help="Measure encode and decode in this process: no ranks, no transport.",
        rich_help_panel=_CODECS_ALONE,
    ),
]
