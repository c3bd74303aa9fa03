"""Which way Gloo's round 1 travels, and how much it carries: the one place where that is decided.

With s the slot size and W the world size:

| round 1 | | leave one way only, with `--transport` |
|---|---|---|
| (W - 1) W s <= 8 MiB on one host, <= 256 KiB on several | through a hub, rank 0 | |
| s <= 1 MiB | all_to_all | `gloo:hub_up_to_nbytes=0` |
| larger | direct | `gloo:hub_up_to_nbytes=0,all_to_all_up_to_nbytes=0` |

`python -m gather_bench.gloo_table` measures all of them on local ranks and prints them beside the choice; docs/gloo.md
shows what it has printed. A hub costs a hop more than direct exchange and is bound by its host's bandwidth, and saves
most of the messages, W - 1 each way instead of W (W - 1), which is what counts where ranks share the cores of a host.
"""

from dataclasses import dataclass
from typing import Literal

from gather_core.memory import ALIGNMENT

WayName = Literal["hub", "all_to_all", "direct"]

BY_TABLE = -1
HUB_UP_TO_NBYTES_ON_ONE_HOST = 8 << 20
HUB_UP_TO_NBYTES = 256 << 10
ALL_TO_ALL_UP_TO_NBYTES = 1 << 20
_ALL_TO_ALL_BUFFER_NBYTES = 32 << 20
"""What its receive buffer may take beyond the slots themselves; untouched pages cost nothing."""
_CARRIED_UP_TO_NBYTES = 1 << 20
"""Of a payload larger than a slot in round 1; with more, a second round would not be noticed."""
CHUNK_NBYTES = 8 << 20
"""What round 2 sends at a time to each peer."""


@dataclass(frozen=True)
class Choice:
    """The table above: pure functions of sizes and of what is equal on all ranks."""

    world_size: int
    num_hosts: int
    hub_up_to_nbytes: int = BY_TABLE
    all_to_all_up_to_nbytes: int = ALL_TO_ALL_UP_TO_NBYTES

    def round_1(self, slot_nbytes: int) -> tuple[WayName, int]:
        """Returns how round 1 travels, and the most that it carries per rank, in bytes."""
        num_peers = self.world_size - 1
        hub_limit = self.hub_up_to_nbytes
        if hub_limit == BY_TABLE:
            hub_limit = HUB_UP_TO_NBYTES_ON_ONE_HOST if self.num_hosts == 1 else HUB_UP_TO_NBYTES
        if num_peers and num_peers * self.world_size * slot_nbytes <= hub_limit:
            most = hub_limit // (num_peers * self.world_size)
            if num_peers == 1 and self.hub_up_to_nbytes == BY_TABLE:
                most = _CARRIED_UP_TO_NBYTES  # as a hub of two sends no byte that direct exchange would not send
            return "hub", self._carried(slot_nbytes, most)
        if num_peers and slot_nbytes <= self.all_to_all_up_to_nbytes:
            most = min(self.all_to_all_up_to_nbytes, _ALL_TO_ALL_BUFFER_NBYTES // num_peers)
            return "all_to_all", self._carried(slot_nbytes, most)
        return "direct", slot_nbytes

    @staticmethod
    def _carried(slot_nbytes: int, most: int) -> int:
        return max(slot_nbytes, min(most, _CARRIED_UP_TO_NBYTES) & -ALIGNMENT)
