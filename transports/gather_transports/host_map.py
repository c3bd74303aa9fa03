"""Which ranks share a host, and who leads there: pure functions of the host of each group rank."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gather_core.local_store import ScopedStore
from gather_core.transport import GroupContext


@dataclass(frozen=True)
class HostMap:
    """The hosts of a group as one of its ranks sees them; hosts are numbered in the order of their first ranks."""

    rank: int
    """This rank, in group ranks."""
    members: tuple[tuple[int, ...], ...]
    """Of each host: its group ranks, in order; the first leads."""
    host: int
    """This rank's."""

    @classmethod
    def of(cls, rank: int, hosts: Sequence[int]) -> "HostMap":
        """Builds it from the host of each group rank."""
        ranks_by_host: dict[int, list[int]] = {}
        for other, host in enumerate(hosts):
            ranks_by_host.setdefault(host, []).append(other)
        members = tuple(tuple(ranks) for ranks in ranks_by_host.values())
        return cls(rank, members, next(host for host, ranks in enumerate(members) if rank in ranks))

    @property
    def num_hosts(self) -> int:
        """How many hosts there are."""
        return len(self.members)

    @property
    def world_size(self) -> int:
        """Number of ranks on all hosts."""
        return sum(map(len, self.members))

    @property
    def here(self) -> tuple[int, ...]:
        """The group ranks of this host."""
        return self.members[self.host]

    @property
    def leaders(self) -> tuple[int, ...]:
        """The group rank that leads each host."""
        return tuple(ranks[0] for ranks in self.members)

    @property
    def leads(self) -> bool:
        """Whether this rank leads its host."""
        return self.here[0] == self.rank

    @property
    def most_on_one_host(self) -> int:
        """Number of ranks on the host that has most."""
        return max(map(len, self.members))


def context_among(context: GroupContext, name: str, ranks: Sequence[int], hosts: tuple[int, ...]) -> GroupContext:
    """The place of this rank among some of the group's ranks, which are on these hosts."""
    return replace(
        context,
        rank=ranks.index(context.rank),
        world_size=len(ranks),
        store=ScopedStore(name, context.store),
        ranks=tuple(context.ranks[rank] for rank in ranks),
        scope=f"{context.scope}/{name}",
        hosts=hosts,
    )
