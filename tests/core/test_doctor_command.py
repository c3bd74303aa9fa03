"""`gather doctor` as users run it: alone, under limits, with a broken plug-in, and on the ranks of a job."""

import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fake_distribution import install
from mpi_pool import MPIEXEC, missing

DOCTOR = (sys.executable, "-m", "gather_core", "doctor")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
OTHER_ON_RANK_1 = """
import os, runpy, sys
if os.environ.get("RANK", os.environ.get("PMI_RANK")) == "1":
    os.environ[{name!r}] = {value!r}
sys.argv = ["gather", "doctor", *sys.argv[1:]]
runpy.run_module("gather_core", run_name="__main__")
"""


def environment(variables: Mapping[str, str] | None = None, path: Sequence[Path] = ()) -> dict[str, str]:
    """Of a machine that is always found alike: Gloo is told where to listen, and nothing else is set."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith("GATHER_")}
    python_path = os.pathsep.join([*map(str, path), *filter(None, sys.path)])
    return {
        **ours,
        "PYTHONPATH": python_path,
        "COLUMNS": "250",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        **(variables or {}),
    }


def run(
    command: Sequence[str],
    *,
    variables: Mapping[str, str] | None = None,
    path: Sequence[Path] = (),
    limit: Callable[[], None] | None = None,
) -> tuple[int, str, str]:
    """Runs a command to its end; returns exit status, stdout and stderr."""
    env = environment(variables, path)
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100, preexec_fn=limit, check=False)
    return done.returncode, done.stdout, done.stderr


def found(out: str, subject: str) -> list[tuple[str, str]]:
    """Level and text of the findings about a subject, in JSON."""
    findings: list[dict[str, Any]] = json.loads(out)["findings"]
    return [(one["level"], one["what"]) for one in findings if one["subject"] == subject]


def open_files(number: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def script_of(folder: Path, name: str, value: str) -> str:
    """A file that is the doctor, with another variable on rank 1."""
    script = folder / "doctor_of_ranks.py"
    script.write_text(OTHER_ON_RANK_1.format(name=name, value=value))
    return str(script)


def test_nothing_fails_here_and_the_table_says_what_was_looked_at() -> None:
    status, out, err = run(DOCTOR)
    assert status == 0, out + err
    for subject in ("Gatherer", "versions", "torch", "MPI", "settings", "memory", "open files", "cores", "network"):
        assert f" {subject} " in out
    assert "transport single (auto: single, as there is one rank)" in out
    assert err == ""


def test_the_json_names_neither_the_host_nor_what_variables_hold() -> None:
    status, out, err = run([*DOCTOR, "--json"], variables={"SOME_TOKEN": "secret-1", "GATHER_TOKEN": "secret-2"})
    assert status == 0, out + err
    values = json.loads(out)
    assert values["worst"] == "slow"
    assert list(values["facts"]) == ["0"]
    assert [text.split(".")[0] for level, text in found(out, "settings") if level == "slow"] == [
        "nothing reads the variable GATHER_TOKEN"
    ]
    for kept in (socket.gethostname(), "secret", str(Path.home())):
        assert not re.search(rf"(?<!\w){re.escape(kept)}", out)


def test_what_is_slow_is_a_failure_only_with_strict() -> None:
    variables = {"GATHER_TOKEN": "1"}
    assert run(DOCTOR, variables=variables)[0] == 0
    assert run([*DOCTOR, "--strict"], variables=variables)[0] == 1


def test_wrong_usage_has_a_status_of_its_own() -> None:
    assert run([*DOCTOR, "--timeout-s", "soon"])[0] == 2


def test_a_broken_plugin_fails_and_is_named(tmp_path: Path) -> None:
    points = {"codecs": ["theirs = their_codec:TheirCodec"]}
    install(tmp_path, "their-plugins", points, modules={"their_codec": "print('loud')\nimport absent_thing"})
    status, out, _ = run(DOCTOR, path=[tmp_path])
    assert status == 1
    [line] = [line for line in out.splitlines() if "codec theirs is broken" in line]
    assert line.split()[:2] == ["fails", "plug-ins"]
    assert "their-plugins 1.0" in line
    assert "No module named 'absent_thing'" in out
    assert "loud" not in out


def test_settings_that_cannot_be_are_a_finding_and_no_traceback() -> None:
    status, out, err = run([*DOCTOR, "--json"], variables={"GATHER_CODEC": "pikcle", "GATHER_SLOT_NBYTES": "7"})
    assert status == 1
    assert [level for level, _ in found(out, "settings")] == ["fails", "fails"]
    assert found(out, "Gatherer") == []  # which would say the same again
    assert "Did you mean 'pickle'?" in out
    assert "Traceback" not in err


def test_a_codec_that_is_forbidden_is_a_finding_and_no_traceback() -> None:
    status, out, err = run([*DOCTOR, "--json"], variables={"GATHER_FORBID_CODE": "1"})
    assert status == 1
    [(level, text)] = found(out, "Gatherer")
    assert level == "fails"
    assert "codec 'pickle' can execute code" in text
    assert "Traceback" not in err


@pytest.mark.parametrize(("number", "level", "status"), [(64, "slow", 0), (30, "fails", 1)])
def test_few_descriptors_are_found(number: int, level: str, status: int) -> None:
    got, out, err = run([*DOCTOR, "--json"], limit=open_files(number))
    assert (got, err) == (status, "")
    [(found_level, text)] = found(out, "open files")
    assert (found_level, text.startswith(f"the limit is {number}")) == (level, True)


def test_a_job_without_mpi4py_or_torchrun_is_told_that_it_gathers_alone() -> None:
    launched = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    status, out, err = run([*DOCTOR, "--json"], variables=launched)
    assert (status, err) == (1, "")
    assert ("fails", "SLURM_STEP_NUM_TASKS is 2, but this process gathers from itself alone") in found(out, "Gatherer")
    status, out, _ = run(DOCTOR, variables=launched | {"SLURM_PROCID": "1"})
    assert (status, out) == (1, "")


def test_ranks_under_torchrun_are_all_looked_at_and_one_prints() -> None:
    status, out, err = run([*TORCHRUN, "-m", "gather_core", "doctor", "--json"])
    assert status == 0, out + err
    values = json.loads(out)
    assert (values["world_size"], list(values["facts"]), values["complete"]) == (2, ["0", "1"], True)
    assert "rank 0 of 2" in values["gatherer"]
    assert found(out, "hosts") == [("ok", "host 0: ranks 0-1")]


def test_a_variable_that_differs_between_ranks_is_found_under_torchrun(tmp_path: Path) -> None:
    status, out, _ = run([*TORCHRUN, script_of(tmp_path, "GATHER_SLOT_NBYTES", "2048")])
    assert status == 1
    [line] = [line for line in out.splitlines() if "GATHER_SLOT_NBYTES" in line]
    assert "fails variables" in line
    assert "must agree: not set on rank 0, '2048' on rank 1" in line
    assert "rank 1 could not set up: slot_nbytes is 2048, but rank 0 has 16384" in out


def test_rank_0_reports_what_keeps_another_rank_from_it(tmp_path: Path) -> None:
    script = script_of(tmp_path, "GLOO_SOCKET_IFNAME", "absent0")
    status, out, _ = run([*TORCHRUN, script, "--json", "--timeout-s", "3"])
    assert status == 1
    values = json.loads(out)
    assert (values["complete"], list(values["facts"])) == (False, ["0", "1"])
    assert ("fails", "GLOO_SOCKET_IFNAME=absent0: there is no interface absent0") in found(out, "network")
    told = [one for one in values["findings"] if one["subject"] == "Gatherer" and one["ranks"] == [1]]
    assert "absent0" in told[0]["what"]


def test_a_rank_that_never_comes_is_found_within_the_timeout(unused_port: int) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port), "WORLD_SIZE": "2", "RANK": "0"}
    status, out, err = run([*DOCTOR, "--json", "--timeout-s", "1"], variables=where)
    assert status == 1, err
    [(level, text)] = found(out, "Gatherer")
    assert level == "fails"
    assert "1/2 clients joined" in text
    assert "Traceback" not in err


def test_a_rank_that_hangs_before_it_comes_is_named(tmp_path: Path) -> None:
    script = tmp_path / "doctor_of_rank_0.py"
    hang = "import os, runpy, signal, sys\nif os.environ['RANK'] == '1':\n    signal.pause()\n"
    script.write_text(hang + "sys.argv[0] = 'gather'\nrunpy.run_module('gather_core', run_name='__main__')\n")
    status, out, _ = run([*TORCHRUN, str(script), "doctor", "--json", "--timeout-s", "2"])
    assert status == 1
    [(level, text)] = found(out, "Gatherer")
    assert level == "fails"
    assert "rank 1 never came to the job's store: nothing heard within 2 s" in text


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is MPI")
def test_ranks_under_mpiexec_are_all_looked_at_and_one_prints(tmp_path: Path) -> None:
    status, out, err = run([str(MPIEXEC), "-n", "2", *DOCTOR, "--json"])
    assert status == 0, out + err
    values = json.loads(out)
    assert (values["world_size"], list(values["facts"])) == (2, ["0", "1"])
    assert found(out, "MPI")[0][1].endswith("started by mpiexec")
    script = script_of(tmp_path, "GATHER_CODEC", "raw")
    status, out, _ = run([str(MPIEXEC), "-n", "2", sys.executable, script])
    assert status == 1
    assert "GATHER_CODEC must agree: not set on rank 0, 'raw' on rank 1" in out


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_without_torch_that_is_what_fails(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: no such file')")
    status, out, err = run([*DOCTOR, "--json"], path=[tmp_path])
    assert status == 1, err
    assert ("fails", "it cannot be imported: OSError: libtorch.so: no such file") in found(out, "torch")
    assert "Traceback" not in err
