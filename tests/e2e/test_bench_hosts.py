"""The command that measures transports on several hosts, and how its ranks start and fail."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gather_bench.host_ranks import RankFailedOnHostError, run_host_ranks
from gather_bench.hosts import FITTING, GLOO, HIERARCHICAL, TORCH, Row, measure
from gather_bench.network_hosts import NoHostsError
from gather_transports.shm import ShmTransport

_WITHIN_S = 60.0
_ARRAY_NBYTES = 16 << 20


@contextmanager
def _hosts() -> Iterator[None]:
    """Skips the test where they are not allowed."""
    try:
        yield
    except NoHostsError as exc:
        pytest.skip(f"no hosts of our own: {exc}")


def test_a_row_says_what_every_way_takes_and_whether_the_floor_is_met() -> None:
    seconds = {HIERARCHICAL: 0.001, GLOO: 0.002, TORCH: 0.0081}
    sent = {HIERARCHICAL: 1400.0, GLOO: 3600.0, TORCH: 5500.0}
    lines = [line.split() for line in str(Row("dict", seconds, sent, 8.0)).splitlines()]
    assert lines == [
        ["dict"],
        ["shm+gloo", "1000", "us", "1,400", "bytes", "8.10", "x,", "at", "least", "8", "met"],
        ["gloo", "2000", "us", "3,600", "bytes", "4.05", "x"],
        ["all_gather_object", "8100", "us", "5,500", "bytes", "1.00", "x"],
    ]
    assert "x, at least 8.2 MISSED" in str(Row("dict", seconds, sent, 8.2))
    assert "at least" not in str(Row("dict", seconds, sent, 0))


def test_it_measures_every_way_on_two_hosts_and_counts_what_leaves_them() -> None:
    if reason := ShmTransport.unavailable(None):
        pytest.skip(reason)
    with _hosts():
        metrics, step, array = measure(2, 2, rounds=1)
    assert list(step.seconds) == [HIERARCHICAL, FITTING, GLOO, TORCH]
    for row in (metrics, array):
        assert list(row.seconds) == [HIERARCHICAL, GLOO, TORCH]
    for row in (metrics, step, array):
        assert list(row.sent_nbytes) == list(row.seconds)
        assert all(seconds > 0 for seconds in row.seconds.values())
        assert 0 < row.sent_nbytes[HIERARCHICAL] < row.sent_nbytes[GLOO]
    assert 2 * _ARRAY_NBYTES < array.sent_nbytes[HIERARCHICAL] < 2.3 * _ARRAY_NBYTES
    assert 4 * _ARRAY_NBYTES < array.sent_nbytes[GLOO] < 4.6 * _ARRAY_NBYTES
    assert (metrics.floor, step.floor, array.floor) == (8, 5, 0)


def test_a_rank_that_fails_is_told_with_what_it_has_written_and_ends_the_others() -> None:
    with _hosts(), pytest.raises(RankFailedOnHostError, match=r"(?s)rank [01] ended with exit status 1.*ValueError"):
        run_host_ranks([0, 1], "math:sqrt", -1)


def test_the_command_says_why_there_can_be_no_hosts() -> None:
    roots = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "gather_bench.hosts", "--rounds", "1"]
    environment = os.environ | {"PATH": "", "PYTHONPATH": roots}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_WITHIN_S)
    assert done.returncode == 1
    assert done.stdout.startswith("2 hosts x 2 ranks; per call")
    assert done.stderr == "there can be no hosts: there is no ip or unshare or nsenter here\n"
