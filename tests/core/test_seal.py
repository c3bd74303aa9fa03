"""Keys: what is believed is what somebody with the same key wrote, for this place, in this run."""

import os
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from environment import variables
from gather_core import (
    DesyncError,
    Gatherer,
    GatherSettings,
    ProtocolError,
    RemoteEncodeError,
    SettingsError,
    SetupError,
    SlotOverflowError,
)
from gather_core.keys import load_key
from gather_core.seal import SEAL_NBYTES, Seal
from gather_transports.threads import ThreadGroup, ThreadsTransport
from thread_gatherers import FixedSlots, caught, on_gatherers

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
TRANSPORTS = {"elastic": ThreadsTransport, "fixed": FixedSlots}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("length", [0, 300, 50_000])
def test_with_one_key_everything_works(transport: str, length: int) -> None:
    def body(gatherer: Gatherer) -> object:
        rank = gatherer.rank
        own = np.full(length, rank)

        def same(arrays: Sequence[Any], ranks: Sequence[int]) -> bool:
            return all(np.array_equal(a, np.full(length, r)) for a, r in zip(arrays, ranks, strict=True))

        gatherer.barrier()
        return [
            same(gatherer.all_gather(own), range(3)),
            same(gatherer.all_gather(own, lazy=True), range(3)),
            same(gatherer.gather(own, dst=1, confirm=True) or [], range(3) if rank == 1 else ()),
            same([gatherer.broadcast(own, src=2)], [2]),
            same(gatherer.all_to_all([own + r for r in range(3)]), [r + rank for r in range(3)]),
            same([gatherer.scatter([own] * 3, src=1)], [1]),
            sorted(r for r, _ in gatherer.iter_gather([own] * 5, budget_nbytes=10_000)),
            gatherer.reduce({"x": rank}),
        ]

    outcomes = on_gatherers(3, body, TRANSPORTS[transport], slot_nbytes=2048, key=KEY)
    streamed = [[rank for rank in range(3) for _ in range(5)], [], []]
    assert outcomes == [[True] * 6 + [streamed[rank], {"x": 3}] for rank in range(3)]


def test_errors_reach_every_rank_sealed() -> None:
    def body(gatherer: Gatherer) -> object:
        error = caught(lambda: gatherer.all_gather((lambda: None) if gatherer.rank else 0))
        assert isinstance(error, RemoteEncodeError)
        return list(error.failures), gatherer.all_gather(1)

    assert on_gatherers(2, body, key=KEY) == [([1], [1, 1])] * 2


def test_another_key_is_noticed_before_anything_is_decoded() -> None:
    class Marked:
        def __reduce__(self) -> Any:
            return (decoded.append, (1,))

    decoded: list[int] = []

    def run_rank(member: Any) -> object:
        key = OTHER if member.rank == 1 else KEY
        with Gatherer(transport="threads", group=member, timeout_s=5, key=key) as gatherer:
            return caught(lambda: gatherer.all_gather(Marked()))

    outcomes = ThreadGroup(2).run(run_rank)
    assert all(isinstance(outcome, ProtocolError) and "the seal is wrong" in str(outcome) for outcome in outcomes)
    assert "slot of rank 1" in str(outcomes[0])
    assert decoded == []


def test_a_rank_without_a_key_cannot_join() -> None:
    def run_rank(member: Any) -> object:
        return Gatherer(transport="threads", group=member, timeout_s=5, key=KEY if member.rank else None)

    outcomes = ThreadGroup(2).run(run_rank)
    assert all(isinstance(outcome, SetupError) and "key" in str(outcome) for outcome in outcomes), outcomes


class Attacked(FixedSlots):
    """Where what arrives of rank 1 is changed on its way to others."""

    attack: Callable[[bytes, bytearray], bytes]
    """From the slot of the operation before, and this one."""
    earlier: bytes = b""

    def all_gather_slots(self, nbytes: int, *, timeout_s: float) -> Sequence[memoryview]:
        slots = [bytes(slot) for slot in super().all_gather_slots(nbytes, timeout_s=timeout_s)]
        slots[1], self.earlier = self.attack(self.earlier, bytearray(slots[1])), slots[1]
        return [memoryview(slot) for slot in slots]


