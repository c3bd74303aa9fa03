"""Cases 20-31: slots are damaged, large, forged, or forbidden."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from faults.case import EVERY, MAIN, Case
from faults.objects import Marker
from faults.scene import LONG_S, Scene, before_sending, on_receipt, until_it_fails, wrap
from gather_core import Gatherer, Limits
from gather_core.slot import HEADER_NBYTES, pack_header, read_header

_REFUSED = ("ProtocolError", "AbortedError")
_KEY, _OTHER_KEY = b"0123456789abcdef", b"fedcba9876543210"
_FORGED = ("ProtocolError", "DesyncError", "AbortedError")


def _sends(change: Callable[[memoryview], object], **settings: Any) -> Callable[[Scene], object]:
    """The victim's slot is changed before it is sent."""

    def act(scene: Scene) -> None:
        gatherer = scene.ready(_timeout_s(scene), **settings)
        if scene.is_victim:
            before_sending(gatherer, change)
        scene.fault()
        until_it_fails(gatherer)

    return act


def _receives(change: Callable[[list[memoryview]], Sequence[memoryview]]) -> Callable[[Scene], object]:
    """Rank 0 receives something else than was sent."""

    def act(scene: Scene) -> None:
        gatherer = scene.ready(LONG_S)
        if scene.rank == 0:
            on_receipt(gatherer, change)
        scene.fault()
        until_it_fails(gatherer)

    return act


def _flip_a_bit(slot: memoryview) -> None:
    slot[HEADER_NBYTES + 1] ^= 4


def _claim(nbytes: int) -> Callable[[memoryview], object]:
    """A header whose checksum is right, and whose length is not."""

    def change(slot: memoryview) -> None:
        header = read_header(slot)
        slot[:HEADER_NBYTES] = pack_header(
            nbytes, header.rank, header.num_frames, header.payload_checksum, header.agreement
        )

    return change


def _flip_a_bit_of_the_length(slot: memoryview) -> None:
    slot[3] ^= 128


def _permuted(slots: list[memoryview]) -> Sequence[memoryview]:
    return [slots[1], slots[0], *slots[2:]]


def _zero(slot: memoryview) -> None:
    slot[:] = bytes(len(slot))


def _summed(slots: list[memoryview]) -> Sequence[memoryview]:
    """As an all-reduce makes of it where two ranks have written to one slot."""
    nbytes = min(len(slots[0]), len(slots[1]))
    both = bytes((a + b) & 255 for a, b in zip(slots[0][:nbytes], slots[1][:nbytes], strict=True))
    return [slots[0], memoryview(both), *slots[2:]]


def _replayed(**settings: Any) -> Callable[[Scene], object]:
    """The victim sends again what it sent in the operation before."""
    return lambda scene: _replay(scene, scene.ready(**settings))


def _replay(scene: Scene, gatherer: Gatherer) -> None:
    kept: list[bytes] = []

    def change(slot: memoryview) -> None:
        if kept:
            slot[:] = kept[0].ljust(len(slot), b"\0")[: len(slot)]
        else:
            kept.append(bytes(slot))

    if scene.is_victim:
        before_sending(gatherer, change)
    gatherer.all_gather("kept")
    scene.fault()
    until_it_fails(gatherer)


def _of_another_gatherer(scene: Scene) -> None:
    """The victim sends a slot of an earlier Gatherer: right in everything but the run that it belongs to."""
    kept: list[bytes] = []
    earlier = scene.gatherer()
    if scene.is_victim:
        before_sending(earlier, lambda slot: kept.append(bytes(slot)))
    earlier.all_gather("same")
    gatherer = scene.gatherer()
    if scene.is_victim:
        before_sending(gatherer, lambda slot: slot.__setitem__(slice(None), kept[0]))
    scene.fault()
    gatherer.all_gather("same")


def _another_key(scene: Scene) -> None:
    gatherer = scene.gatherer(key=_OTHER_KEY if scene.is_victim else _KEY)
    scene.fault()
    gatherer.all_gather("sealed")


def _around_the_slot(scene: Scene) -> None:
    """Sizes at which all of it fits exactly, or not: 64 bytes of header, 64 of frame table, and a padded frame."""
    gatherer = scene.ready(codec="raw", slot_nbytes=4096)
    scene.fault()
    for nbytes in (0, 1, 4096 - 129, 4096 - 128, 4096 - 127, 4096, 4097):
        mine = bytes([scene.rank]) * nbytes
        gathered = gatherer.all_gather(mine if scene.is_victim else b"")
        assert gathered == [b"", bytes([1]) * nbytes, b""], nbytes


