"""What the fitted model says of clusters that nobody has measured: nothing here is a measurement."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gather_bench.model.cluster import Cluster
from gather_bench.model.fit import Fit
from gather_bench.model.points import SEED, Way
from gather_bench.model.work import Job

_SEED_SLOT_NBYTES = 16_384
"""`max_size` of DPR's `all_gather_list`, unless more is needed."""


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
