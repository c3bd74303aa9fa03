"""Several hosts: shared memory with one leader per host beside Gloo alone and torch: `python -m gather_bench.hosts`.

The hosts are network namespaces of this machine, which needs Linux and root; the network between them is as fast as
memory, and all ranks share its cores. Ways take turns, and a round takes as long as on the slowest rank. What leaves
a host is counted by its network interface, headers of packets included.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gather_bench.bench.workloads import dpr_step
from gather_bench.host_ranks import run_host_ranks
from gather_bench.interleaved import Way, slowest_rank_medians
from gather_bench.network_hosts import INTERFACE, NoHostsError
from gather_bench.peers import torch_all_gather_object
from gather_core import Gatherer

HIERARCHICAL, FITTING, GLOO, TORCH = "shm+gloo", "shm+gloo, fitting slot", "gloo", "all_gather_object"
_FITTING_SLOT_NBYTES = 160 * 1024
"""Holds one rank's DPR step, so that it needs no second round."""
_FLOORS_ARE_FOR = (2, 2)
"""Hosts, and ranks on each."""
_ROUNDS = 15
_TIMEOUT_S = 120
_COLUMNS = f"per call: median of the slowest rank, what leaves the host that sends most, times faster than {TORCH}"
_NETWORK_COUNTERS = Path("/proc/self/net/dev")
_SENT_COLUMN = 8


@dataclass(frozen=True)
class Row:
    """What one workload takes, each way."""

    workload: str
    seconds: dict[str, float]
    """Per call on the slowest rank, median, by way."""
    sent_nbytes: dict[str, float]
    """What left the host that sent most, per call, by way."""
    floor: float
    """So many times faster than torch's `shm+gloo` should be; 0: nothing is wanted."""

    def __str__(self) -> str:
        return "\n".join([f"  {self.workload}", *map(self._line, self.seconds)])

    def _line(self, way: str) -> str:
        ratio = self.seconds[TORCH] / self.seconds[way]
        text = f"    {way:23} {self.seconds[way] * 1e6:9.0f} us {self.sent_nbytes[way]:12,.0f} bytes {ratio:6.2f} x"
        if not self.floor or way not in (HIERARCHICAL, FITTING):
            return text
        return f"{text}, at least {self.floor:g} {'met' if ratio >= self.floor else 'MISSED'}"


@dataclass(frozen=True)
class _Workload:
    """What is gathered, and how."""

    name: str
    ways: Mapping[str, Way]
    calls: int
    """Behind one barrier."""
    floor: float = 0

    def measured(self, rounds: int) -> Row:
        """(all ranks) Times the ways, and then counts what they send."""
        seconds = slowest_rank_medians(self.ways, rounds, self.calls)
        return Row(self.name, seconds, _sent(self.ways, self.calls), self.floor)


def measure(num_hosts: int, ranks_per_host: int, rounds: int) -> list[Row]:
    """Starts ranks on hosts and measures all workloads on them.

    Raises:
        NoHostsError: This machine does not allow it.
    """
    host_of_rank = [host for host in range(num_hosts) for _ in range(ranks_per_host)]
    rows = [Row(**row) for row in run_host_ranks(host_of_rank, "gather_bench.hosts:measure_on_rank", rounds)]
    return rows if (num_hosts, ranks_per_host) == _FLOORS_ARE_FOR else [replace(row, floor=0) for row in rows]


def measure_on_rank(rounds: int) -> list[dict[str, Any]]:
    """(all ranks) Returns the rows, as JSON keeps them."""
    with (
        Gatherer(transport=HIERARCHICAL, timeout_s=_TIMEOUT_S) as hierarchical,
        Gatherer(transport=HIERARCHICAL, timeout_s=_TIMEOUT_S, slot_nbytes=_FITTING_SLOT_NBYTES) as fitting,
        Gatherer(transport=GLOO, timeout_s=_TIMEOUT_S) as gloo,
    ):
        workloads = _workloads({HIERARCHICAL: hierarchical, GLOO: gloo}, fitting)
        return [asdict(workload.measured(rounds)) for workload in workloads]


def _workloads(gatherers: Mapping[str, Gatherer], fitting: Gatherer) -> Sequence[_Workload]:
    metrics = {f"metric_{number}": number * 1.5 for number in range(10)}
    step = dpr_step(dist.get_rank())
    ways_of_step = _ways({HIERARCHICAL: gatherers[HIERARCHICAL], FITTING: fitting, GLOO: gatherers[GLOO]}, step)
    return (
        _Workload("dict of 10 numbers", _ways(gatherers, metrics), 50, floor=8),
        _Workload("DPR step, tensors", ways_of_step, 15, floor=5),
        _Workload("16 MiB array", _ways(gatherers, np.arange(2 << 20, dtype=np.int64)), 2),
    )


def _ways(gatherers: Mapping[str, Gatherer], obj: object) -> dict[str, Way]:
    ways: dict[str, Way] = {name: partial(gatherer.all_gather, obj) for name, gatherer in gatherers.items()}
    return ways | {TORCH: partial(torch_all_gather_object, obj)}


def _sent(ways: Mapping[str, Way], calls: int) -> dict[str, float]:
    """(all ranks) What leaves the host that sends most, in bytes per call; a barrier's few bytes are counted too."""
    sent = {}
    for name, way in ways.items():
        dist.barrier()
        before = sent_nbytes()
        for _ in range(calls):
            way()
        dist.barrier()
        most = torch.tensor(sent_nbytes() - before)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        sent[name] = most.item() / calls
    return sent


def sent_nbytes() -> int:
    """How many bytes have left this host over its network."""
    lines = _NETWORK_COUNTERS.read_text().splitlines()
    counters = next(rest for name, _, rest in (line.partition(":") for line in lines) if name.strip() == INTERFACE)
    return int(counters.split()[_SENT_COLUMN])


def main() -> None:
    """Prints what each workload takes, each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--ranks-per-host", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    arguments = parser.parse_args()
    if min(vars(arguments).values()) < 1:
        parser.error("each number must be at least 1")
    print(f"{arguments.hosts} hosts x {arguments.ranks_per_host} ranks; {_COLUMNS}", flush=True)
    try:
        rows = measure(arguments.hosts, arguments.ranks_per_host, arguments.rounds)
    except NoHostsError as exc:
        sys.exit(f"there can be no hosts: {exc}")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
