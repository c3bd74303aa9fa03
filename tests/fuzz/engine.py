"""The loop: mutate an input that has shown something new, run it, keep it where it shows more."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from fuzz.branches import Branches
from fuzz.byte_mutations import MOST_NBYTES, Case, mutate_frames
from fuzz.oracle import Outcome, examine, watching
from fuzz.targets import Target
from fuzz.trees import check_size, mutate_tree

_SHRINK_EXECUTIONS = 400
_MOST_SEED_NBYTES = 1 << 15
_MOST_SEED_S = 0.2
"""What takes longer is run once, and not mutated."""


@dataclass(frozen=True)
class Finding:
    """An input that does what must not happen."""

    target: str
    problem: str
    case: Case


@dataclass
class Fuzzer:
    """Fuzzes one target.

    Args:
        target: What is fuzzed.
        seed: Equal seeds run equal cases.
        before_each: Called with each case before it is run.
        branches: Where branches are recorded; may be shared with other targets.
    """

    target: Target
    seed: int = 0
    before_each: Callable[[Case], object] = lambda case: None
    branches: Branches = field(default_factory=lambda: Branches([]))
    num_executions: int = 0
    num_accepted: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = Random(self.seed)
        self._corpus: list[Case] = []
        self._spent_s = 0.0

    def run(
        self, *, executions: int | None = None, seconds: float | None = None, stop_at_finding: bool = False
    ) -> None:
        """Runs the seeds, where that has not been done, and mutations of them, up to a number or for a time."""
        start = time.monotonic()
        deadline = None if seconds is None else start + seconds
        last = None if executions is None else self.num_executions + executions
        with watching():
            if not self._corpus:
                self._start()
            while not (stop_at_finding and self.findings) and not (last is not None and self.num_executions >= last):
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self._execute(self._mutated())
        self._spent_s += time.monotonic() - start

    @property
    def executions_per_s(self) -> float:
        """How fast it was."""
        return self.num_executions / max(self._spent_s, 1e-9)

    def _start(self) -> None:
        seeds = self.target.seeds()
        if self.target.format is not None:
            seeds += [self.target.format.write(tree, Random(self.seed)) for tree in self.target.format.hostile_trees()]
        for case in seeds:
            started_s = time.process_time()
            self._execute(case)
            if sum(map(len, case)) <= _MOST_SEED_NBYTES and time.process_time() - started_s < _MOST_SEED_S:
                self._corpus.append(case)

    def _execute(self, case: Case) -> None:
        self.before_each(case)
        known = len(self.branches.arcs)
        outcome = examine(self.target, case, self.branches)
        self.num_executions += 1
        self.num_accepted += outcome.is_accepted
        if outcome.problem is not None:
            self._note(case, outcome)
        elif len(self.branches.arcs) > known and sum(map(len, case)) <= MOST_NBYTES:
            self._corpus.append(case)

    def _note(self, case: Case, outcome: Outcome) -> None:
        if outcome.key not in self.findings:
            if outcome.key != "time":  # to shrink it would take a minute and more
                case = shrunk(case, lambda other: examine(self.target, other, self.branches).key == outcome.key)
            problem = examine(self.target, case, self.branches).problem
            self.findings[outcome.key] = Finding(self.target.name, problem or outcome.problem or "", case)

    def _mutated(self) -> Case:
        case, donor = self._pick(), self._pick()
        for _ in range(self._rng.choice((1, 1, 2, 3))):
            case = (
                self._mutated_tree(case, donor) if self._rng.random() < 0.75 else mutate_frames(case, donor, self._rng)
            )
        return case

    def _pick(self) -> Case:
        """An input, more often one that was kept lately."""
        corpus = self._corpus
        at = self._rng.randrange(len(corpus))
        return corpus[max(at, self._rng.randrange(len(corpus))) if self._rng.random() < 0.5 else at]

    def _mutated_tree(self, case: Case, donor: Case) -> Case:
        shape = self.target.format
        if shape is None:
            return mutate_frames(case, donor, self._rng)
        try:
            tree = shape.read(case)
            for _ in range(self._rng.choice((1, 1, 1, 2))):
                tree = mutate_tree(tree, lambda: shape.read(donor), self._rng)
            check_size(tree)
            return shape.write(tree, self._rng)
        except Exception:  # too damaged for a tree, or made into something that the format has no bytes for
            return mutate_frames(case, donor, self._rng)


def shrunk(case: Case, is_same: Callable[[Case], bool]) -> Case:
    """A smaller input that does the same: pieces are left out as long as it does."""
    executions = 0
    for size in (1 << power for power in range(14, -1, -1)):
        for at in range(len(case)):
            start = 0
            while start < len(case[at]) and executions < _SHRINK_EXECUTIONS:
                smaller = (*case[:at], case[at][:start] + case[at][start + size :], *case[at + 1 :])
                executions += 1
                if is_same(smaller):
                    case = smaller
                else:
                    start += size
    return case