def with_changed_checksums(slot: bytearray, change: Callable[[bytearray], None]) -> bytes:
    """As somebody does it who knows everything but the key."""
    from xxhash import xxh3_64_intdigest

    from gather_core.slot import pack_header, read_header

    header = read_header(memoryview(bytes(slot)))
    change(slot)
    payload = slot[64 : 64 + header.total_nbytes - SEAL_NBYTES]
    head = pack_header(
        header.total_nbytes, header.rank, header.num_frames, xxh3_64_intdigest(payload), bytes(slot[32:64])
    )
    return head + bytes(slot[64:])


def change_payload(slot: bytearray) -> None:
    slot[64 + 64 + 5] ^= 1


def change_kind(slot: bytearray) -> None:
    slot[37] = 2


def strip_flag(slot: bytearray) -> None:
    slot[38] = 0


ATTACKS: dict[str, Callable[[bytes, bytearray], bytes]] = {
    "payload": lambda earlier, slot: with_changed_checksums(slot, change_payload),
    "an error in place of data": lambda earlier, slot: with_changed_checksums(slot, change_kind),
    "no seal": lambda earlier, slot: with_changed_checksums(slot, strip_flag),
    "the seal": lambda earlier, slot: bytes(slot[:-SEAL_NBYTES]) + bytes(SEAL_NBYTES),
    "replay": lambda earlier, slot: earlier or bytes(slot),
    "splice": lambda earlier, slot: bytes(slot[:64]) + (earlier or bytes(slot))[64:],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_was_changed_replayed_or_spliced_is_refused(attack: str) -> None:
    def attacked() -> Attacked:
        transport = Attacked()
        transport.attack = ATTACKS[attack]
        return transport

    def run(gatherer: Gatherer) -> object:
        try:
            first: object = gatherer.all_gather({"number": 0})
            second: object = gatherer.all_gather({"number": 1})
        except (ProtocolError, DesyncError) as exc:
            return type(exc).__name__
        return first, second

    outcomes = on_gatherers(2, run, attacked, slot_nbytes=1024, key=KEY)
    assert set(outcomes) <= {"ProtocolError", "DesyncError"}, outcomes


def test_a_payload_of_round_2_that_was_changed_is_refused() -> None:
    def changed(views: Sequence[memoryview]) -> Sequence[memoryview]:
        of_1 = bytearray(views[1])
        if of_1:
            of_1[2000] = 255
        return [views[0], memoryview(of_1)]

    class Changing(FixedSlots):
        def all_gather_exact(self, *args: Any, **keywords: Any) -> Sequence[memoryview]:
            return changed(super().all_gather_exact(*args, **keywords))

        def all_to_all_exact(self, *args: Any, **keywords: Any) -> Sequence[memoryview]:
            return changed(super().all_to_all_exact(*args, **keywords))

    operations: list[Callable[[Gatherer], object]] = [
        lambda g: g.all_gather(bytes(5000)),
        lambda g: (g.gather(bytes(5000), dst=0), g.all_gather(0)),
        lambda g: g.all_to_all([bytes(5000)] * 2),
    ]
    for operation in operations:

        def body(gatherer: Gatherer, operation: Callable[[Gatherer], object] = operation) -> object:
            return str(caught(operation, gatherer))

        outcomes = on_gatherers(2, body, Changing, slot_nbytes=1024, key=KEY, payload_checksum=False)
        assert any("payload of rank 1: the seal is wrong" in str(text) for text in outcomes), outcomes


@pytest.mark.parametrize("operation", ["all_gather", "all_to_all"])
def test_what_is_checked_is_what_is_decoded_also_where_a_peer_shares_the_memory_of_round_2(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shared(FixedSlots):
        def all_gather_exact(self, *args: Any, **keywords: Any) -> Sequence[memoryview]:
            return shared(super().all_gather_exact(*args, **keywords))

        def all_to_all_exact(self, *args: Any, **keywords: Any) -> Sequence[memoryview]:
            return shared(super().all_to_all_exact(*args, **keywords))

    def shared(views: Sequence[memoryview]) -> Sequence[memoryview]:
        of_this_rank.memory = [bytearray(view) for view in views]
        return [memoryview(memory).toreadonly() for memory in of_this_rank.memory]

    def change_behind(self: Seal, header: bytes, payload: memoryview, context: bytes = b"") -> memoryview:
        sealed = bytes(payload)
        opened = open_seal(self, header, payload, context)
        for memory in getattr(of_this_rank, "memory", []):
            if memory == sealed:
                memory[:] = bytes(len(memory))
        return opened

    of_this_rank = threading.local()
    open_seal = Seal.open
    monkeypatch.setattr(Seal, "open", change_behind)

    def body(gatherer: Gatherer) -> object:
        obj = b"x" * 5000
        return gatherer.all_gather(obj) if operation == "all_gather" else gatherer.all_to_all([obj] * 2)

    assert on_gatherers(2, body, Shared, slot_nbytes=1024, key=KEY) == [[b"x" * 5000] * 2] * 2


def test_overflow_counts_the_seal() -> None:
    def body(gatherer: Gatherer) -> object:
        return type(caught(lambda: gatherer.all_gather(bytes(940))))

    assert on_gatherers(2, body, slot_nbytes=1024, overflow="error", key=KEY) == [SlotOverflowError] * 2


def test_a_seal_fits_its_place_only() -> None:
    seal, payload = Seal(KEY), memoryview(b"payload")
    sealed = memoryview(bytes(payload) + seal.block(b"header", [payload], b"context"))
    assert bytes(seal.open(b"header", sealed, b"context")) == b"payload"
    for header, context, by in [(b"headeR", b"context", KEY), (b"header", b"", KEY), (b"header", b"context", OTHER)]:
        with pytest.raises(ProtocolError, match="the seal is wrong"):
            Seal(by).open(header, sealed, context)
    for end in range(len(sealed)):
        with pytest.raises(ProtocolError):
            seal.open(b"header", sealed[:end], b"context")


def test_a_key_may_be_longer_than_blake2b_takes() -> None:
    long = bytes(200)
    block = Seal(long).block(b"", [])
    assert Seal(bytes(199)).block(b"", []) != block == Seal(long).block(b"", [])


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    file.chmod(0o600)
    return file


def test_a_key_comes_from_a_private_file_or_a_variable(key_file: Path) -> None:
    assert load_key(f"file:{key_file}") == KEY
    with variables(MY_SECRET="x" * 40):
        assert load_key("env:MY_SECRET") == b"x" * 40
    assert load_key(KEY) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_file_that_others_can_read_or_write_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(SettingsError, match=f"mode {mode:04o}.*chmod 600"):
        load_key(f"file:{key_file}")


def test_what_is_no_key_is_refused_without_repeating_it(tmp_path: Path, key_file: Path) -> None:
    key_file.write_bytes(b"short secret")
    texts = [
        str(caught(load_key, key))
        for key in ("my-own-secret-in-the-wrong-place", b"short secret", f"file:{key_file}", "env:NOT_THERE")
    ]
    texts += [str(caught(load_key, f"file:{tmp_path}")), str(caught(load_key, f"file:{tmp_path / 'none'}"))]
    assert all("short secret" not in text for text in texts)
    assert "my-own" not in texts[0]
    assert "12 bytes" in texts[1]
    assert texts[3] == "the key is to be in the variable NOT_THERE, which is not set"
    assert "No such file" in texts[-1]


@pytest.mark.parametrize("problem", ["mode", "missing"])
def test_a_bad_key_file_of_one_rank_is_an_error_on_every_rank(key_file: Path, problem: str) -> None:
    place = f"file:{key_file}"
    bad = f"file:{key_file}-not-there"

    def run_rank(member: Any) -> object:
        return Gatherer(transport="threads", group=member, timeout_s=5, key=bad if member.rank else place)

    outcomes = ThreadGroup(2).run(run_rank)
    assert all(isinstance(each, SetupError) and list(each.failures) == [1] for each in outcomes), outcomes


def test_a_key_is_in_no_text_and_no_pickle() -> None:
    settings = GatherSettings(key=b"a very secret key of this job")
    assert "secret" not in repr(settings)
    assert "secret" not in str(caught(settings.to_toml))
    assert "env:NAME" in GatherSettings(key="env:NAME").to_toml()
    with Gatherer(key=b"a very secret key of this job") as gatherer:
        assert "secret" not in gatherer.describe() + repr(vars(gatherer)) + repr(vars(gatherer._connection))
    with pytest.raises(TypeError):
        pickle.dumps(Seal(KEY))


def test_settings_name_the_place_of_a_key(key_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(f'[gather]\nkey = "file:{key_file}"\n')
    with Gatherer.from_settings(str(file)) as gatherer:
        assert gatherer.all_gather(1) == [1]
        assert gatherer._connection.terms.seal is not None
    with variables(GATHER_KEY=f"file:{key_file}"), Gatherer.from_settings() as gatherer:
        assert gatherer._connection.terms.seal is not None


def test_the_file_must_be_of_this_user(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(key_file, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SettingsError, match="another user"):
        load_key(f"file:{key_file}")
