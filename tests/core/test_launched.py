"""Who has started this process: what variables say, and what they do not."""

import importlib.util
import socket
import sys
import types
import warnings
from collections.abc import Iterator, Mapping

import pytest

from gather_core import launched

LAUNCHERS = ("WORLD_SIZE", "PMI_SIZE", "PMI_FD", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMIX_RANK")


@pytest.fixture(autouse=True)
def started_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in LAUNCHERS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.fixture
def pmi_fd() -> Iterator[int]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours.fileno()


@pytest.mark.parametrize(
    ("variables", "belongs"),
    [
        ({}, False),
        ({"PMI_SIZE": "1"}, False),
        ({"PMI_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, True),
        ({"SLURM_STEP_NUM_TASKS": "4"}, False),  # srun without MPI
        ({"SLURM_STEP_NUM_TASKS": "4", "PMIX_RANK": "0"}, True),
        ({"PMI_SIZE": "2", "WORLD_SIZE": "4"}, False),  # torchrun under mpiexec
        ({"PMI_SIZE": "2", "PMI_FD": "999"}, False),  # started by a rank, which keeps its connection to itself
        ({"PMI_SIZE": "2", "PMI_FD": "x"}, False),
    ],
)
def test_a_process_belongs_to_mpi_where_an_mpi_launcher_has_started_it_itself(
    monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], belongs: bool
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert launched.belongs_to_mpi() is belongs


def test_a_process_that_mpiexec_has_started_has_an_open_connection_to_it(
    monkeypatch: pytest.MonkeyPatch, pmi_fd: int
) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_FD", str(pmi_fd))
    assert launched.belongs_to_mpi()


def test_without_mpi4py_no_process_belongs_to_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not launched.belongs_to_mpi()


@pytest.mark.parametrize(("size", "finalized", "belongs"), [(2, False, True), (1, False, False), (2, True, False)])
def test_an_mpi_that_is_there_already_says_it_itself(
    monkeypatch: pytest.MonkeyPatch, size: int, finalized: bool, belongs: bool
) -> None:
    mpi = types.SimpleNamespace(
        Is_initialized=lambda: True, Is_finalized=lambda: finalized, COMM_WORLD=types.SimpleNamespace(size=size)
    )
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)
    assert launched.belongs_to_mpi() is belongs


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_process_that_gathers_from_itself_alone_is_warned_where_it_is_one_of_several(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "4")
    with pytest.warns(RuntimeWarning, match=f"{variable} is 4, but torch.distributed is not initialised") as warned:
        launched.warn_if_alone()
    assert ("gather-core[mpi]" in str(warned[0].message)) is (variable != "WORLD_SIZE")
    assert warned[0].filename == __file__


def test_a_process_that_is_alone_is_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launched.warn_if_alone()
