"""What the doctor makes of facts: for each check, facts that it finds fault with, and healthy ones."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gather_core.doctor.facts import Facts, Plugin
from gather_core.doctor.findings import Finding
from gather_core.doctor.job_checks import (
    Job,
    check_cores,
    check_gpus_agree,
    check_hosts,
    check_limits_agree,
    check_plugins_agree,
    check_variables_agree,
    check_versions_agree,
    spans_networks,
)
from gather_core.doctor.judgement import CHECKS_OF_JOB, CHECKS_OF_RANK, judge
from gather_core.doctor.machine_checks import check_file_size, check_memory, check_open_files, check_shared_memory
from gather_core.doctor.network_checks import check_network
from gather_core.doctor.software_checks import check_gpus, check_mpi, check_plugins, check_settings, check_torch
from healthy_facts import GIB, HEALTHY, facts

MIB = 1 << 20
MANY_HOSTS = {"by": "torchrun", "world_size": 8, "local_ranks": 2}
ALONE = {"by": "nobody", "world_size": 1, "local_ranks": None}
ON_SHM = {"transport": "shm:folder='/dev/shm'"}

CASES: list[tuple[Callable[[Facts], Iterator[Finding]], dict[str, Any], str, str]] = [
    (check_torch, {"torch": {"version": None, "problem": "OSError: libcudart"}}, "fails", "OSError: libcudart"),
    (check_torch, {"torch": {"version": "2.7.1"}}, "fails", "2.7.1 is too old"),
    (check_torch, {"torch": {"backends": ("nccl",)}}, "fails", "no Gloo"),
    (check_torch, {"torch": {"backends": ("nccl",)}, "launch": ALONE}, "slow", "no Gloo"),
    (check_torch, {"torch": {"backends": ("gloo",)}}, "slow", "2 CUDA devices, but this build has no NCCL"),
    (check_gpus, {"launch": {"local_ranks": 4}}, "slow", "4 ranks of a host share 2 CUDA devices"),
    (check_mpi, {"mpi": {"mpi4py": None}, "launch": {"by": "mpiexec"}}, "fails", "mpi4py is not installed"),
    (check_mpi, {"mpi": {"problem": "no libmpi.so"}, "launch": {"by": "mpiexec"}}, "fails", "no libmpi.so"),
    (check_mpi, {"mpi": {"problem": "no libmpi.so"}}, "slow", "no libmpi.so"),
    (check_settings, {"settings": {"problems": ("codec = 1",)}}, "fails", "codec = 1"),
    (check_settings, {"settings": {"warnings": ("nothing reads GATHER_X",)}}, "slow", "nothing reads GATHER_X"),
    (check_plugins, {"plugins": (Plugin("codec", "x", "broken", "no y"),)}, "fails", "codec x is broken: no y"),
    (check_plugins, {"plugins": (Plugin("codec", "x", "works", "", ("two of it",)),)}, "slow", "codec x: two of it"),
    (check_memory, {"memory": {"available_nbytes": 60 * 1024}}, "fails", "the slots of this host's ranks take 128 KiB"),
    (check_memory, {"memory": {"available_nbytes": 100 * MIB}}, "slow", "100 MiB left"),
    (check_shared_memory, {"memory": {"shm_nbytes": 64 * MIB}}, "slow", "of 64 MiB free"),
    (check_shared_memory, {"memory": {"shm_free_nbytes": 1024}, "settings": ON_SHM}, "fails", "1 KiB of 32 GiB free"),
    (check_shared_memory, {"memory": {"shm_nbytes": None}, "settings": ON_SHM}, "fails", "there is none"),
    (check_open_files, {"limits": {"open_files": 64}}, "slow", "the limit is 64"),
    (check_open_files, {"limits": {"open_files": 64}, "launch": MANY_HOSTS}, "slow", "takes about 50"),
    (check_open_files, {"limits": {"open_files": 32}}, "fails", "a job of 2 ranks needs about 38"),
    (check_open_files, {"limits": {"open_files": 1024}, "launch": {"world_size": 600}}, "fails", "600 ranks"),
    (check_file_size, {"limits": {"file_nbytes": 100 * 1024}}, "fails", "the limit is 100 KiB"),
]
FINE: list[tuple[Callable[[Facts], Iterator[Finding]], dict[str, Any]]] = [
    (check_gpus, {"launch": {"local_ranks": 4}, "torch": {"num_gpus": 0}}),
    (check_gpus, {"launch": ALONE}),
    (check_mpi, {"mpi": {"mpi4py": None}}),
    (check_plugins, {"plugins": (Plugin("transport", "nccl", "unavailable", "no device"),)}),
    (check_memory, {"memory": {"available_nbytes": None}}),
    (check_shared_memory, {"memory": {"shm_nbytes": None}}),
    (check_shared_memory, {"memory": {"shm_free_nbytes": 1024}}),
    (check_open_files, {"limits": {"open_files": None}}),
    (check_torch, {"torch": {"version": "nightly"}}),
]


def of_job(check: Callable[[Job], Iterator[Finding]], *ranks: Facts) -> list[Finding]:
    return list(check(dict(enumerate(ranks))))


def faults(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.level != "ok"]


@pytest.mark.parametrize(("check", "changes", "level", "text"), CASES)
def test_a_fault_of_one_rank_is_found_with_a_way_to_mend_it(
    check: Callable[[Facts], Iterator[Finding]], changes: dict[str, Any], level: str, text: str
) -> None:
    [found] = faults(list(check(facts(**changes))))
    assert (found.level, text in found.what) == (level, True), found
    assert found.mend
    assert "\n" not in found.what + found.mend


@pytest.mark.parametrize(("check", "changes"), FINE)
def test_what_does_no_harm_is_no_fault(check: Callable[[Facts], Iterator[Finding]], changes: dict[str, Any]) -> None:
    assert faults(list(check(facts(**changes)))) == []


def test_nothing_is_wrong_with_healthy_ranks_and_every_check_says_what_it_saw() -> None:
    job = {0: HEALTHY, 1: facts(launch={"rank": 1})}
    assert faults(judge(job)) == []
    silent = {"check_gpus", "check_file_size"} | {one.__name__ for one in CHECKS_OF_JOB if "agree" in one.__name__}
    for check in CHECKS_OF_RANK:
        assert list(check(HEALTHY)) or check.__name__ in silent
    for of_all in CHECKS_OF_JOB:
        assert list(of_all(job)) or of_all.__name__ in silent


def test_what_a_rank_has_found_is_said_of_that_rank() -> None:
    [found] = faults(judge({0: HEALTHY, 1: facts(settings={"problems": ("codec = 1",)})}))
    assert found.ranks == (1,)


def test_unavailable_plugins_are_told_with_their_reasons() -> None:
    found = check_plugins(facts(plugins=(Plugin("transport", "nccl", "unavailable", "no device"),)))
    assert ("transport nccl", "cannot be used here: no device") in [(one.subject, one.what) for one in found]


def test_the_hard_limit_is_what_is_to_be_raised_where_it_is_too_low() -> None:
    [found] = check_open_files(facts(limits={"open_files": 64, "open_files_at_most": 4096}))
    assert found.mend.startswith("ulimit -n 1024")
    [found] = check_open_files(facts(limits={"open_files": 64, "open_files_at_most": 64}))
    assert "hard limit of 64" in found.mend


# The network


OTHER_HOST = {"kernel": "kernel 1", "network": "network 1", "memory": "memory 1"}


@pytest.mark.parametrize("own_name", ["loopback", "elsewhere", "nothing", "late"])
def test_a_name_that_leads_nowhere_fails_a_job_of_several_hosts_and_none_of_one(own_name: str) -> None:
    here = facts(network={"own_name": own_name})
    there = facts(host=OTHER_HOST)
    [found] = faults(of_job(check_network, here, there))
    assert (found.level, found.ranks) == ("fails", (0,))
    assert "name" in found.what
    assert "export GLOO_SOCKET_IFNAME=eth0" in found.mend
    assert faults(of_job(check_network, here, here)) == []


def test_a_name_that_leads_nowhere_warns_a_process_that_may_have_other_hosts() -> None:
    [found] = of_job(check_network, facts(network={"own_name": "loopback"}, launch=ALONE))
    assert found.level == "slow"
    assert found.what.endswith("ranks on other hosts could not connect")


@pytest.mark.parametrize(
    ("variables", "level", "text"),
    [
        ({"GLOO_SOCKET_IFNAME": "eth9"}, "fails", "there is no interface eth9"),
        ({"GLOO_SOCKET_IFNAME": "eth0,eth9"}, "fails", "there is no interface eth9"),
        ({"GLOO_SOCKET_IFNAME": "eth1"}, "fails", "eth1 has no address"),
        ({"GLOO_SOCKET_IFNAME": "lo"}, "fails", "only this host reaches"),
        ({"NCCL_SOCKET_IFNAME": "ib"}, "fails", "fits no interface"),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "fails", "fits no interface"),
        ({"NCCL_SOCKET_IFNAME": "^eth,lo"}, "fails", "fits no interface"),
        ({"NCCL_SOCKET_IFNAME": "^eth"}, "fails", "only this host reaches"),
    ],
)
def test_variables_that_name_no_way_to_other_hosts_fail(variables: dict[str, str], level: str, text: str) -> None:
    [found] = faults(of_job(check_network, facts(variables=variables), facts(host=OTHER_HOST)))
    assert (found.level, text in found.what) == (level, True), found


@pytest.mark.parametrize("text", ["eth", "=eth0", "^lo", "^=lo,docker0"])
def test_variables_that_name_a_way_are_fine(text: str) -> None:
    here = facts(variables={"NCCL_SOCKET_IFNAME": text, "GLOO_SOCKET_IFNAME": "eth0"})
    assert faults(of_job(check_network, here, facts(host=OTHER_HOST))) == []


def test_an_interface_for_nccl_matters_little_without_a_gpu() -> None:
    here = facts(variables={"NCCL_SOCKET_IFNAME": "ib"}, torch={"num_gpus": 0})
    assert [one.level for one in faults(of_job(check_network, here))] == ["slow"]


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([{}, {"host": OTHER_HOST}], True),
        ([{}, {"host": {"network": "container 1"}}], True),
        ([{}, {"host": {"memory": "memory 1"}}], False),
        ([{}, {}], False),
        ([{"launch": MANY_HOSTS}], True),
        ([{"launch": {"local_ranks": None}}], None),
        ([{"launch": ALONE}], None),
        ([{"host": {"network": None}}] * 2, False),
        ([{"host": {"network": None}, "launch": {"local_ranks": None}}] * 2, None),
    ],
)
def test_several_hosts_are_known_by_the_ranks_or_by_the_launcher(
    ranks: list[dict[str, Any]], expected: bool | None
) -> None:
    assert spans_networks({rank: facts(**changes) for rank, changes in enumerate(ranks)}) is expected


# Between ranks


def test_who_is_on_which_host_is_told() -> None:
    [found] = of_job(check_hosts, HEALTHY, facts(host=OTHER_HOST), HEALTHY)
    assert found.what == "host 0: ranks 0, 2; host 1: rank 1"


def test_ranks_of_one_kernel_that_share_no_memory_are_slow() -> None:
    [found] = faults(of_job(check_hosts, HEALTHY, facts(host={"memory": "memory 1"})))
    assert (found.level, found.what) == ("slow", "rank 0 and rank 1 are on one host, but cannot share memory")


def test_more_ranks_than_cores_are_slow() -> None:
    one_core = {"usable": (0,), "online": 1}
    [found] = faults(of_job(check_cores, facts(cores=one_core), facts(cores=one_core)))
    assert found.what == "2 ranks of a host on 1 core: ranks that wait for each other take turns"
    assert found.ranks == (0, 1)
    [found] = faults(of_job(check_cores, facts(cores={"quota": 1.0}), HEALTHY))
    assert found.what.startswith("2 ranks of a host on 1 core")


def test_ranks_that_are_bound_to_cores_of_their_own_are_fine() -> None:
    threads = {"OMP_NUM_THREADS": "1"}
    ranks = [facts(cores={"usable": (core,)}, variables=threads) for core in (0, 1)]
    assert faults(of_job(check_cores, *ranks)) == []
    assert faults(of_job(check_cores, ranks[0])) == []  # the other is not known


def test_what_the_launcher_says_of_ranks_counts_where_they_are_not_known() -> None:
    [found] = faults(of_job(check_cores, facts(launch={"local_ranks": 8})))
    assert found.what.startswith("8 ranks of a host on 4 cores")


@pytest.mark.parametrize("variables", [{"OMP_NUM_THREADS": "4"}, {}, {"OMP_NUM_THREADS": "4,2"}])
def test_more_threads_than_cores_are_slow(variables: dict[str, str]) -> None:
    [found] = faults(of_job(check_cores, facts(variables=variables), facts(variables=variables)))
    assert "8 threads of OpenMP together" in found.what
    assert found.mend == "export OMP_NUM_THREADS=2"
    assert faults(of_job(check_cores, facts(variables=variables, launch=ALONE))) == []


DIFFERENCES: list[tuple[Callable[[Job], Iterator[Finding]], dict[str, Any], str, str]] = [
    (check_versions_agree, {"versions": {**HEALTHY.versions, "torch": "2.8"}}, "slow", "2.9 on rank 0, 2.8 on rank 1"),
    (
        check_versions_agree,
        {"versions": {"torch": "2.9"}},
        "slow",
        "Python differs: 3.12.1 on rank 0, missing on rank 1",
    ),
    (check_limits_agree, {"limits": {"open_files": 1024}}, "slow", "65536 on rank 0, 1024 on rank 1"),
    (check_limits_agree, {"limits": {"file_nbytes": 1024}}, "slow", "none on rank 0, 1024 on rank 1"),
    (check_gpus_agree, {"torch": {"num_gpus": 1}}, "slow", "2 on rank 0, 1 on rank 1"),
    (check_gpus_agree, {"torch": {"nccl": "2.20.5"}}, "fails", "2.27.3 on rank 0, 2.20.5 on rank 1"),
    (check_plugins_agree, {"plugins": HEALTHY.plugins[:1]}, "slow", "shm works on rank 0, but not on rank 1"),
]


@pytest.mark.parametrize(("check", "changes", "level", "text"), DIFFERENCES)
def test_what_differs_between_ranks_is_found_and_names_them(
    check: Callable[[Job], Iterator[Finding]], changes: dict[str, Any], level: str, text: str
) -> None:
    different = of_job(check, HEALTHY, facts(**changes))
    assert different[0].level == level
    assert text in " ".join(one.what for one in different)
    assert {one.ranks for one in different} == {(1,)}
    assert of_job(check, facts(**changes), facts(**changes)) == []


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("GATHER_SLOT_NBYTES", "fails"),
        ("GATHER_LIMITS__DEPTH", "fails"),
        ("GATHER_WIRE", "fails"),
        ("GATHER_TIMEOUT_S", "slow"),
        ("GATHER_FORBID_CODE", "slow"),
        ("OMP_NUM_THREADS", "slow"),
        ("GLOO_SOCKET_IFNAME", "slow"),
    ],
)
def test_a_variable_that_one_rank_has_otherwise_is_found(name: str, level: str) -> None:
    here, there = facts(variables={name: "1"}), facts(variables={})
    [found] = of_job(check_variables_agree, here, here, there)
    assert (found.level, found.ranks) == (level, (2,))
    assert f"{name} " in found.what
    assert "'1' on ranks 0-1, not set on rank 2" in found.what


def test_hosts_may_have_other_names() -> None:
    ranks = [facts(variables={"GATHER_HOST_ID": name}) for name in ("a", "b")]
    assert of_job(check_variables_agree, *ranks) == []


def test_memory_is_reckoned_for_all_ranks_of_the_host() -> None:
    many = {"world_size": 1024, "local_ranks": 64}
    [found] = check_memory(facts(memory={"available_nbytes": GIB}, launch=many))
    assert (found.level, "take 2 GiB" in found.what) == ("fails", True)
