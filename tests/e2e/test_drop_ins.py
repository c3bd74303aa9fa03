"""The drop-ins beside torch's own functions, and what happens where one rank calls them wrongly."""

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from environment import variables
from gather_core import ClosedError, DesyncError, GroupBrokenError, RemoteEncodeError
from gather_core.compat import all_gather_list, all_gather_object, broadcast_object_list, gather_object
from gather_core.compat.hidden_gatherers import hidden_gatherer
from rank_pool import RankPool, store_address


def outcome_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call returns or raises, the latter as its type, text and the ranks that it names."""
    try:
        return call(*args, **kwargs)
    except Exception as exc:
        return type(exc), str(exc), sorted(getattr(exc, "failures", {}))


def threads_of_gatherers() -> set[str]:
    """Names of our threads, but for the bell, which goes with the default group."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("gather-core")}


def sockets() -> set[str]:
    """The open sockets of this process (Linux)."""
    links = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {link for link in links if link.startswith("socket:")}


def settled(look: Callable[[], set[str]], most: int, within_s: float = 5) -> set[str]:
    """What is there, once it is no more than that or time is up: threads and connections end just after their work."""
    deadline = time.monotonic() + within_s
    while len(found := look()) > most and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_every_call_gives_what_torch_gives(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[str]:
        import torch.distributed as dist

        pair = dist.new_group([1, 2])
        torchs = (dist.all_gather_object, dist.gather_object, dist.broadcast_object_list)
        ours = (all_gather_object, gather_object, broadcast_object_list)

        def results(functions: Any, group: Any, ranks: list[int]) -> list[Any]:
            """Every list after every call, on this rank."""
            all_gather, gather, broadcast = functions
            size = len(ranks)
            obj = {"rank": rank, "none": None, "ids": list(range(rank))}
            everywhere = [None] * size
            found: list[Any] = [all_gather(everywhere, obj, group=group), everywhere]
            for group_root, root in enumerate(ranks):
                for where in ({"dst": root}, {"group_dst": group_root}):
                    places: list[Any] | None = ["old"] * size if rank == root else None
                    found += [gather(obj, places, group=group, **where), places]
                for where in ({"src": root}, {"group_src": group_root}):
                    objects = [obj, rank, "last"]
                    found += [broadcast(objects, group=group, **where), objects]
                    found.append(objects[0] is obj)
            return found

        wrong = []
        if results(ours, None, [0, 1, 2]) != results(torchs, None, [0, 1, 2]):
            wrong.append("world")
        if rank and results(ours, pair, [1, 2]) != results(torchs, pair, [1, 2]):
            wrong.append("pair")
        places: list[Any] = [None] * 3
        gather_object(rank, places if rank == 0 else [])
        objects = [rank]
        broadcast_object_list(objects, device=None)
        if (places, objects) != ([0, 1, 2] if rank == 0 else [None] * 3, [0]):
            wrong.append("defaults")
        return wrong

    assert pool.values(3, body) == [[], [], []]


def test_ranks_outside_the_group_are_warned_and_their_lists_stay_as_they_are(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[list[Any], list[Any]]:
        import torch.distributed as dist

        pair = dist.new_group([1, 2])
        places: list[Any] = ["old", "old"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            all_gather_object(places, rank, group=pair)
            gather_object(rank, places if rank == 1 else None, dst=1, group=pair)
            broadcast_object_list(places, src=1, group=pair)
        here = sys._getframe().f_code.co_filename  # which some versions of cloudpickle replace
        return places, [(str(w.message), w.filename == here) for w in caught if w.category is UserWarning]

    outside, *inside = pool.values(3, body)
    assert inside == [([1, 2], [])] * 2
    assert outside[0] == ["old", "old"]
    assert [text.partition("(")[0] for text, _ in outside[1]] == [
        "all_gather_object",
        "gather_object",
        "broadcast_object_list",
    ]
    assert all(is_here for _, is_here in outside[1])


NO_RANK: Any = "one"
UNPICKLABLE = (lambda: None,)[0]


def gather_to_2(rank: int, at_others: Any = None, **wrong: Any) -> None:
    """Rank 1 gives what is wrong."""
    gather_object(rank, [0] * 3 if rank == 2 else at_others if rank == 1 else None, 2, **(wrong if rank == 1 else {}))


WRONG_ON_RANK_1: dict[str, tuple[Callable[[int], Any], str]] = {
    "unpicklable to all": (lambda rank: all_gather_object([0] * 3, UNPICKLABLE if rank == 1 else 1), "cannot encode"),
    "unpicklable to one": (
        lambda rank: gather_object(UNPICKLABLE if rank == 1 else 1, None if rank else [0] * 3),
        "cannot encode",
    ),
    "too short": (lambda rank: all_gather_object([0] * (2 if rank == 1 else 3), 1), "2 places for the objects of 3"),
    "too long": (lambda rank: all_gather_object([0] * (4 if rank == 1 else 3), 1), "4 places for the objects of 3"),
    "a tuple": (lambda rank: all_gather_object((0,) * 3 if rank == 1 else [0] * 3, 1), "not into a tuple"),
    "None": (lambda rank: all_gather_object(None if rank == 1 else [0] * 3, 1), "NoneType"),
    "both roots": (lambda rank: gather_to_2(rank, group_dst=2), "both given"),
    "a list off the root": (lambda rank: gather_to_2(rank, [0] * 3), "must be None on every rank but the destination"),
    "root too short": (lambda rank: gather_object(1, [0] if rank == 1 else None, 1), "1 places for the objects of 3"),
    "root without": (lambda rank: gather_object(1, None, 1), "must be a list of 3 places on the destination"),
    "no rank": (lambda rank: broadcast_object_list([1], NO_RANK if rank == 1 else 2), "TypeError"),
    "too high": (lambda rank: broadcast_object_list([1], 3 if rank == 1 else 2), "src is rank 3 of a group"),
    "negative": (
        lambda rank: broadcast_object_list([1], group_src=-1 if rank == 1 else 2),
        "src is rank -1 of a group",
    ),
    "unpicklable source": (lambda rank: broadcast_object_list([UNPICKLABLE if rank == 1 else 1], 1), "cannot encode"),
    "fewer places": (
        lambda rank: broadcast_object_list([1] * (1 if rank == 1 else 2), 0),
        "1 places for the 2 objects",
    ),
    "more places": (lambda rank: broadcast_object_list([1] * (3 if rank == 1 else 2), 0), "3 places for the 2 objects"),
}


def test_what_is_wrong_on_one_rank_is_an_error_on_all_and_the_group_stays_usable(pool: RankPool) -> None:
    def body(rank: int, world_size: int, cases: dict[str, tuple[Any, str]]) -> dict[str, Any]:
        outcomes = {}
        for name, (call, _) in cases.items():
            healthy: list[Any] = [None] * 3
            failed = outcome_of(call, rank)
            all_gather_object(healthy, rank)
            outcomes[name] = failed, healthy
        return outcomes

    outcomes = pool.values(3, body, WRONG_ON_RANK_1)
    assert outcomes == [outcomes[0]] * 3
    for name, (_, text) in WRONG_ON_RANK_1.items():
        (kind, message, ranks), healthy = outcomes[0][name]
        assert (kind, ranks, healthy) == (RemoteEncodeError, [1], [0, 1, 2]), (name, outcomes[0][name])
        assert text in message, (name, message)
        assert "run()" not in message


def test_an_argument_error_is_its_own_cause_where_it_was_made(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> None:
        all_gather_object([None] * (2 - rank), "object")

    healthy, wrong = pool.run(2, body)
    assert isinstance(healthy.error, RemoteEncodeError)
    assert healthy.error.__cause__ is None
    assert isinstance(wrong.error, RemoteEncodeError)
    assert isinstance(wrong.error.__cause__, ValueError)


def test_a_root_outside_the_group_is_an_error_on_every_rank(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        import torch.distributed as dist

        pair = dist.new_group([1, 2])
        if rank == 0:
            return []
        return [outcome_of(broadcast_object_list, [rank], group=pair), outcome_of(gather_object, 1, dst=0, group=pair)]

    _, *inside = pool.values(3, body)
    for kind, text, ranks in inside[0] + inside[1]:
        assert (kind, ranks) == (RemoteEncodeError, [0, 1])
        assert "not part of group" in text


def test_ranks_at_different_calls_are_told_so_and_the_group_stays_broken(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        places: list[Any] = [None] * 2
        call = all_gather_object if rank else broadcast_object_list
        args = (places, rank) if rank else (places, 0)
        return [outcome_of(call, *args), outcome_of(all_gather_object, places, rank)]

    for first, later in pool.values(2, body):
        assert first[0] is DesyncError
        assert "all_gather_object" in first[1] or "broadcast_object_list" in first[1]
        assert later[0] is GroupBrokenError


def test_a_broadcast_is_one_exchange(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[int, bool]:
        gatherer = hidden_gatherer()
        before = gatherer.stats.operations
        objects: list[Any] = [bytes(3_000_000), 2] if rank == 1 else [None, None]
        broadcast_object_list(objects, 1)
        return gatherer.stats.operations - before, gatherer.stats.sent_nbytes < 10_000 or rank == 1

    assert pool.values(3, body) == [(1, True)] * 3


@pytest.mark.parametrize("transport", ["shm", "gloo", "all_gather_object"])
def test_a_destroyed_group_takes_its_gatherer_along_and_the_next_group_gets_its_own(
    pool: RankPool, transport: str
) -> None:
    def body(rank: int, world_size: int, transport: str) -> dict[str, Any]:
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore, TCPStore

        own_connections = transport != "all_gather_object"
        places: list[Any] = [None] * 2
        before = sockets()
        pair: Any = dist.new_group([0, 1])
        with variables(GATHER_TRANSPORT=transport):
            all_gather_object(places, rank, pair)
            first = hidden_gatherer(pair)
            all_gather_object(places, rank)
            world = hidden_gatherer()
            same = hidden_gatherer() is world is not first
            dist.destroy_process_group(pair)
            del pair
            only_first = outcome_of(first.all_gather, 1)[0] if own_connections else ClosedError
            dist.barrier()
            dist.destroy_process_group()
            both = outcome_of(world.all_gather, 1)[0] if own_connections else ClosedError
            left = settled(threads_of_gatherers, 0) if own_connections else set()
            new_sockets = len(settled(sockets, len(before))) - len(before) if own_connections else 0
            store = TCPStore(*store_address(), None, False, wait_for_workers=False)
            dist.init_process_group("gloo", store=PrefixStore("again", store), rank=rank, world_size=world_size)
            all_gather_object(places, rank * 10)
            afterwards = [outcome_of(gatherer.all_gather, 1)[0] for gatherer in (first, world)]
        return {
            "same": same,
            "closed": [only_first, both, *afterwards],
            "left": left,
            "more sockets": new_sockets > 0,
            "places": places,
        }

    expected = {
        "same": True,
        "closed": [ClosedError] * 4,
        "left": set(),
        "more sockets": False,
        "places": [0, 10],
    }
    assert pool.values(2, body, transport) == [expected] * 2


def exit_code_of_child(call: Callable[[], bool]) -> int:
    """Runs a function in a forked child; 0 where it returns True."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
        pid = os.fork()
    if pid == 0:
        os._exit(not call())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_is_refused_the_parents_connections(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[int, list[Any]]:
        places: list[Any] = [None] * 2
        all_gather_object(places, rank)

        def is_refused() -> bool:
            kind, text, _ = outcome_of(all_gather_object, places, rank)
            return kind is ClosedError and "parent" in text

        code = exit_code_of_child(is_refused)
        all_gather_object(places, rank + 5)
        return code, places

    assert pool.values(2, body) == [(0, [5, 6])] * 2


def test_a_forked_child_of_a_process_alone_is_alone_too(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> int:
        places: list[Any] = [None]
        all_gather_object(places, "parent")

        def works() -> bool:
            all_gather_object(places, "child")
            return places == ["child"]

        return exit_code_of_child(works)

    assert pool.values(1, body, init=False) == [0]


def test_settings_switch_all_gather_list_to_another_codec_without_a_size_limit(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> dict[str, Any]:
        row = {"rank": rank, "ids": list(range(20_000))}
        with variables(GATHER_WIRE="native", GATHER_CODEC="msgpack+zstd", GATHER_FORBID_CODE="1"):
            large = all_gather_list(row, max_size=100)
            codec = hidden_gatherer().codec.spec
            refused = outcome_of(all_gather_list, object() if rank == 1 else 1)
        return {
            "large": large == [{**row, "rank": r} for r in range(world_size)],
            "codec": codec,
            "refused": refused,
        }

    outcomes = pool.values(2, body)
    assert outcomes == [outcomes[0]] * 2
    assert outcomes[0]["large"]
    assert outcomes[0]["codec"].startswith("msgpack+zstd")
    assert outcomes[0]["refused"][0] is RemoteEncodeError
    assert outcomes[0]["refused"][2] == [1]


def test_a_process_alone_is_a_group_of_one() -> None:
    places: list[Any] = [None]
    row = {"a": 1}
    all_gather_object(places, row)
    assert places == [row]
    assert places[0] is not row
    gather_object("x", places)
    assert places == ["x"]
    broadcast_object_list(places)
    assert places == ["x"]
    with pytest.raises(RemoteEncodeError, match="dst is rank 1 of a group that has ranks 0 to 0"):
        gather_object("x", places, dst=1)


@pytest.mark.parametrize("group", ["world", 3, object()])
def test_a_group_that_is_none_is_refused(group: Any) -> None:
    with pytest.raises(TypeError, match="group must be a ProcessGroup"):
        all_gather_object([None], 1, group=group)
