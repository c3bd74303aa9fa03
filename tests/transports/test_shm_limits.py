"""Shared memory where something runs out: descriptors, space, the size of files; and for whom it is not meant."""

import gc
import os
import resource
import subprocess
import sys

import pytest

from environment import variables
from gather_core import Gatherer
from gather_core.errors import RemoteEncodeError, SetupError, TransportError
from gather_transports.shared_file import address_of, attach_file
from rank_pool import RankPool
from shm_ranks import opened


def use_up_descriptors() -> int:
    """Lets this process open no more files; returns the limit that was there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)  # the lowest that is free: all below are in use
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    return soft


def allow_descriptors(soft: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.fault(33)
def test_a_rank_without_free_descriptors_fails_the_construction_of_all(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[list[int], int]:
        # Ranks that have a host by name need no descriptor to find out.
        with variables(GATHER_HOST_ID="here"), Gatherer(transport="shm", timeout_s=20) as gatherer:  # joins the store
            gatherer.all_gather(0)
            gc.collect()  # what earlier tests left to the collector must not be closed between the two counts
            before = len(os.listdir("/proc/self/fd"))
            soft = use_up_descriptors() if rank == 1 else 0
            try:
                with pytest.raises(SetupError, match="Too many open files") as caught:
                    Gatherer(transport="shm", timeout_s=20)
            finally:
                if soft:
                    allow_descriptors(soft)
            left = len(os.listdir("/proc/self/fd")) - before
            gatherer.all_gather(1)
        return list(caught.value.failures), left

    assert pool.values(2, body) == [([1], 0)] * 2


def test_larger_objects_need_no_descriptor(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[int]:
        with Gatherer(transport="shm", timeout_s=20) as gatherer:
            gatherer.all_gather(0)
            soft = use_up_descriptors()
            try:
                return [len(content) for content in gatherer.all_gather(bytes(1 << 20))]
            finally:
                allow_descriptors(soft)

    assert pool.values(2, body) == [[1 << 20] * 2] * 2


def allow_address_space(more_nbytes: int) -> None:
    """Bounds what this process may still map; 0: no bound any more."""
    with open("/proc/self/statm", "rb") as file:
        used_nbytes = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used_nbytes + more_nbytes if more_nbytes else hard, hard))


@pytest.mark.fault(32)
def test_an_area_that_cannot_be_mapped_is_that_ranks_failure_and_the_group_goes_on(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> tuple[list[int], list[int]]:
        with Gatherer(transport="shm", timeout_s=20) as gatherer:
            gatherer.all_gather(0)
            large = bytes(32 << 20)
            if rank == 1:
                allow_address_space(8 << 20)
            try:
                with pytest.raises(
                    RemoteEncodeError, match=r"no \d+ bytes of shared memory: Cannot allocate"
                ) as caught:
                    gatherer.all_gather(large if rank == 1 else b"")
            finally:
                allow_address_space(0)
            with gatherer.transport._group._files[0] as fd:  # type: ignore[attr-defined]
                assert os.fstat(fd).st_blocks * 512 < 1 << 20, "nothing is kept of what was allocated"
            lengths = [len(content) for content in gatherer.all_gather(bytes(1 << 20))]
        return list(caught.value.failures), lengths

    assert pool.values(2, body) == [([1], [1 << 20] * 2)] * 2


@pytest.mark.fault(32)
def test_a_limit_on_the_size_of_files_is_an_error_and_no_signal(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[int]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with Gatherer(transport="shm", timeout_s=20) as gatherer:
                with pytest.raises(RemoteEncodeError, match="File too large") as caught:
                    gatherer.all_gather(bytes(100_000) if rank == 1 else b"")
                assert gatherer.all_gather(rank) == [0, 1]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return list(caught.value.failures)

    assert pool.values(2, body) == [[1]] * 2


@pytest.mark.fault(35)
def test_another_user_cannot_attach(pool: RankPool) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")

    def body(rank: int, world_size: int) -> int:
        transport = opened()
        with transport._group._files[0] as fd:  # type: ignore[union-attr]
            address = address_of(fd)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                with pytest.raises(TransportError, match="cannot be opened"):
                    attach_file(address, writable=False)
                code = 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert pool.values(1, body) == [0]


_IN_SMALL_DEV_SHM = """
import os, threading
from gather_core.errors import RemoteEncodeError, SetupError
from gather_core.gatherer import Gatherer
from gather_core.testing.thread_ranks import local_contexts, run_in_threads
from gather_transports.shm import ShmTransport

def transport(context, folder):
    made = ShmTransport(folder=folder, keep_nbytes=0)
    vars(made)["join_within"] = lambda group, *, timeout_s: context
    return made

def body(context):
    with Gatherer(transport=transport(context, "/dev/shm"), timeout_s=20) as gatherer:
        try:
            gatherer.all_gather(bytes(4 << 20) if context.rank == 1 else b"")
            raise AssertionError("4 MiB went into 1 MiB")
        except RemoteEncodeError as exc:
            assert list(exc.failures) == [1] and "No space left on device" in str(exc), exc
        assert gatherer.all_gather(bytes(100_000)) == [bytes(100_000)] * 2
        try:
            Gatherer(transport=transport(context, "/dev/shm"), slot_nbytes=4 << 20, timeout_s=20)
            raise AssertionError("slots of 4 MiB went into 1 MiB")
        except SetupError as exc:
            assert "No space left on device" in str(exc), exc
        assert gatherer.all_gather(context.rank) == [0, 1]
    with Gatherer(transport=transport(context, ""), timeout_s=20) as gatherer:
        assert [len(content) for content in gatherer.all_gather(bytes(4 << 20))] == [4 << 20] * 2

run_in_threads(local_contexts(2), body, 60, lambda context: None)
assert os.listdir("/dev/shm") == []
print("all is well")
"""


@pytest.mark.fault(32)
def test_a_full_dev_shm_is_an_error_where_it_is_used_and_nothing_where_it_is_not() -> None:
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    namespace = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no mount namespace of our own: {exc}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*namespace, sys.executable, "-c", _IN_SMALL_DEV_SHM]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert run.stdout == "all is well\n", run.stderr
