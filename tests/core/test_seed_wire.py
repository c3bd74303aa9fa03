"""The seed's wire: jobs whose ranks run its algorithm or ours, and failures that reach every rank."""

import copyreg
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from environment import variables
from gather_bench.peers import KeptBuffer, seed_all_gather_list
from gather_core import (
    DecodeError,
    ProtocolError,
    RemoteEncodeError,
    SettingsError,
    TransportError,
    UntrustedCodecError,
)
from gather_core.compat import all_gather_list, seed_wire
from rank_pool import RankPool


def forget_earlier_calls() -> None:
    """As in a new process: bodies share theirs with those of other tests."""
    seed_wire._longest_nbytes = 0


def outcome_of(data: object, max_size: int = 1000) -> Any:
    """What `all_gather_list` returns, or raises."""
    try:
        return all_gather_list(data, max_size=max_size)
    except Exception as exc:
        return exc


@pytest.mark.parametrize("ours", [{0}, {1}, {0, 2}, {1, 2}])
def test_ranks_that_run_the_seeds_algorithm_and_ranks_that_run_ours_share_a_job(pool: RankPool, ours: set[int]) -> None:
    def body(rank: int, world_size: int, ours: set[int]) -> list[tuple[str, int]]:
        import torch.distributed as dist

        forget_earlier_calls()
        kept = KeptBuffer()
        pair = dist.new_group([world_size - 2, world_size - 1])
        wrong = []

        def gather(group: Any, members: list[int], max_size: int) -> None:
            def row(of: int) -> dict[str, Any]:
                return {"of": of, "nothing": None, "blob": bytes([of]) * (max_size // 2)}

            if rank in ours:
                found = all_gather_list(row(rank), group, max_size)
            else:
                found = seed_all_gather_list(row(rank), max_size, group, kept)
            if found != [row(of) for of in members]:
                wrong.append((f"rank {rank} of {members}", max_size))

        for max_size in [200, 5000, 1000, 200, 16384, 16383, 40_000, 300]:
            gather(None, list(range(world_size)), max_size)
            if rank >= world_size - 2:
                gather(pair, [world_size - 2, world_size - 1], max_size)
                gather(pair, [world_size - 2, world_size - 1], max_size - 50)
        return wrong

    world_size = max(2, max(ours) + 1)
    assert pool.values(world_size, body, ours) == [[]] * world_size


def test_an_object_that_does_not_pickle_or_fit_fails_every_rank_and_none_is_left_out(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> dict[str, Any]:
        forget_earlier_calls()
        outcomes: dict[str, Any] = {
            "lambda on 1": outcome_of((lambda: None) if rank == 1 else rank),
            "too large on 2": outcome_of(bytes(5000) if rank == 2 else rank),
            "0 and 2": outcome_of({0: lambda: None, 1: "fine", 2: bytes(5000)}[rank]),
        }
        with variables(GATHER_FORBID_CODE="1" if rank == 0 else "0"):
            outcomes["no code on 0"] = outcome_of(rank)
        outcomes["largest that fits"] = outcome_of(bytes(1000 - 4 - len(pickle.dumps(bytes(300))) + 300))
        outcomes["healthy"] = outcome_of([rank, None])
        return {name: (type(o), str(o), getattr(o, "failures", {}).keys()) for name, o in outcomes.items()}

    for rank, outcomes in enumerate(pool.values(3, body)):
        at_fault = {"lambda on 1": {1}, "too large on 2": {2}, "0 and 2": {0, 2}, "no code on 0": {0}}
        for name, ranks in at_fault.items():
            kind, text, named = outcomes[name]
            if rank not in ranks:
                assert (kind, named) == (RemoteEncodeError, ranks), (rank, name)
            elif "code" in name:
                assert kind is UntrustedCodecError
                assert "GATHER_WIRE=native" in text
            elif rank == 2:
                assert kind is SettingsError
                assert "max_size=1000" in text
                assert str(4 + len(pickle.dumps(bytes(5000)))) in text
            else:
                assert kind in (pickle.PicklingError, AttributeError)
        assert outcomes["largest that fits"][0] is list
        assert outcomes["healthy"][1] == str([[of, None] for of in range(3)])


def test_a_size_error_is_a_value_error_as_in_the_originals() -> None:
    with pytest.raises(ValueError, match="max_size=100 is too small: the object takes 1"):
        all_gather_list(bytes(100), max_size=100)


def test_bytes_that_no_rank_writes_are_told_from_objects(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[tuple[type, str]]:
        import torch.distributed as dist

        forget_earlier_calls()
        good = pickle.dumps("good")

        def sized(payload: bytes) -> bytes:
            return len(payload).to_bytes(4, "big") + payload

        forged = [
            (100, (97).to_bytes(4, "big") + good),  # longer than its part
            (100, sized(b"garbage.")),
            (100, sized(b"cno_such_module\nname\n.")),
            (100, sized(good) + b"more"),
            (100, sized(good[:-1])),
            (0, sized(good)),  # where rank 0 writes
            (200, sized(good)),  # behind all parts
            (100, sized(good)),
        ]
        outcomes = []
        for start, content in forged:
            if rank == 1:
                buffer = torch.zeros(300, dtype=torch.uint8)
                buffer[start : start + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                dist.all_reduce(buffer)
            else:
                seed_wire._longest_nbytes = 300
                outcome = outcome_of("mine", max_size=100)
                outcomes.append((type(outcome), str(outcome)))
        return outcomes

    outcomes, _ = pool.values(2, body)
    expected = [ProtocolError, DecodeError, DecodeError, ProtocolError, ProtocolError, ProtocolError, ProtocolError]
    assert [kind for kind, _ in outcomes] == [*expected, list]
    for _, text in outcomes[:5]:
        assert "rank 1" in text
    assert "claims 97 bytes" in outcomes[0][1]
    assert "no_such_module" in outcomes[2][1]
    assert "into the part of rank 0" in outcomes[5][1]
    assert "beyond 2 parts" in outcomes[6][1]
    assert outcomes[7][1] == str(["mine", "good"])


def test_a_rank_that_does_not_come_is_an_error_after_the_groups_own_timeout(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        from datetime import timedelta

        import torch.distributed as dist

        forget_earlier_calls()
        group = dist.new_group([0, 1], timeout=timedelta(seconds=0.5))
        if rank == 0:  # rank 1 is like an original whose object does not fit
            all_gather_list("alone", group)

    error = pool.run(2, body)[0].error
    assert isinstance(error, TransportError)
    assert "32768 bytes" in str(error)
    assert isinstance(error.__cause__, RuntimeError)


def test_nothing_of_an_earlier_longer_call_is_left_in_a_later_one(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        forget_earlier_calls()
        long = all_gather_list(bytes([7]) * 900, max_size=1000)
        return [long == [bytes([7]) * 900] * 2, *(all_gather_list(rank, max_size=n) for n in (500, 1000, 20))]

    assert pool.values(2, body) == [[True, [0, 1], [0, 1], [0, 1]]] * 2


def test_a_process_alone_gets_a_list_of_one_copy() -> None:
    row = {"a": [1, None]}
    (copy,) = all_gather_list(row)
    assert copy == row
    assert copy["a"] is not row["a"]
    with pytest.raises((pickle.PicklingError, AttributeError)):
        all_gather_list(lambda: None)


def test_calls_inside_and_outside_of_inference_mode_follow_each_other() -> None:
    for max_size in (2000, 3000, 3000):
        with torch.inference_mode():
            (tensor,) = all_gather_list(torch.arange(3), max_size=max_size)
        assert all_gather_list(tensor.tolist(), max_size=max_size) == [[0, 1, 2]]


def test_threads_that_call_at_once_get_their_own_objects() -> None:
    with ThreadPoolExecutor(8) as threads:
        rows = [bytes([i % 256]) * 900 for i in range(400)]
        found = list(threads.map(lambda row: all_gather_list(row, max_size=2000), rows))
    assert found == [[row] for row in rows]


@pytest.mark.parametrize("max_size", [4, 0, -1, 1 << 32, 16.0, "16", None])
def test_a_max_size_out_of_range_is_refused_with_its_value(max_size: Any) -> None:
    with pytest.raises(SettingsError, match=r"max_size must be an int from 5 to 4294967295, in bytes, not"):
        all_gather_list("x", max_size=max_size)


def test_the_bytes_are_those_of_pickle_dumps() -> None:
    row = {"tensor": torch.arange(3), "text": "x" * 300}
    part = seed_wire._encode(row, 16384)
    assert bytes(part) == len(pickle.dumps(row)).to_bytes(4, "big") + pickle.dumps(row)


class Registered:
    """Pickles only through copyreg."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("not without copyreg")


def make_registered() -> Registered:
    return Registered()


def reduce_registered(obj: Registered) -> tuple[Any, ...]:
    return make_registered, ()


def test_where_cuda_is_in_use_other_tensors_and_other_reducers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_wire, "_cuda_is_initialized", lambda: True)
    monkeypatch.setitem(copyreg.dispatch_table, Registered, reduce_registered)
    leaf = torch.ones(2, requires_grad=True)
    row = {"leaf": leaf, "parameter": torch.nn.Parameter(torch.zeros(1)), "int": torch.arange(3), "own": Registered()}
    (copy,) = all_gather_list([row])[0]
    assert torch.equal(copy["leaf"], leaf)
    assert copy["leaf"].requires_grad
    assert type(copy["parameter"]) is torch.nn.Parameter
    assert torch.equal(copy["int"], torch.arange(3))
    assert type(copy["own"]) is Registered


def test_a_copy_to_the_cpu_keeps_type_and_requires_grad() -> None:
    frozen = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
    for tensor in (frozen, torch.ones(2, requires_grad=True) * 2, torch.arange(3)):
        copy = seed_wire._to_cpu(tensor)
        assert type(copy) is type(tensor)
        assert (copy.dtype, copy.requires_grad) == (tensor.dtype, tensor.requires_grad)
        assert torch.equal(copy, tensor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_an_nccl_group_the_buffer_is_on_the_device_and_cuda_tensors_arrive_on_the_cpu(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        import torch.distributed as dist

        forget_earlier_calls()
        ((copy,),) = all_gather_list([torch.arange(3, device="cuda")], dist.new_group([0], backend="nccl"))
        return f"{copy.device} {copy.tolist()}"

    assert pool.values(1, body) == ["cpu [0, 1, 2]"]


@pytest.mark.parametrize(
    ("wire", "hint"), [("nativ", "Did you mean 'native'"), ("SEED", "Did you mean 'seed'"), ("x", "")]
)
def test_an_unknown_wire_is_refused_with_the_nearest_known_one(
    monkeypatch: pytest.MonkeyPatch, wire: str, hint: str
) -> None:
    monkeypatch.setenv("GATHER_WIRE", wire)
    with pytest.raises(SettingsError, match=f"GATHER_WIRE must be one of seed, native, not '{wire}'.*{hint}"):
        all_gather_list("x")


def test_an_empty_wire_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATHER_WIRE", "")
    assert all_gather_list("x") == ["x"]
