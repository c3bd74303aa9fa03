"""`gather doctor` on the ranks of two hosts, of which none may hear the other."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gather_bench.network_hosts import NetworkHosts, address
from host_job import network_hosts

DOCTOR = (sys.executable, "-m", "gather_core", "doctor", "--json", "--timeout-s", "5")
PORT = "29400"
"""Free in networks that are new."""


def run_doctor(hosts: NetworkHosts, variables: dict[str, str]) -> tuple[list[int], dict[str, Any]]:
    """Runs one rank per host; returns what all exit with, and what rank 0 prints."""
    ranks = []
    for rank in range(2):
        ours = {name: text for name, text in hosts.environment(rank).items() if not name.startswith("GATHER_")}
        where = {"MASTER_ADDR": address(0), "MASTER_PORT": PORT, "WORLD_SIZE": "2", "RANK": str(rank)}
        more = {"LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(filter(None, sys.path))}
        command = hosts.command(rank, DOCTOR)
        ranks.append(subprocess.Popen(command, env=ours | where | more | variables, stdout=subprocess.PIPE, text=True))
    try:
        printed = [process.communicate(timeout=90)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert printed[1] == ""
    return [process.returncode for process in ranks], json.loads(printed[0])


def test_ranks_of_two_hosts_are_all_looked_at(tmp_path: Path) -> None:
    with network_hosts(2, tmp_path) as hosts:
        statuses, said = run_doctor(hosts, {})
    assert statuses == [0, 0], said["findings"]
    assert (said["world_size"], list(said["facts"]), said["complete"]) == (2, ["0", "1"], True)
    assert "2 ranks are on 2 hosts" in said["gatherer"] or "that all 2 ranks can use" in said["gatherer"]
    assert {one["level"] for one in said["findings"] if one["subject"] == "network"} == {"ok"}


def test_ranks_that_listen_where_no_other_host_reaches_them_are_told_so(tmp_path: Path) -> None:
    with network_hosts(2, tmp_path) as hosts:
        statuses, said = run_doctor(hosts, {"GLOO_SOCKET_IFNAME": "lo"})
    assert statuses == [1, 1]
    assert (said["complete"], list(said["facts"])) == (False, ["0", "1"])
    [network] = [one for one in said["findings"] if one["subject"] == "network"]
    assert (network["level"], network["ranks"]) == ("fails", [0, 1])
    assert "only this host reaches" in network["what"]
    assert "export GLOO_SOCKET_IFNAME=" in network["mend"]
