"""Calls on threads of their own: bounded for their caller, and gone before the process is."""

import signal
import threading
import time

import pytest

from fresh_python import run_python
from gather_core.background import Background, run_bounded


def test_a_call_that_returns_in_time_gives_its_result_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    assert run_bounded(lambda: 5, 10) == 5
    assert set(threading.enumerate()) == before


def test_what_a_call_raises_is_raised_to_its_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        run_bounded(lambda: 1 // 0, 10)


def test_a_call_that_blocks_is_left_at_the_deadline() -> None:
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        run_bounded(release.wait, 0.1)
    assert time.monotonic() - started < 5
    release.set()


def test_ctrl_c_interrupts_the_caller_of_a_call_that_blocks() -> None:
    release = threading.Event()
    caller = threading.main_thread().ident
    assert caller is not None

    def interrupt_and_block() -> None:
        signal.pthread_kill(caller, signal.SIGINT)
        release.wait(30)

    with pytest.raises(KeyboardInterrupt):
        run_bounded(interrupt_and_block, 30)
    release.set()


def test_a_call_that_was_told_to_stop_ends() -> None:
    call = Background(lambda stop: stop.wait(30)).start()
    assert not call.wait(0)
    call.stop()
    assert call.wait(10)
    assert call.result()


def test_a_process_that_ends_stops_and_joins_what_still_runs() -> None:
    script = (
        "from gather_core.background import Background\n"
        "Background(lambda stop: stop.wait(30) and print('stopped', flush=True)).start()\n"
    )
    assert run_python(script) == "stopped"
