"""How often the bytes of a large object are copied: not by encode, once into the slot, once out of it."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gather_codecs.messagepack import MessagePackCodec
from gather_codecs.pickle5 import PickleCodec
from gather_codecs.raw import RawCodec
from gather_codecs.zstandard_frames import ZstdCodec
from gather_core import Gatherer
from gather_core.blocks import drop_free_blocks
from gather_core.codec import Codec, own
from gather_core.memory import ALIGNMENT
from gather_transports.single import SingleTransport

NBYTES = 4 << 20
SMALL = NBYTES // 16
"""What a call may need besides copies of the object's bytes."""
CODECS = [PickleCodec(), MessagePackCodec(), RawCodec(), ZstdCodec(PickleCodec())]
OBJECTS: dict[str, Callable[[], Any]] = {
    "array": lambda: np.random.default_rng(0).integers(0, 1 << 62, NBYTES // 8),
    "array in Fortran order": lambda: np.random.default_rng(0).random((512, NBYTES // 8 // 512)).T,
    "tensor": lambda: torch.rand(NBYTES // 4, generator=torch.Generator().manual_seed(0)),
    "bfloat16 tensor": lambda: torch.rand(NBYTES // 2, generator=torch.Generator().manual_seed(0)).bfloat16(),
}

every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: str(codec.spec))
every_object = pytest.mark.parametrize("obj", OBJECTS.values(), ids=OBJECTS)


class FixedSlot(SingleTransport):
    """Carries no more than a slot in the first round."""

    capabilities = replace(SingleTransport.capabilities, elastic_slots=False)


class Allocated:
    """The most bytes that were allocated at one time, by Python and numpy, above what there was before."""

    nbytes = 0


@contextmanager
def counted() -> Iterator[Allocated]:
    allocated = Allocated()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield allocated
        allocated.nbytes = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def opened(codec: Codec) -> Gatherer:
    return Gatherer(codec, SingleTransport(), slot_nbytes=NBYTES + (1 << 20))


def span(obj: Any) -> tuple[int, int]:
    """Where the elements of an array, tensor or view begin, and where they end."""
    if isinstance(obj, torch.Tensor):
        return obj.data_ptr(), obj.data_ptr() + obj.nbytes
    start = np.frombuffer(obj, np.uint8).ctypes.data if isinstance(obj, memoryview) else obj.ctypes.data
    return start, start + obj.nbytes


def slot_of(gatherer: Gatherer) -> memoryview:
    return gatherer.transport.slot(gatherer.slot_nbytes)


@every_codec
@every_object
def test_encode_makes_no_copy_of_what_is_contiguous(codec: Codec, obj: Callable[[], Any]) -> None:
    sent = obj()
    codec.encode(sent)  # what is imported and cached on first use
    with counted() as allocated:
        frames = codec.encode(sent)
    large = max([memoryview(frame) for frame in frames], key=len)
    assert allocated.nbytes < SMALL
    assert span(large) == span(sent)


@every_codec
@every_object
def test_bytes_are_copied_into_the_slot_and_out_of_it_and_nowhere_else(codec: Codec, obj: Callable[[], Any]) -> None:
    sent = obj()
    with opened(codec) as gatherer:
        gatherer.all_gather(sent)
        drop_free_blocks()
        with counted() as allocated:
            received = gatherer.all_gather(sent)[0]
        assert NBYTES <= allocated.nbytes < NBYTES + SMALL
        start, end = span(slot_of(gatherer))
        assert not start < span(received)[1] <= end
        assert not span(sent)[0] < span(received)[1] <= span(sent)[1]


@every_codec
@every_object
def test_a_result_takes_the_memory_of_one_that_was_dropped(codec: Codec, obj: Callable[[], Any]) -> None:
    sent = obj()
    with opened(codec) as gatherer:
        first = gatherer.all_gather(sent)[0]
        memory = span(first)
        del first
        with counted() as allocated:
            second = gatherer.all_gather(sent)[0]
        assert allocated.nbytes < SMALL
        assert span(second) == memory
        third = gatherer.all_gather(sent)[0]
        assert span(third) != memory


@every_codec
@every_object
def test_a_result_is_aligned_and_writable_and_stays_what_it_is(codec: Codec, obj: Callable[[], Any]) -> None:
    sent = obj()
    with opened(codec) as gatherer:
        received = [gatherer.all_gather(sent)[0] for _ in range(3)]
        slot_of(gatherer)[:] = bytes(gatherer.slot_nbytes)
    drop_free_blocks()
    for result in received:
        assert span(result)[0] % ALIGNMENT == 0
        assert bool((result == sent).all())
    received[0][:] = 0  # would raise, were it read-only
    assert bool((received[1] == sent).all())


@every_codec
def test_a_second_round_lands_in_the_memory_that_the_result_keeps(codec: Codec) -> None:
    sent = OBJECTS["array"]()
    with Gatherer(codec, FixedSlot(), slot_nbytes=64 * 1024) as gatherer:
        first = gatherer.all_gather(sent)[0]
        memory = span(first)
        del first
        with counted() as allocated:
            second = gatherer.all_gather(sent)[0]
        assert gatherer.stats.second_rounds == 2
    assert allocated.nbytes < SMALL
    assert span(second) == memory
    assert (second == sent).all()


def test_decompression_writes_into_the_memory_that_the_result_keeps() -> None:
    sent = np.arange(NBYTES // 8) // 64
    codec = ZstdCodec(PickleCodec())
    assert sum(len(frame) for frame in codec.encode(sent)) < NBYTES // 8
    frames = [memoryview(frame).toreadonly() for frame in codec.encode(sent)]
    first: Any = codec.decode(frames)
    memory = span(first)
    del first
    with counted() as allocated:
        second: Any = codec.decode(frames)
    assert allocated.nbytes < SMALL
    assert span(second) == memory
    assert (second == sent).all()


def test_what_is_borrowed_is_copied_and_what_is_given_is_not() -> None:
    given = memoryview(bytearray(NBYTES))
    assert own(given) is given
    copy = own(given.toreadonly())
    given[0] = 7
    assert (copy[0], copy.readonly, len(copy)) == (0, False, NBYTES)
