"""Which ranks are on one host: what can be read must be the same, and what can be reached too."""

import errno
import os
import platform
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gather_core import Gatherer, host_identity
from gather_core.host_identity import HostProbe, kernel_identity
from gather_core.local_store import LocalStore, ScopedStore
from host_rank import context_of
from rank_pool import RankPool
from store_calls import store_calls

RANK = Path(__file__).resolve().parents[1] / "host_rank.py"
OWN_MEMORY = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process where nobody has set the variable."""
    monkeypatch.delenv("GATHER_HOST_ID", raising=False)
    host_identity._read_kernel.cache_clear()
    yield
    host_identity._read_kernel.cache_clear()


@pytest.fixture
def probes() -> Iterator[list[HostProbe]]:
    """One per rank; closed in the end, after which nothing is left of them."""
    before = set(os.listdir("/proc/self/fd"))
    made = [HostProbe() for _ in range(4)]
    yield made
    for probe in made:
        probe.close()
    assert set(os.listdir("/proc/self/fd")) == before


def look(probes: Sequence[HostProbe], store: Any) -> list[str]:
    return [probe.look(context_of(rank, len(probes), store)) for rank, probe in enumerate(probes)]


def needs_proof() -> None:
    if kernel_identity() is None:
        pytest.skip("this system does not tell which kernel it is")


def test_ranks_that_reach_each_other_are_on_one_host_and_leave_no_key(probes: list[HostProbe]) -> None:
    store = LocalStore()
    assert len(set(look(probes, store))) == 1
    for probe in probes:
        probe.close()
    assert store._values == {}


def test_each_rank_asks_the_store_once(probes: list[HostProbe]) -> None:
    needs_proof()
    with store_calls() as calls:
        look(probes, ScopedStore("scope", LocalStore()))
    assert calls == ["compare_set"] * len(probes)


def test_a_rank_is_on_another_host_where_the_first_one_cannot_be_reached(probes: list[HostProbe]) -> None:
    needs_proof()
    store = LocalStore()
    first, second, third, fourth = probes
    hosts = [first.look(context_of(0, 4, store)), second.look(context_of(1, 4, store))]
    assert first._socket is not None
    first._socket.close()
    hosts += [third.look(context_of(2, 4, store)), fourth.look(context_of(3, 4, store))]
    assert [hosts.index(host) for host in hosts] == [0, 0, 2, 2]


def test_a_name_given_by_the_user_overrides_everything(
    probes: list[HostProbe], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore()
    hosts = []
    for rank, (probe, name) in enumerate(zip(probes, ("a", "b", "a", ""), strict=True)):
        monkeypatch.setenv("GATHER_HOST_ID", name)
        hosts.append(probe.look(context_of(rank, 4, store)))
    assert [hosts.index(host) for host in hosts] == [0, 1, 0, 3]
    monkeypatch.setenv("GATHER_HOST_ID", "x" * 100_000)
    assert len(HostProbe().look(context_of(0, 4, store))) < 1000


def test_a_rank_without_a_descriptor_is_alone(
    probes: list[HostProbe], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needs_proof()

    def full(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    store = LocalStore()
    hosts = look(probes[:2], store)
    monkeypatch.setattr(socket, "socket", full)
    hosts += [probes[rank].look(context_of(rank, 4, store)) for rank in (2, 3)]
    monkeypatch.undo()
    assert [hosts.index(host) for host in hosts] == [0, 0, 2, 3]
    assert "rank 2 takes itself to be alone on its host" in caplog.text


def test_a_probe_that_was_closed_before_it_looked_leaves_no_socket(probes: list[HostProbe]) -> None:
    probes[0].close()
    probes[0].look(context_of(0, 4, LocalStore()))
    assert probes[0]._socket is None or probes[0]._socket.fileno() == -1


@pytest.mark.parametrize(("mac", "is_in_it"), [(0x0242AC110002, True), (0x0342AC110002, False)])
def test_where_the_system_tells_nothing_of_its_kernel_name_and_hardware_address_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mac: int, is_in_it: bool
) -> None:
    monkeypatch.setattr(host_identity, "_PROC", tmp_path)
    monkeypatch.setattr(platform, "node", lambda: "box")
    monkeypatch.setattr(uuid, "getnode", lambda: mac)
    found = HostProbe().look(context_of(0, 2, LocalStore()))
    assert "box" in found
    assert (f"{mac:012x}" in found) == is_in_it, "a made-up address is another one in each process"


def test_memory_of_another_mount_or_user_is_that_of_another_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs_proof()
    seen = {kernel_identity()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        seen.add(kernel_identity())
    for memory in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr(host_identity, "_SHARED_MEMORY", memory)
        seen.add(kernel_identity())
    assert len(seen) == 4


def hosts_of(folder: Path, ranks_of_hosts: Sequence[Sequence[int]], prefix: Sequence[str], *flags: str) -> list[int]:
    """The host of each rank, as a number; all ranks of one host run in namespaces that `prefix` makes."""
    world_size = sum(map(len, ranks_of_hosts))
    if prefix and subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip(f"not allowed here: {' '.join(prefix)}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    hosts = []
    for ranks in ranks_of_hosts:
        runs = " ".join(f'"$@" {rank} {world_size} {" ".join(flags)} &' for rank in ranks)
        shell = ["sh", "-c", f"{runs} wait", "sh"]
        hosts.append(subprocess.Popen([*prefix, *shell, sys.executable, str(RANK), str(folder)], env=environment))
    for host in hosts:
        assert host.wait(60) == 0
    found = [(folder / f"found by {rank}").read_text() for rank in range(world_size)]
    left = [path.name for path in folder.iterdir() if not path.name.startswith("found by")]
    assert left == []
    return [found.index(host) for host in found]


TWO_OF_TWO = ((0, 2), (1, 3))


@pytest.mark.parametrize(
    ("prefix", "flags", "expected"),
    [
        pytest.param([], (), [0, 0, 0, 0], id="processes"),
        pytest.param([], ("clone",), [0, 0, 0, 0], id="processes that read and draw the same"),
        pytest.param(["unshare", "-n"], (), [0, 1, 0, 1], id="network namespaces"),
        pytest.param(["unshare", "-n"], ("clone",), [0, 1, 0, 1], id="clones of one snapshot"),
        pytest.param(["unshare", "-pf"], (), [0, 1, 0, 1], id="process id namespaces"),
        pytest.param(["unshare", "-U"], (), [0, 1, 0, 1], id="user namespaces"),
        pytest.param(["unshare", "-m", "sh", "-c", OWN_MEMORY, "sh"], (), [0, 1, 0, 1], id="own shared memory"),
        pytest.param(["unshare", "-m"], (), [0, 0, 0, 0], id="mount namespaces with one shared memory"),
    ],
)
def test_ranks_are_on_one_host_where_they_share_a_kernel_memory_and_process_ids(
    tmp_path: Path, prefix: Sequence[str], flags: Sequence[str], expected: Sequence[int]
) -> None:
    needs_proof()
    assert hosts_of(tmp_path, TWO_OF_TWO, prefix, *flags) == expected


def test_a_gatherer_tells_its_transport_the_hosts(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        seen: list[Any] = []
        for names in (["", "", ""], ["a", "b", "a"]):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GATHER_HOST_ID", names[rank])
                with Gatherer(timeout_s=30) as gatherer:
                    seen.append(gatherer._connection.context.hosts)
                    assert gatherer.all_gather(rank) == [0, 1, 2]
        return seen

    assert pool.values(3, body) == [[(0, 0, 0), (0, 1, 0)]] * 3


def test_construction_leaves_no_key_of_the_search_for_hosts(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> bool:
        import torch.distributed as dist

        keys: list[str] = []
        ask = HostProbe.look

        def remember(probe: HostProbe, context: Any) -> str:
            found = ask(probe, context)
            keys.extend(f"host/{found.split()[1]}/{number}" for number in range(world_size))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HostProbe, "look", remember)
            with Gatherer(timeout_s=30) as gatherer:
                dist.barrier()
                store = gatherer._connection.context.store
                return bool(keys) and not any(store.check([key]) for key in keys)

    assert pool.values(2, body) == [True, True]


def test_what_could_not_be_read_once_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(host_identity, "kernel_identity", lambda: None)  # as without a free descriptor
        assert host_identity._kernel_of(os.getpid()) is None
    assert host_identity._kernel_of(os.getpid()) is not None
