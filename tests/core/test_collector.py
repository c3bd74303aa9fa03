"""Holding off the garbage collector: whatever happens meanwhile, what the process had set is there afterwards."""

import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gather_core.codec import DecodeOptions
from gather_core.codec_border import CodecBorder
from gather_core.collector import without_collection
from gather_core.function_codec import FunctionCodec

TIMEOUT_S = 30


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def collections_of(num_containers: int) -> int:
    """How often the collector has run while so many containers were made."""
    before = gc.get_stats()[0]["collections"]
    kept = [[] for _ in range(num_containers)]  # type: ignore[var-annotated]
    return gc.get_stats()[0]["collections"] - before if kept else 0


def test_it_does_not_run_meanwhile_and_does_afterwards() -> None:
    assert without_collection(lambda: collections_of(100_000)) == 0
    assert collections_of(100_000) > 0


def test_what_was_set_is_restored_after_a_result_an_error_and_from_within(thresholds: tuple[int, int, int]) -> None:
    assert without_collection(lambda: without_collection(lambda: "built")) == "built"
    assert gc.get_threshold() == thresholds
    with pytest.raises(KeyboardInterrupt):
        without_collection(interrupt)
    assert gc.get_threshold() == thresholds


def interrupt() -> None:
    raise KeyboardInterrupt


def test_it_is_held_off_until_the_last_of_several_threads_ends(thresholds: tuple[int, int, int]) -> None:
    inside, first_ended = threading.Barrier(2, timeout=TIMEOUT_S), threading.Event()

    def first() -> None:
        without_collection(inside.wait)
        first_ended.set()

    def last() -> int:
        inside.wait()
        assert first_ended.wait(TIMEOUT_S)
        return collections_of(100_000)

    with ThreadPoolExecutor(2) as threads:
        ends = threads.submit(first)
        assert threads.submit(without_collection, last).result(TIMEOUT_S) == 0
        ends.result(TIMEOUT_S)
    assert gc.get_threshold() == thresholds


def test_what_others_set_meanwhile_is_kept() -> None:
    without_collection(lambda: gc.set_threshold(123, 4, 5))
    assert gc.get_threshold() == (123, 4, 5)
    without_collection(gc.disable)
    try:
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_child_that_is_forked_meanwhile_collects(thresholds: tuple[int, int, int]) -> None:
    def fork() -> int:
        child = os.fork()
        if child == 0:
            os._exit(0 if gc.get_threshold() == thresholds else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert without_collection(fork) == 0


def test_only_large_objects_are_decoded_so(thresholds: tuple[int, int, int]) -> None:
    codec = FunctionCodec("thresholds", lambda obj: b"x" * obj, lambda data: gc.get_threshold())
    border = CodecBorder(codec, DecodeOptions())
    small, large = (border.decode(0, [memoryview(border.encode(nbytes)[0])]) for nbytes in (100, 100_000))
    assert small == thresholds
    assert large != thresholds
