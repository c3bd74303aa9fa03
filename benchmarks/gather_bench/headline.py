"""The drawing at the head of the README, from the newest release's results: `python -m gather_bench.headline`.

Shows how many times faster than `torch.distributed.all_gather_object` a Gatherer over shared memory and over Gloo is,
and the algorithm of `all_gather_list` beside them. Measures nothing.
"""

import argparse
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import tostring

from gather_bench.bench.only_codecs.quantities import nbytes_text, seconds_text
from gather_bench.bench.results import Report
from gather_bench.bench.wording import count
from gather_bench.report.charts.ratio_bars import WIDTH, BarGroup, RatioBar, ratio_bars
from gather_bench.report.markup import element
from gather_bench.report.outputs import UnreadableError, read_report
from gather_bench.report.views import Measured, measured

RESULTS = Path("benchmarks", "results")
DRAWING = Path("docs", "headline.svg")

_CODEC = "pickle"
"""The default one."""
_WAYS = {"shm": "color0", "gloo": "color2", "all_gather_list": "peer"}
_TITLE = "Times faster than torch.distributed.all_gather_object"
_PAYLOADS = {"metrics": "Metrics of a step", "dpr_step": "DPR step, vectors and ids", "array:4MiB": "int64 array"}
_MARGIN, _HEAD_HEIGHT, _LINE = 16, 26, 18
_SHOWN_WIDTH = 660
_STYLE = "svg text { font-size: 15px; } svg .said { font-size: 13px; fill: var(--faint); } .bar { fill: var(--hue); }"


class NothingToDrawError(ValueError):
    """There are no results, or none of them shows what the drawing shows; the message says which."""


def newest_result(folder: Path) -> Path:
    """The file of the latest day, of several of one day the last by name.

    Raises:
        NothingToDrawError: There is none.
    """
    named = {path.stem.partition("-")[2]: path for path in sorted(folder.glob("[0-9]*-*.json"))}
    if not named:
        raise NothingToDrawError(f"{folder} holds no <version>-<date>.json; `make results` writes one")
    return named[max(named)]


def to_svg(report: Report) -> str:
    """The drawing as a file, which is the same for the same report; it is light or dark as the reader wants.

    Raises:
        NothingToDrawError: The report has neither shm nor Gloo beside torch's.
    """
    groups = list(_groups(report))
    if not groups:
        raise NothingToDrawError(f"no row with codec {_CODEC} over shm or gloo beside all_gather_object")
    bars, bars_height = ratio_bars(groups)
    bars.set("transform", f"translate({_MARGIN} {_MARGIN + _HEAD_HEIGHT})")
    said = _said(report)
    width, below = WIDTH + 2 * _MARGIN, _MARGIN + _HEAD_HEIGHT + bars_height
    height = below + len(said) * _LINE + _MARGIN
    root = element(
        "svg",
        element("title", _TITLE),
        element("style", (files("gather_bench.report") / "style.css").read_text(encoding="utf-8") + _STYLE),
        element("rect", width=width, height=height, style="fill: var(--paper)"),
        element("text", _TITLE, x=_MARGIN, y=_MARGIN + 14, font_weight="bold"),
        bars,
        *(
            element("text", line, x=_MARGIN, y=below + (number + 1) * _LINE, class_="said")
            for number, line in enumerate(said)
        ),
        viewBox=f"0 0 {width} {height}",
        width=_SHOWN_WIDTH,
        height=_SHOWN_WIDTH * height // width,
        role="img",
        xmlns="http://www.w3.org/2000/svg",
        font_family="system-ui, sans-serif",
    )
    return tostring(root, encoding="unicode") + "\n"


def _groups(report: Report) -> Iterator[BarGroup]:
    for payload, name in _PAYLOADS.items():
        rows = [each for each in measured(report) if each.row.payload == payload]
        bars = [bar for way, color in _WAYS.items() for each in rows if (bar := _bar(way, color, each)) is not None]
        if bars:
            largest = max(each.row.payload_nbytes or 0 for each in rows)
            yield BarGroup(f"{name}, {nbytes_text(largest)} per rank", bars)


def _bar(way: str, color: str, each: Measured) -> RatioBar | None:
    """Of a row that is of this way; None for the others."""
    row = each.row
    is_of_way = (row.codec, row.transport) == (_CODEC, way) or row.way == way
    if not is_of_way or row.times_faster is None:
        return None
    hint = f"{row.label}: {seconds_text(each.seconds.median)} per call"
    return RatioBar(f"{way}, {count(row.world_size, 'rank')}", row.times_faster, color, hint)


def _said(report: Report) -> Sequence[str]:
    """Of which run it is, in lines."""
    where = report.environment
    return (
        "Logarithmic. Codec pickle, ranks on one host; medians of one run in turns.",
        f"{count(where.cpu_count, 'CPU')}, {where.cpu_model}.",
        f"gather-core {where.gather_core}, torch {where.torch}, Python {where.python}; {where.date}.",
    )


def main() -> None:
    """Draws the newest results, or those of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, help=f"file of --json; default: the newest in {RESULTS}")
    parser.add_argument("--svg", type=Path, default=DRAWING, help=f"where it is written; default: {DRAWING}")
    arguments = parser.parse_args()
    try:
        source = arguments.source or newest_result(RESULTS)
        arguments.svg.write_text(to_svg(read_report(source)), encoding="utf-8")
    except (NothingToDrawError, UnreadableError, OSError) as exc:
        parser.error(str(exc))
    print(f"{arguments.svg} from {source}")


if __name__ == "__main__":
    main()
