"""`gather demo`, as a user runs it: a subprocess of the command line."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gather_transports.shm import ShmTransport

_MARK = "DEMO_TEST_MARK"
_WITHIN_S = 60.0
_ENDS_WITHIN_S = 10.0
_SMALL = ["demo", "--workers", "2", "--epochs", "1"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")


def _python(arguments: list[str], **variables: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a child that imports what this process imports."""
    roots = os.pathsep.join(path for path in sys.path if path)
    return [sys.executable, *arguments], os.environ | {"PYTHONPATH": roots, "COLUMNS": "120"} | variables


def _run(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    command, environment = _python(arguments, **variables)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_WITHIN_S)


def _processes_with(mark: str) -> set[int]:
    """Ids of living processes that have inherited the mark, wherever they hang in the tree."""
    wanted = f"{_MARK}={mark}".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                found.add(int(path.name))
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found


def _wait_until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


@contextmanager
def _started_demo(mark: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A long demo in a process group of its own, writing to folder/output; killed if the test fails."""
    command, environment = _python(
        ["-m", "gather_core", *_SMALL, "--epochs", "500"], TMPDIR=str(folder), **{_MARK: mark}
    )
    with (folder / "output").open("wb") as output:
        demo = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield demo
    finally:
        for pid in _processes_with(mark):
            os.kill(pid, signal.SIGKILL)
        demo.wait()


def test_the_corpus_is_large_and_the_same_in_every_process() -> None:
    program = (
        "from gather_bench.demo.corpus import collect_pairs, split; import hashlib;"
        "train, held_out = split(collect_pairs());"
        "print(len(train), len(held_out), len({pair.passage for pair in train + held_out}),"
        "hashlib.sha256(repr((train, held_out)).encode()).hexdigest())"
    )
    first, second = (_run(["-c", program], PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first.stderr == "", "importing the standard library's modules is quiet"
    assert first.stdout == second.stdout
    num_train, num_held_out, num_passages = map(int, first.stdout.split()[:3])
    assert num_held_out == 1000
    assert num_train + num_held_out == num_passages > 4000


@pytest.mark.parametrize(
    ("doc", "passage"),
    [
        ("product(*iterables, repeat=1) --> product object\n\nCartesian product.", "Cartesian product."),
        ("product(a) -> x\nproduct(b, f(c)=()) -> y\n\nOf two numbers.", "Of two numbers."),
        ("P.product(value) -- multiply by value", "multiply by value"),
        ("product(value): multiply", "multiply"),
        ("Multiplies; see product(a).", "Multiplies; see product(a)."),
        ("production (as in a factory) of things", "production (as in a factory) of things"),
    ],
)
def test_a_passage_does_not_start_with_the_signature(doc: str, passage: str) -> None:
    from gather_bench.demo.corpus import without_signatures

    assert without_signatures(doc, "product") == passage


def test_a_small_demo_learns_and_proves_that_workers_and_one_process_agree() -> None:
    demo = _run(["-m", "gather_core", *_SMALL])
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "2 workers and 1 process agree on loss and gradient" in demo.stdout
    assert "epoch 1/1" in demo.stdout
    assert "torch.distributed.all_gather_object" in demo.stdout
    assert "Gatherer over " in demo.stdout
    before, after = (float(line.split("│")[2].strip(" %")) for line in demo.stdout.splitlines() if "recall@10" in line)
    assert before < 3
    assert after > 30


def test_it_says_in_one_line_which_transport_auto_has_chosen_and_why() -> None:
    demo = _run(["-m", "gather_core", *_SMALL], COLUMNS="60")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    (line,) = (line for line in demo.stdout.splitlines() if line.startswith("rank 0 of 2"))
    if ShmTransport.unavailable(None) is None:
        assert "transport shm (auto: shm, as all 2 ranks are on one host)" in line
    else:
        assert "transport gloo (auto: gloo, the first that all 2 ranks can use; shm: " in line
    assert line.endswith("slots of 16384 bytes")


def test_an_error_of_all_workers_is_told_once_and_without_a_traceback() -> None:
    demo = _run(["-m", "gather_core", *_SMALL, "--codec", "msgpakc"])
    assert demo.returncode == 1
    assert "SetupError: ranks 0-1 could not set up" in demo.stderr
    assert "Traceback" not in demo.stderr


@needs_proc
@pytest.mark.parametrize(
    ("number", "to_group", "when"),
    [
        (signal.SIGINT, True, "epoch 1/"),
        (signal.SIGINT, False, "starting"),
        (signal.SIGTERM, False, "starting"),
    ],
)
def test_a_signal_ends_the_demo_at_once_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, to_group: bool, when: str
) -> None:
    mark = uuid.uuid4().hex
    output = tmp_path / "output"
    with _started_demo(mark, tmp_path) as demo:
        _wait_until(lambda: when in output.read_text(), _WITHIN_S, f"{when!r} is printed")
        _wait_until(lambda: len(_processes_with(mark)) == 3, _WITHIN_S, "both workers run")
        (os.killpg if to_group else os.kill)(demo.pid, number)
        assert demo.wait(_ENDS_WITHIN_S) == 128 + number
        _wait_until(lambda: not _processes_with(mark), _ENDS_WITHIN_S, "all processes have ended")
    assert "Traceback" not in output.read_text()
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor_")}  # torch's own cache
    assert left == {"output"}, "temporary files were left"
