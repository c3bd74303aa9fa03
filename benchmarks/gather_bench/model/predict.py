"""What the fitted model says of clusters that nobody has measured: nothing here is a measurement."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gather_bench.model.fit import Costs, Fit
from gather_bench.model.points import SEED, Way
from gather_bench.model.terms import Term
from gather_bench.model.work import Job

MOST_RANKS = 8192
_EACH_TIMES = 4
_SEED_SLOT_NBYTES = 16_384
"""`max_size` of DPR's `all_gather_list`, unless more is needed."""


@dataclass(frozen=True)
class Cluster:
    """Where the ranks are thought to be: as many hosts as they need, with a core like the measured ones for each."""

    ranks_per_host: int = 8
    latency_us: float = 30.0
    gbit_per_s: float = 25.0

    @property
    def network(self) -> Costs:
        """What is assumed of the network, unless points between hosts have shown it."""
        return {Term.NETWORK_HOP: self.latency_us * 1e-6, Term.NETWORK_BYTE: 8e-9 / self.gbit_per_s}

    def hosts(self, world_size: int) -> int:
        """How many hosts so many ranks need."""
        return -(-world_size // self.ranks_per_host)

    def world_sizes(self) -> list[int]:
        """From one full host to the most ranks, each four times the one before."""
        sizes = [self.ranks_per_host]
        while sizes[-1] * _EACH_TIMES < MOST_RANKS:
            sizes.append(sizes[-1] * _EACH_TIMES)
        return [*sizes, MOST_RANKS]


@dataclass(frozen=True)
class Prediction:
    """What gathers of one payload take on so many ranks, by way."""

    codec: str
    nbytes: int
    """Encoded, per rank."""
    world_size: int
    hosts: int
    seconds: Mapping[Way, float]
    """All of it is modelled."""

    @property
    def received_nbytes(self) -> int:
        """What every rank holds in the end."""
        return self.world_size * self.nbytes


def predict(fits: Sequence[Fit], cluster: Cluster) -> list[Prediction]:
    """One for each codec, each of its payloads that was measured, and each number of ranks."""
    seed = next((fit for fit in fits if fit.codec == SEED), None)
    return [
        Prediction(
            fit.codec,
            nbytes,
            world_size,
            cluster.hosts(world_size),
            dict(_of_each_way(fit, seed, cluster, world_size, nbytes, slot_nbytes)),
        )
        for fit in fits
        if fit is not seed
        for nbytes, slot_nbytes in _payloads(fit)
        for world_size in cluster.world_sizes()
    ]


def _payloads(fit: Fit) -> list[tuple[int, int]]:
    """Sizes of payloads and slots; where ranks differ by a few bytes, or runs by their slots, one stands for all."""
    sizes = {residual.point.job.nbytes: residual.point.job.slot_nbytes for residual in fit.residuals}
    return sorted(sizes.items())


def _of_each_way(
    fit: Fit, seed: Fit | None, cluster: Cluster, world_size: int, nbytes: int, slot_nbytes: int
) -> Iterator[tuple[Way, float]]:
    job = Job(world_size, cluster.hosts(world_size), cluster.ranks_per_host, nbytes, slot_nbytes)
    for way in (Way(fit.codec, "gloo"), Way(fit.codec, "shm+gloo")):
        yield from _of_way(way, fit, job, cluster)
    if seed is not None:
        max_size = max(_SEED_SLOT_NBYTES, nbytes)
        seed_job = Job(world_size, job.hosts, job.cores, nbytes, max_size)
        yield from _of_way(Way(SEED, "gloo"), seed, seed_job, cluster)


def _of_way(way: Way, fit: Fit, job: Job, cluster: Cluster) -> Iterator[tuple[Way, float]]:
    """Nothing where the points show too little of the way."""
    work = way.work(job)
    known = {*fit.costs, *cluster.network}
    if all(term in known for term, count in work.items() if count):
        yield way, fit.seconds(work, cluster.network)
