"""All ranks of the job come together, and each gets the facts of all: through a Gatherer, as the job will.

What keeps the ranks apart is a finding. Under torchrun rank 0 then still reads from the store what others have found.
"""

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gather_core.doctor.facts import Facts
from gather_core.doctor.findings import Finding
from gather_core.doctor.torch_job import TorchJob
from gather_core.errors import summarize
from gather_core.gatherer import Gatherer
from gather_core.launched import launched_as_one_of_several
from gather_core.process_group import is_initialized

_HEAD_START_S = 2.0
"""How long other ranks stay where nothing connects them: a launcher ends rank 0 once another exits with an error."""


@dataclass(frozen=True)
class Meeting:
    """What came of it, as one rank knows it."""

    rank: int
    world_size: int
    known: Mapping[int, Facts]
    """Of the ranks whose facts this rank has; always its own."""
    findings: Sequence[Finding]
    """About the meeting itself."""
    gatherer: str = ""
    """What describes the Gatherer that the job's settings make; empty where none can be made."""
    is_complete: bool = True
    """Whether all ranks know the same."""


@contextlib.contextmanager
def meeting(own: Facts, timeout_s: float) -> Iterator[Meeting]:
    """(all ranks of the job) Meets, and stays in touch until the block ends on all ranks; then everything is closed.

    Without a launcher, this process alone is all ranks.

    Args:
        own: What this rank has found.
        timeout_s: Seconds for each step: finding the store, connecting torch's group, each of two Gatherers.
    """
    with contextlib.ExitStack() as stack:
        job = TorchJob(own.launch, timeout_s) if own.launch.by == "torchrun" and not is_initialized() else None
        try:
            if job is not None:
                stack.callback(job.end)
                job.start(own.as_json())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # what they say is among the facts, or a finding
            gatherer = stack.enter_context(Gatherer("msgpack", timeout_s=timeout_s))
            known = {rank: Facts.from_json(text) for rank, text in enumerate(gatherer.all_gather(own.as_json()))}
        except Exception as exc:
            yield _failed(own, job, exc)
            _stay(own, job)
            return
        yield _met(own, gatherer, known, timeout_s)
        gatherer.broadcast()


def _stay(own: Facts, job: TorchJob | None) -> None:
    """Stays until rank 0 has printed, as far as that can be known."""
    try:
        if job is not None:
            job.report_is_out()
            return
    except RuntimeError:  # no store, which was said
        pass
    if own.launch.rank:
        time.sleep(_HEAD_START_S)


def _met(own: Facts, gatherer: Gatherer, known: Mapping[int, Facts], timeout_s: float) -> Meeting:
    findings: list[Finding] = []
    described = ""
    if gatherer.world_size < own.launch.world_size:
        what = f"{launched_as_one_of_several()}, but this process gathers from itself alone"
        mend = "start it with torchrun, or install gather-core[mpi] in a job of MPI's"
        findings.append(Finding("fails", "Gatherer", what, mend))
    elif not any(facts.settings.problems for facts in known.values()):  # else those say it all
        described, findings = _try_settings(timeout_s)
    is_alone = gatherer.world_size == 1
    return Meeting(own.launch.rank if is_alone else gatherer.rank, gatherer.world_size, known, findings, described)


def _try_settings(timeout_s: float) -> tuple[str, list[Finding]]:
    """(all ranks) Makes the Gatherer that a job without keywords gets."""
    try:
        with Gatherer.from_settings(timeout_s=timeout_s) as gatherer:
            described = gatherer.describe()
    except Exception as exc:
        mend = "set GATHER_* variables and files alike on all ranks, to what works on each of them"
        return "", [Finding("fails", "Gatherer", f"it cannot be made: {_one_line(exc)}", mend)]
    return described, [Finding("ok", "Gatherer", described)]


def _failed(own: Facts, job: TorchJob | None, exc: Exception) -> Meeting:
    """Says what kept this rank from the others; on rank 0 also what has kept others, and what those have found."""
    rank, world_size = own.launch.rank, own.launch.world_size
    texts, known = {rank: _one_line(exc)}, {rank: own}
    if job is not None:
        with contextlib.suppress(RuntimeError, ValueError):  # the store may be what has failed, which is said
            if rank:
                job.fail(texts[rank])
            else:
                known |= {peer: Facts.from_json(text) for peer, text in job.texts().items()}
                texts |= job.failures()
    mend = (
        "look at the other findings; at the logs of ranks that are missing; at MASTER_ADDR, MASTER_PORT and firewalls"
    )
    findings = [
        Finding("fails", "Gatherer", f"the ranks cannot come together: {text}", mend, (who,))
        for who, text in texts.items()
    ]
    return Meeting(rank, world_size, dict(sorted(known.items())), findings, is_complete=False)


def _one_line(exc: Exception) -> str:
    return "; ".join(summarize(exc).splitlines())