def _one_byte_too_many(scene: Scene) -> None:
    gatherer = scene.ready(codec="raw", slot_nbytes=4096, overflow="error")
    scene.fault()
    gatherer.all_gather(bytes(4096 - 127 if scene.is_victim else 4096 - 128))


def _one_large(scene: Scene) -> None:
    gatherer = scene.ready(codec="raw")
    scene.fault()
    for nbytes in (64 << 20, 10):
        gathered = gatherer.all_gather(bytes(nbytes if scene.is_victim else 10))
        assert [len(obj) for obj in gathered] == [10, nbytes, 10]


def _no_memory_for_results(scene: Scene) -> None:
    gatherer = scene.ready()
    if scene.is_victim:
        wrap(gatherer.transport, "all_gather_exact", _raise_memory_error)
    scene.fault()
    until_it_fails(gatherer, bytes(8 << 20))


def _no_memory_for_a_slot(scene: Scene) -> None:
    gatherer = scene.ready()
    if scene.is_victim:
        slot = gatherer.transport.slot
        vars(gatherer.transport)["slot"] = lambda nbytes: slot(nbytes) if nbytes < 1 << 20 else _raise_memory_error()
    scene.fault()
    try:
        gatherer.all_gather(bytes(8 << 20))
    finally:
        if scene.is_victim:
            del vars(gatherer.transport)["slot"]


def _raise_memory_error(*args: object, **options: object) -> memoryview:
    raise MemoryError("no memory")


def _above_the_limits(scene: Scene) -> None:
    gatherer = scene.ready(codec="msgpack", limits=Limits(payload_nbytes=8192))
    scene.fault()
    gatherer.all_gather(b"x" * (100_000 if scene.is_victim else 10))


def _code_is_forbidden(scene: Scene) -> None:
    """A rank that forbids code, and one that would bring some."""
    marker = str(scene.folder / "marker")
    scene.fault()
    if scene.is_victim:
        os.environ["GATHER_FORBID_CODE"] = "1"
    try:
        gatherer: Gatherer = scene.gatherer(codec="pickle")
        gatherer.all_gather(Marker(marker))
    finally:
        os.environ.pop("GATHER_FORBID_CODE", None)
        assert not os.path.exists(marker), "code was executed"


def _timeout_s(scene: Scene) -> float:
    return 2.0 if scene.transport == "all_gather_object" else LONG_S


_LIMITS = Limits(payload_nbytes=1 << 30)
_LENGTHS = {"0": 0, "2^31": 1 << 31, "2^63": 1 << 63, "just above the limit": (1 << 30) + 64}

CASES = [
    Case(20, "a flipped bit in a payload", _sends(_flip_a_bit), _REFUSED, transports=EVERY),
    Case(21, "a flipped bit in a length", _sends(_flip_a_bit_of_the_length), _REFUSED, transports=MAIN),
    *(
        Case(21, f"a forged length: {name}", _sends(_claim(nbytes), limits=_LIMITS), _REFUSED, transports=MAIN)
        for name, nbytes in _LENGTHS.items()
    ),
    Case(22, "slots in another order on one rank", _receives(_permuted), _FORGED, transports=MAIN, named=(0,)),
    Case(23, "a slot of the operation before", _replayed(), _FORGED, transports=MAIN),
    Case(25, "a slot of zeros", _sends(_zero), _FORGED, transports=MAIN),
    Case(25, "two slots summed in one", _receives(_summed), _FORGED, transports=MAIN),
    Case(26, "sizes around the slot", _around_the_slot, (), "goes on", transports=MAIN),
    Case(26, "a byte too many, as an error", _one_byte_too_many, ("SlotOverflowError",), "goes on", transports=MAIN),
    Case(27, "64 MiB on one rank, 10 B on others", _one_large, (), "goes on", waits_s=10.0, transports=MAIN),
    Case(
        28,
        "no memory for results",
        _no_memory_for_results,
        ("AbortedError",),
        victim=("MemoryError",),
        transports=("gloo",),
    ),
    Case(28, "no memory for a slot", _no_memory_for_a_slot, ("RemoteEncodeError",), "goes on", transports=("shm",)),
    Case(29, "more than the limits", _above_the_limits, ("RemoteEncodeError",), "goes on", transports=MAIN),
    Case(30, "code where one rank forbids it", _code_is_forbidden, ("SetupError",), "none", transports=MAIN),
    Case(31, "a slot of an earlier Gatherer", _of_another_gatherer, _FORGED, transports=MAIN),
    Case(31, "a replayed slot, with a key", _replayed(key=_KEY), _FORGED, transports=MAIN),
    Case(31, "another key", _another_key, _REFUSED, transports=MAIN),
]
