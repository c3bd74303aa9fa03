"""Which branches of the decoders have run: the feedback that steers the fuzzer, and its report."""

import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import coverage

_SENDING_SIDE = re.compile(
    r"_?(encode\w*|lower\w*|pack\w*|write\w*|leaf_of|is_built_in|is_plain_tensor|has_grad|arrives_with_grad|memory_\w+"
    r"|tensor_bytes|array_bytes|resolved|num_elements_without_gaps|plain_code|describe\w*|dense_layout|dtype_code|dtype_name|is_by_name"
    r"|names|stand_ins|refused|compress|sample|pad|payload_parts|payload_nbytes|frame_table|covered_below_nbytes"
    r"|checksum_parts|end_of|frames|timedelta_parts|spec|own_spec|fingerprint|trust|__init__|__reduce__|to_current"
    r"|exchange|all_gather_over_seed_wire|find_place|check_max_size|cuda_is_initialized|reducers?_to_cpu|to_cpu"
    r"|reduce_to_cpu|zeroed|keep|device|all_reduce|buffer_nbytes|unpickle|register_type|with_entry|entry|by_kind|layout"
    r"|is_made_of_attributes|holds_only_plain|are_numbers)"
)
"""Functions that receiving does not run. Whatever is not named here counts, so that new decoders are measured."""
_Arc = tuple[str, int, int]
Trace = Callable[[FrameType, str, Any], Any]


class TooManySteps(BaseException):
    """A case took more lines than its length explains; no Exception, so that no decoder takes it for its own."""


class Branches:
    """Records the steps from line to line in files below some folders, or in some files.

    Args:
        places: Files, and folders with everything in them.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        self.arcs: set[_Arc] = set()
        self._places = [str(place) for place in places]
        self._is_watched: dict[str, bool] = {}
        self._num_steps = 0
        self._most_steps = 0
        self.last_place = ""

    def run(self, call: Callable[[], object], most_steps: int) -> object:
        """Calls a function and records its steps.

        Raises:
            TooManySteps: It took more lines of the watched files than `most_steps`.
        """
        self._num_steps, self._most_steps = 0, most_steps
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Trace | None:
        code = frame.f_code
        name = code.co_filename
        watched = self._is_watched.get(name)
        if watched is None:
            watched = self._is_watched[name] = name.startswith(tuple(self._places))
        return self._tracer_of(code) if watched else None

    def _tracer_of(self, code: CodeType) -> Trace:
        name, entry, add = code.co_filename, -code.co_firstlineno, self.arcs.add
        last, is_raising = entry, False

        def trace(frame: FrameType, event: str, arg: object) -> Trace:
            nonlocal last, is_raising
            if event == "line":
                add((name, last, frame.f_lineno))
                last, is_raising = frame.f_lineno, False
                self._count_step(code)
            elif event == "exception":
                is_raising = True
            elif not is_raising:
                add((name, last, entry))
            return trace

        return trace

    def _count_step(self, code: CodeType) -> None:
        self._num_steps += 1
        if self._num_steps > self._most_steps:
            raise TooManySteps(f"more than {self._most_steps} lines, in {code.co_qualname}")

    def covered(self) -> "dict[str, tuple[int, int, list[str]]]":
        """Per file that ran: branches that ran, all branches, and those that did not as "function: from -> to"."""
        arcs: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for name, start, end in self.arcs:
            arcs[name].append((start, end))
        if not arcs:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.json")
            measure = coverage.Coverage(branch=True, data_file=None, config_file=False)
            measure.get_data().add_arcs(arcs)
            measure.json_report(morfs=sorted(arcs), outfile=str(report))
            files: dict[str, Any] = json.loads(report.read_text())["files"]
        return {Path(name).name: _count(file["functions"]) for name, file in files.items()}


def _count(functions: "dict[str, Any]") -> tuple[int, int, list[str]]:
    covered, total, missing = 0, 0, []
    for name, function in functions.items():
        if name and not _SENDING_SIDE.fullmatch(name.rpartition(".")[2]):
            covered += function["summary"]["covered_branches"]
            total += function["summary"]["num_branches"]
            missing += [f"{name}: {start} -> {end}" for start, end in function["missing_branches"]]
    return covered, total, missing
