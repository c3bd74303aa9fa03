"""What the doctor reads of machine, launcher and software."""

import os
import socket
import sys
from pathlib import Path

import pytest

from fake_distribution import install
from gather_core.doctor import machine, software
from gather_core.doctor.facts import Launch
from gather_core.doctor.launch import look_at_launch


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ({}, Launch("nobody")),
        ({"WORLD_SIZE": "many"}, Launch("nobody")),
        ({"WORLD_SIZE": "8", "RANK": "3", "LOCAL_WORLD_SIZE": "4", "PMI_SIZE": "2"}, Launch("torchrun", 3, 8, 4)),
        ({"WORLD_SIZE": "8", "RANK": "3"}, Launch("torchrun", 3, 8)),
        ({"PMI_SIZE": "8", "PMI_RANK": "3", "MPI_LOCALNRANKS": "2"}, Launch("mpiexec", 3, 8, 2)),
        (
            {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            Launch("mpiexec", 3, 8, 2),
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "5", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"},
            Launch("srun", 5, 6, 2),
        ),
        ({"SLURM_STEP_NUM_TASKS": "6", "SLURM_NTASKS_PER_NODE": "3"}, Launch("srun", 0, 6, 3)),
        ({"SLURM_NTASKS": "6", "SLURM_PROCID": "0"}, Launch("nobody")),
    ],
)
def test_launchers_are_known_by_their_variables(variables: dict[str, str], launch: Launch) -> None:
    assert look_at_launch(variables) == launch


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_smallest_quota_above_this_process_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/outer/inner\n")
    assert machine.look_at_cores(tmp_path).quota is None
    write(tmp_path / "sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    assert machine.look_at_cores(tmp_path).quota is None
    write(tmp_path / "sys/fs/cgroup/outer/cpu.max", "150000 100000\n")
    assert machine.look_at_cores(tmp_path).quota == 1.5


def test_quotas_of_control_groups_of_version_1_count_too(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/job\n")
    group = tmp_path / "sys/fs/cgroup/cpu/job"
    write(group / "cpu.cfs_period_us", "100000\n")
    write(group / "cpu.cfs_quota_us", "-1\n")
    assert machine.look_at_cores(tmp_path).quota is None
    write(group / "cpu.cfs_quota_us", "50000\n")
    assert machine.look_at_cores(tmp_path).quota == 0.5


def test_the_loopback_interface_is_known_as_such() -> None:
    interfaces = machine.look_at_network().interfaces
    assert interfaces["lo"] == "loopback"
    assert [name for name, kind in interfaces.items() if kind == "loopback"] == ["lo"]


@pytest.mark.parametrize(
    ("address", "expected"), [("127.0.0.1", "loopback"), ("192.0.2.7", "elsewhere"), (None, "nothing")]
)
def test_a_host_is_looked_up_by_its_own_name(
    address: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: object, **__: object) -> list[tuple[object, ...]]:
        if address is None:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert machine.look_at_network().own_name == expected


def test_a_host_is_known_by_texts_that_do_not_name_it() -> None:
    host = machine.look_at_host()
    assert host.kernel is not None
    assert socket.gethostname() not in f"{host}"
    assert host == machine.look_at_host()


def test_only_variables_that_are_known_are_kept() -> None:
    variables = {
        "GATHER_CODEC": "raw",
        "GATHER_TOKEN": "secret",
        "GATHER_WIRE": "",
        "HOME": "/home/somebody",
        "NCCL_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "4",
    }
    kept = software.look_at_variables(variables)
    assert kept == {"GATHER_CODEC": "raw", "NCCL_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "4"}


def test_settings_are_loaded_and_what_is_wrong_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GATHER_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "job.toml"
    monkeypatch.setenv("GATHER_SETTINGS", str(path))
    [problem] = software.look_at_settings().problems
    assert "job.toml" in problem
    path.write_text("[gather]\nslot_nbytes = 32768\ntransport = 'shm'\n")
    monkeypatch.setenv("GATHER_COEDC", "secret")
    settings = software.look_at_settings()
    assert (settings.problems, settings.slot_nbytes, settings.transport) == ((), 32768, "shm")
    [warning] = settings.warnings
    assert "GATHER_COEDC" in warning
    assert "secret" not in warning


@pytest.mark.parametrize(
    ("source", "problem"),
    [("raise RuntimeError('cannot load MPI library')", "RuntimeError: cannot load MPI library"), ("", "status -9")],
)
def test_an_mpi_library_that_cannot_be_loaded_is_a_problem_and_no_crash(
    source: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    install(tmp_path, "mpi4py", {}, modules={"mpi4py": source or dies}, version="4.9")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mpi = software.look_at_mpi()
    assert (mpi.mpi4py, problem in mpi.problem) == ("4.9", True), mpi


def test_plugins_are_broken_unavailable_or_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "odd-plugins", {"codecs": ["gone = nowhere:Gone", "pickle = nowhere:Gone"]})
    monkeypatch.syspath_prepend(tmp_path)
    found = {(one.kind, one.name): one for one in software.look_at_plugins()}
    assert found["codec", "gone"].state == "broken"
    assert "odd-plugins 1.0" in found["codec", "gone"].reason
    assert found["codec", "pickle"].state == "works"
    assert found["codec", "pickle"].warnings
    monkeypatch.setattr("gather_transports.shm.missing_function", lambda: "sem_clockwait")
    found = {(one.kind, one.name): one for one in software.look_at_plugins()}
    assert found["transport", "shm"].state == "unavailable"
    assert "sem_clockwait" in found["transport", "shm"].reason
