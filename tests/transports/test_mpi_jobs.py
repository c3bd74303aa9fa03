"""Whole jobs under mpiexec: scripts that know nothing of MPI, and how they end."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gather_core import SettingsError
from mpi_pool import MPIEXEC, missing, unused_memory_of_mpich
from worker_process import environment

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
_WITHIN_S = 60.0

ONE_RANK_RAISES = """
import sys

from gather_core import AbortedError, Gatherer

try:
    with Gatherer(transport=sys.argv[1], timeout_s=50) as gatherer:
        # One write, as the ranks write at the same time.
        sys.stdout.write(f"{gatherer.all_gather(gatherer.rank)} {gatherer.transport.name}\\n")
        if gatherer.rank == 1:
            raise ValueError("out of paper")
        gatherer.all_gather(0)
except AbortedError as exc:
    print(exc)
"""

ONE_RANK_STAYS_AWAY = """
import sys

from gather_core import Gatherer, TransportError

gatherer = Gatherer(transport=sys.argv[1], timeout_s=50)
if gatherer.rank == 0:
    try:
        gatherer.all_gather(b"x" * 200_000, timeout_s=float(sys.argv[2]))
    except TransportError as exc:
        print(type(exc).__name__, exc)
print("the end")
"""


GATHERER_OUTLIVES_MPI = """
import sys

from mpi4py import MPI

from gather_core import Gatherer

closed, dropped, kept = [Gatherer(transport="mpi") for _ in range(3)]
for gatherer in (closed, dropped, kept):
    assert gatherer.all_gather(gatherer.rank) == [0, 1]
MPI.Finalize()
closed.close()
del gatherer, dropped
sys.stdout.write("the end\\n")  # one write, as the ranks write at the same time
"""


@pytest.fixture(autouse=True)
def memory_of_mpich() -> Iterator[None]:
    """Deletes what MPICH leaves where it ends the other ranks of a job, as it does when one has failed."""
    before = unused_memory_of_mpich()
    yield
    for path in unused_memory_of_mpich() - before:
        path.unlink(missing_ok=True)


def run_job(script: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the script on two ranks; fails where the job does not end."""
    (tmp_path / "tmp").mkdir()
    command = [str(MPIEXEC), "-n", "2", sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=_WITHIN_S)


@pytest.mark.parametrize(("transport", "chosen"), [("mpi", "mpi"), ("auto", "shm")])
def test_a_rank_that_raises_ends_the_job_and_the_others_say_why(tmp_path: Path, transport: str, chosen: str) -> None:
    job = run_job(ONE_RANK_RAISES, tmp_path, transport)
    assert sorted(job.stdout.splitlines()) == [f"[0, 1] {chosen}"] * 2 + ["rank 1 aborted: ValueError: out of paper"]
    assert job.returncode != 0
    assert "ValueError: out of paper" in job.stderr


@pytest.mark.parametrize(
    ("transport", "timeout_s", "said"),
    [
        ("mpi", 0.2, "TransportTimeoutError all_gather #1: not all ranks came within 0.2 s"),
        (
            "auto",
            40,
            "PeerLostError all_gather #1: rank 1 closed the transport before this exchange",
        ),  # it has ended
    ],
)
def test_a_job_ends_although_a_collective_is_pending(
    tmp_path: Path, transport: str, timeout_s: float, said: str
) -> None:
    job = run_job(ONE_RANK_STAYS_AWAY, tmp_path, transport, str(timeout_s))
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("the end") == 2
    assert said in job.stdout


def test_a_gatherer_may_outlive_mpi(tmp_path: Path) -> None:
    run = run_job(GATHERER_OUTLIVES_MPI, tmp_path)
    assert (run.returncode, run.stdout) == (0, "the end\nthe end\n"), run.stderr


def test_a_process_that_a_rank_has_started_does_not_take_itself_for_a_rank(tmp_path: Path) -> None:
    child = "from gather_core import Gatherer; print(Gatherer().describe())"
    command = f"[sys.executable, '-W', 'ignore', '-c', {child!r}]"
    job = run_job(f"import subprocess, sys; subprocess.run({command}, check=True)", tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("rank 0 of 1") == 2


def test_a_job_that_torchrun_started_is_not_gathered_from_one_rank_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    from gather_transports import mpi_group

    monkeypatch.setattr(mpi_group, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    mpi_group._check_against_torch(2)
    with pytest.raises(
        SettingsError, match=r"MPI knows 1 of the 2 ranks of torch\.distributed: start the job with mpiexec"
    ):
        mpi_group._check_against_torch(1)
