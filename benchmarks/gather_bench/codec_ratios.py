"""What the codecs cost against the bare libraries, in one run: `python -m gather_bench.codec_ratios`.

Both sides of a comparison take turns, round by round, so that other work on the machine shows in them alike. Frames are
decoded from where a Gatherer hands them over: borrowed, read-only, 64-byte aligned.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from gather_bench.codec_cases import Case, Way, cases

_ROUND_S = 0.0005
_MAX_CALLS = 500


@dataclass(frozen=True)
class Line:
    """One comparison: medians over the rounds, per call."""

    codec: str
    payload: str
    call: str
    ours_s: float
    bare_s: float
    ratio: float
    """Of ours to the bare library's, median of the rounds' own ratios."""
    added_s: float
    """Ours less the bare library's, median of the rounds' own differences."""
    bound: str
    met: bool

    def __str__(self) -> str:
        times = f"{self.ours_s * 1e6:10.1f} us against {self.bare_s * 1e6:10.1f} us: {self.ratio:6.3f} of it, "
        verdict = "met" if self.met else "MISSED"
        added = f"{self.added_s * 1e6:+10.2f} us"
        return f"  {self.payload:12} {self.codec:11} {self.call:13} {times}{added}; {self.bound} {verdict}"


def measure(case: Case, rounds: int) -> Line:
    """Times both sides of a case in turns, each first in every other round; the garbage collector runs as in a job."""
    ours_calls, bare_calls = _num_calls(case.ours), _num_calls(case.bare)
    pairs: list[tuple[float, float]] = []
    gc.collect()
    for number in range(rounds):
        if number % 2:
            pairs.append((_seconds(case.ours, ours_calls), _seconds(case.bare, bare_calls)))
        else:
            bare_s = _seconds(case.bare, bare_calls)
            pairs.append((_seconds(case.ours, ours_calls), bare_s))
    return _line(case, pairs)


def _line(case: Case, pairs: Sequence[tuple[float, float]]) -> Line:
    ours_s, bare_s = (median(times) for times in zip(*pairs, strict=True))
    ratio = median(ours / bare for ours, bare in pairs)
    added_s = median(ours - bare for ours, bare in pairs)
    met = case.bound.is_met(ours_s, ratio, added_s)
    return Line(case.codec, case.payload, case.call, ours_s, bare_s, ratio, added_s, str(case.bound), met)


def _num_calls(way: Way) -> int:
    """As many as make up a round, from the fastest of some that warm up too."""
    return max(1, min(_MAX_CALLS, int(_ROUND_S / min(_seconds(way, 1) for _ in range(5)))))


def _seconds(way: Way, calls: int) -> float:
    """Seconds of this process per call: what other processes take does not count."""
    started = time.process_time()
    for _ in range(calls):
        way()
    return (time.process_time() - started) / calls


def main() -> None:
    """Prints every comparison with its bound; exits with 1 only where `--check` is given and one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--codec", action="append", help="only this one; may be given several times")
    parser.add_argument("--payload", action="append", help="only this one; may be given several times")
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bound is missed")
    arguments = parser.parse_args()
    lines: list[Line] = []
    for case in cases(arguments.codec, arguments.payload):
        lines.append(measure(case, arguments.rounds))
        print(lines[-1], flush=True)
    missed = sum(not line.met for line in lines)
    print(f"Of {len(lines)} bounds, {len(lines) - missed} are met; CPU time, medians of {arguments.rounds} rounds")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")
    sys.exit(bool(arguments.check and missed))


if __name__ == "__main__":
    main()
