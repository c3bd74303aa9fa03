"""The confinement that tests of hostile input stand on."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import hostile
from confined import Confined
from gather_core import DecodeError

pytest_plugins = ["confined_fixture"]

_MIB = 1 << 20


def test_a_value_comes_back_and_the_process_stays(confined: Confined) -> None:
    assert confined.call(len, "abc").result() == 3
    pid = confined.call(os.getpid).result()
    assert pid != os.getpid()
    assert confined.call(os.getpid).result() == pid


def test_an_error_comes_back_with_its_cause(confined: Confined) -> None:
    outcome = confined.call(hostile.fail)
    assert isinstance(outcome.error, DecodeError)
    assert str(outcome.error) == "cannot be read"
    assert isinstance(outcome.error.__cause__, EOFError)
    with pytest.raises(DecodeError, match="cannot be read"):
        outcome.result()


@pytest.mark.parametrize("take", [hostile.hog, np.empty, torch.empty])
def test_more_memory_than_allowed_is_an_error_and_less_is_not(confined: Confined, take: Callable[[int], Any]) -> None:
    nbytes_per_item = {hostile.hog: 1, np.empty: 8, torch.empty: 4}[take]
    for _ in range(2):
        failed = confined.call(take, 48 * _MIB // nbytes_per_item, more_nbytes=32 * _MIB)
        assert isinstance(failed.error, MemoryError | RuntimeError), failed
        assert confined.call(take, 16 * _MIB // nbytes_per_item, more_nbytes=32 * _MIB).error is None


def test_what_one_call_gave_back_is_not_there_for_the_next(confined: Confined) -> None:
    assert confined.call(hostile.hog, 100 * _MIB, more_nbytes=128 * _MIB).result() == 100 * _MIB
    assert isinstance(confined.call(hostile.hog, 50 * _MIB, more_nbytes=32 * _MIB).error, MemoryError)


def test_what_is_late_is_killed_and_the_next_call_runs() -> None:
    with Confined(["hostile"]) as confined:
        pid = confined.call(os.getpid).result()
        outcome = confined.call(hostile.hang, within_s=0.2)
        assert outcome.is_late
        with pytest.raises(AssertionError, match="not finished after"):
            outcome.result()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert confined.call(len, "abc").result() == 3


def test_a_process_that_dies_is_an_outcome_and_the_next_call_runs() -> None:
    with Confined(["hostile"]) as confined:
        assert confined.call(hostile.crash).exitcode == -11
        outcome = confined.call(os._exit, 3)
        assert outcome.exitcode == 3
        with pytest.raises(AssertionError, match="died with exit code 3"):
            outcome.result()
        assert confined.call(len, "abc").result() == 3


def test_a_value_that_cannot_be_sent_back_is_an_error(confined: Confined) -> None:
    assert "pickle" in repr(confined.call(hostile.unpicklable).error).lower()


def test_no_process_is_left_when_it_is_closed() -> None:
    with Confined(["hostile"]) as confined:
        pid = confined.call(os.getpid).result()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    confined.close()


def test_a_process_that_cannot_start_says_so() -> None:
    with Confined(["no_such_module"]) as confined, pytest.raises(RuntimeError, match="before it was ready"):
        confined.call(len, "abc")
