"""What a case may do: end soon and in little memory, with an object or with an error that says so."""

import resource
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from fuzz.branches import Branches, TooManySteps
from fuzz.byte_mutations import Case
from fuzz.targets import Target
from gather_core.errors import summarize

MOST_CPU_S = 1.0
_MOST_NBYTES = 64 << 20
_MOST_NBYTES_PER_BYTE = 160
"""An empty dict of one byte takes 64, a set of one 216 in three."""
_MOST_STEPS = 5000
_MOST_STEPS_PER_BYTE = 200


class TooSlowError(BaseException):
    """The CPU time of a case is over; no Exception, so that no decoder takes it for its own."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    problem: str | None
    """What must not happen, in words."""
    key: str = ""
    """Equal for problems that are probably the same."""
    is_accepted: bool = False
    """Whether it decoded."""


@contextmanager
def watching() -> Iterator[None]:
    """Cases are run inside of this: it counts memory, and ends what takes too long. In the main thread only."""
    was_counting = tracemalloc.is_tracing()
    if not was_counting:
        tracemalloc.start()
    before = signal.signal(signal.SIGPROF, _end)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        if not was_counting:
            tracemalloc.stop()


def _end(number: int, frame: FrameType | None) -> None:
    raise TooSlowError(f"more than {MOST_CPU_S} s of CPU time")


def examine(target: Target, case: Case, branches: Branches) -> Outcome:
    """Runs one case."""
    nbytes = sum(map(len, case))
    most_nbytes = _MOST_NBYTES + _MOST_NBYTES_PER_BYTE * nbytes
    prepared = target.prepare(case)
    tracemalloc.reset_peak()
    held, resident = tracemalloc.get_traced_memory()[0], _peak_resident_nbytes()
    outcome = _run(target, case, prepared, branches, _MOST_STEPS + _MOST_STEPS_PER_BYTE * nbytes)
    taken = max(tracemalloc.get_traced_memory()[1] - held, _peak_resident_nbytes() - resident)
    if outcome.problem is None and taken > most_nbytes:
        return Outcome(f"{taken} bytes of memory for a case of {nbytes} bytes", "memory")
    return outcome


def _run(target: Target, case: Case, prepared: object, branches: Branches, most_steps: int) -> Outcome:
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    try:
        outcome = _outcome(target, case, prepared, branches, most_steps)
        signal.setitimer(signal.ITIMER_PROF, 0)
        return outcome
    except TooSlowError as exc:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return Outcome(str(exc), "time") if _is_slow(target, case) else Outcome(None)


def _outcome(target: Target, case: Case, prepared: object, branches: Branches, most_steps: int) -> Outcome:
    try:
        received = branches.run(lambda: target.receive(prepared), most_steps)
        signal.setitimer(signal.ITIMER_PROF, 0)
        problem = target.problem(case, received)
        return Outcome(problem, _without_digits(problem or ""), is_accepted=True)
    except target.expected as exc:
        if _is_from_memory_error(exc):
            return Outcome("more memory was asked for than there is", "memory")
        return Outcome(None)
    except TooManySteps as exc:
        return Outcome(str(exc), "steps")
    except Exception as exc:
        return Outcome(f"raised {summarize(exc, 300)}", f"{type(exc).__name__} at {_place(exc)}")


def _is_slow(target: Target, case: Case) -> bool:
    """Whether it also takes too long where nothing is recorded."""
    prepared = target.prepare(case)
    tracemalloc.stop()
    try:
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
        with suppress(Exception):
            target.receive(prepared)
        signal.setitimer(signal.ITIMER_PROF, 0)
        return False
    except TooSlowError:
        return True
    finally:
        tracemalloc.start()


def _is_from_memory_error(exc: BaseException | None) -> bool:
    while exc is not None and not isinstance(exc, MemoryError):
        exc = exc.__cause__
    return exc is not None


def _place(exc: BaseException) -> str:
    traceback = exc.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_qualname if traceback is not None else ""


def _without_digits(text: str) -> str:
    return "".join(char for char in text[:60] if not char.isdigit())


def _peak_resident_nbytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
