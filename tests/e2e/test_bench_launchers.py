"""Who has started the ranks that `gather bench` measures, and how they find each other."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import typer
from typer.testing import CliRunner

from gather_bench.bench import command
from gather_bench.bench.cases import mpi_cases
from gather_bench.bench.launchers import find
from gather_bench.bench.launchers.find import find_job
from gather_bench.bench.launchers.job import Job, JobError
from gather_bench.bench.launchers.mpiexec import MpiexecJob
from gather_bench.bench.launchers.srun import SrunJob, first_host
from made_report import made_report
from mpi_pool import MPIEXEC, missing
from worker_process import environment

_WITHIN_S = 100.0
_BENCH = [sys.executable, "-m", "gather_core", "bench", "--payload", "metrics", "--codec", "pickle"]
_QUICK = ["--rounds", "1", "--calls", "1", "--json", "out.json"]
_SRUN = {
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[03-04]",
    "SLURM_JOB_NODELIST": "node[01-04]",
    "SLURM_JOB_ID": "40007",
    "SLURM_STEP_ID": "2",
}


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        *(("node[01-03,07],login", "node01"), ("login,node[01-03]", "login"), ("r[1-4]n[2,5]", "r1n2")),
        *(("10.0.0.7", "10.0.0.7"), ("gpu-a[9-11].cluster", "gpu-a9.cluster"), ("", "")),
    ],
)
def test_the_first_host_of_slurms_lists_is_found(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def _without(*names: str) -> dict[str, str]:
    return {name: value for name, value in _SRUN.items() if name not in names}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        (_SRUN, ("node03", 12_025)),
        (_without("SLURM_STEP_NODELIST") | {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}, ("node01", 12_025)),
        (_SRUN | {"SLURM_STEP_NUM_NODES": "1"}, ("127.0.0.1", 12_025)),
        (_SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "77"}, ("head", 77)),
        (_without("SLURM_STEP_NUM_TASKS") | {"SLURM_NTASKS": "4"}, ("node03", 12_025)),
        (_SRUN | {"PMI_SIZE": "4", "PMI_RANK": "1"}, ("node03", 12_025)),  # srun --mpi=pmi2
    ],
)
def test_the_tasks_of_srun_meet_on_their_first_host(variables: Mapping[str, str], place: tuple[str, int]) -> None:
    assert find_job(variables) == SrunJob(1, 4, 1, 2, *place)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "node[01-04]"},  # a batch script
        _SRUN | {"SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        {"PMI_SIZE": "1"},
    ],
)
def test_a_process_that_is_no_rank_of_several_starts_workers_of_its_own(variables: Mapping[str, str]) -> None:
    assert find_job(variables) is None


def test_a_step_without_an_address_is_told_what_to_set() -> None:
    with pytest.raises(JobError, match="set MASTER_ADDR to rank 0's"):
        find_job(_without("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))


_TORCHRUN = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        *((_TORCHRUN, "RANK"), (_SRUN, "SLURM_PROCID"), ({"PMI_SIZE": "2"}, "PMI_RANK")),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK"),
    ],
)
def test_a_saved_report_is_shown_and_codecs_alone_are_measured_on_rank_0_alone(
    variables: Mapping[str, str], rank: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = folder / "out.json"
    saved.write_text(made_report().to_json(), encoding="utf-8")
    monkeypatch.setattr(command, "run_only_codecs", lambda *_: typer.echo("measured"))
    monkeypatch.setattr(find, "belongs_to_mpi", lambda: True)
    monkeypatch.setattr(MpiexecJob, "find", lambda told: pytest.fail("MPI was initialised"))
    app = typer.Typer()
    app.command()(command.bench)
    for arguments in (["--from", str(saved), "--csv", str(folder / "rows.csv")], ["--only-codecs"]):
        for number in ("1", "0"):
            done = CliRunner().invoke(app, arguments, env={**variables, rank: number})
            assert (done.exit_code, bool(done.output)) == (0, number == "0"), done.output
            assert (folder / "rows.csv").exists() == (number == "0" or arguments == ["--only-codecs"])


@pytest.mark.parametrize("rank", ["4", "-1"])
def test_a_task_of_srun_that_cannot_be_is_refused_at_once(rank: str) -> None:
    with pytest.raises(JobError, match=f"SLURM_PROCID is {rank}, and srun has started 4 tasks: there is no such rank"):
        find_job(_SRUN | {"SLURM_PROCID": rank})


def test_mpiexec_counts_before_the_srun_that_it_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(told: str) -> Any:
        return told

    monkeypatch.setattr(MpiexecJob, "find", found)
    monkeypatch.setattr(find, "belongs_to_mpi", lambda: True)
    by_mpich: Any = find_job(_SRUN | {"PMI_SIZE": "8", "PMI_RANK": "5"})
    by_open_mpi: Any = find_job(_SRUN | {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"})
    assert (by_mpich, by_open_mpi) == ("PMI_SIZE is 8", "OMPI_COMM_WORLD_SIZE is 8")


def test_without_mpi4py_a_job_of_mpiexec_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(JobError, match=r"PMI_SIZE is 2: .*pip install 'gather-core\[mpi\]'"):
        find_job({"PMI_SIZE": "2", "PMI_RANK": "0"})


def test_ways_of_mpi4py_are_not_expected_where_no_launcher_of_mpis_has_started_the_ranks() -> None:
    assert mpi_cases("local") == mpi_cases("torchrun") == []


def test_a_job_knows_its_root() -> None:
    job: Job = SrunJob(0, 4, 0, 2, "node03", 1)
    assert job.is_root
    assert "node03:1" in job.advice


def test_rank_0_keeps_the_store_until_all_others_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    has_left: list[str] = []
    awaited: list[str] = []

    class Store:
        def set(self, key: str, value: str) -> None:
            has_left.append(key)

        def wait(self, keys: list[str], timeout: timedelta) -> None:
            awaited.extend(keys)

    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(SrunJob, "rendezvous", lambda job: {"store": Store()})
    for rank in (2, 1, 0):
        with SrunJob(rank, 3, rank, 3, "node03", 1).default_group():
            pass
    assert sorted(has_left) == awaited != []


def _as_tasks_of_srun(command: list[str], folder: Path, port: int) -> tuple[list[int], list[tuple[str, str]]]:
    """Runs two; returns their exit statuses, and what they have printed."""
    variables = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NNODES": "1", "MASTER_PORT": str(port)}
    with ExitStack() as stack:
        tasks = []
        for rank in ("0", "1"):
            of_rank = environment(folder) | variables | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            task = subprocess.Popen(command, env=of_rank, cwd=folder, **pipes)
            tasks.append(stack.enter_context(task))
            stack.callback(task.kill)
        outputs = [task.communicate(timeout=_WITHIN_S) for task in tasks]
    return [task.returncode for task in tasks], outputs


def test_the_tasks_of_srun_are_the_ranks_and_rank_0_alone_reports(folder: Path, unused_port: int) -> None:
    statuses, outputs = _as_tasks_of_srun([*_BENCH, *_QUICK, "--no-peers"], folder, unused_port)
    assert statuses == [0, 0], outputs
    assert outputs[0][0].count("metrics:") == 1
    assert outputs[1] == ("", "")
    report = json.loads((folder / "out.json").read_text())
    assert report["environment"]["launcher"] == "srun"
    assert report["environment"]["world_sizes"] == [2]


def test_where_rank_0_is_lost_with_its_store_the_other_says_so_without_stacks(folder: Path, unused_port: int) -> None:
    (folder / "mine.py").write_text(
        "import os, signal\ndef make(rank): return rank or os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [*_BENCH[:4], "--payload", "mine:make", *_QUICK, "--no-peers"]
    statuses, outputs = _as_tasks_of_srun(command, folder, unused_port)
    assert statuses == [-signal.SIGKILL, 1]
    *warnings, error = outputs[1][1].splitlines()
    assert error.startswith("Error: rank 1: ")
    assert all(line.startswith("rank 1 could not tell the others that it aborted: ") for line in warnings), warnings


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is MPI")
def test_under_mpiexec_no_group_is_needed_and_mpi4pys_own_ways_are_measured_too(folder: Path) -> None:
    command = [str(MPIEXEC), "-n", "2", *_BENCH, "--transport", "mpi", *_QUICK]
    done = subprocess.run(
        command, env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=_WITHIN_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("metrics:") == 1
    assert "recvValue" not in done.stderr, "the store of rank 0 was gone too early"
    report = json.loads((folder / "out.json").read_text())
    assert report["environment"]["launcher"] == "mpiexec"
    measured = [(row["way"], row["transport"]) for row in report["rows"] if row["status"] == "measured"]
    assert measured[0] == ("gatherer", "mpi")
    assert measured[-2:] == [("mpi4py_allgather", None), ("mpi4py_pkl5", None)]
