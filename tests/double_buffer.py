"""A model of the exchange over shared memory, and an explorer that goes through every order of its ranks' steps.

Each rank repeats: write its payload (which others may see half done), give its tokens, take one of every peer, read
every peer's slot (which takes a while), and so on. Nothing else orders what the ranks do. A rank that reads anything
but what its peer wrote for this very exchange has found a fault.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from explorer import first_fault

WRITE, GIVE, TAKE, READ, READ_PREVIOUS = "write", "give", "take", "read", "read previous"
_TORN = -1
Slots = tuple[int, ...]
State = tuple[tuple[int, ...], tuple[Slots, ...], tuple[tuple[int, ...], ...]]
"""Steps done by each rank; what lies in each rank's slots; how many tokens each (writer, reader) has not taken."""


@dataclass(frozen=True)
class Model:
    """What is explored.

    Args:
        world_size: How many ranks.
        num_exchanges: How many exchanges each does.
        num_slots: Slots that each rank uses in turn.
        order: What a rank does in an exchange.
    """

    world_size: int
    num_exchanges: int = 3
    num_slots: int = 2
    order: tuple[str, ...] = (WRITE, GIVE, TAKE, READ)

    def program(self, rank: int) -> list[tuple[str, int, bool]]:
        """The steps of one exchange: what, with which peer, and whether it is the end of a step that takes a while."""
        peers = [peer for peer in range(self.world_size) if peer != rank]
        steps: list[tuple[str, int, bool]] = []
        for action in self.order:
            partners = [rank] if action == WRITE else peers
            for peer in partners:
                if action not in (GIVE, TAKE):
                    steps.append((action, peer, False))
                steps.append((action, peer, True))
        return steps

    def fault(self) -> str:
        """Explores every order; returns the first fault, or nothing."""
        programs = [self.program(rank) for rank in range(self.world_size)]
        start: State = (
            (0,) * self.world_size,
            (((0,) * self.num_slots),) * self.world_size,
            ((0,) * self.world_size,) * self.world_size,
        )
        return first_fault(start, lambda state: self._successors(state, programs))

    def _successors(self, state: State, programs: list[list[tuple[str, int, bool]]]) -> Iterator[tuple[str, State]]:
        is_stuck = any(done < self.num_exchanges * len(programs[0]) for done in state[0])
        for rank, done in enumerate(state[0]):
            number, step = divmod(done, len(programs[rank]))
            if number < self.num_exchanges:
                for successor in self._step(state, rank, number + 1, programs[rank][step]):
                    is_stuck = False
                    yield successor
        if is_stuck:
            yield f"stuck in {state}", state

    def _step(self, state: State, rank: int, number: int, step: tuple[str, int, bool]) -> Iterator[tuple[str, State]]:
        done, slots, tokens = state
        action, peer, is_end = step
        turn = number % self.num_slots
        fault = ""
        if action == WRITE:
            own = slots[rank]
            slots = _replace(slots, rank, _replace(own, turn, number if is_end else _TORN))
        elif action == GIVE:
            tokens = _replace(tokens, rank, _replace(tokens[rank], peer, tokens[rank][peer] + 1))
        elif action == TAKE:
            if not tokens[peer][rank]:
                return
            tokens = _replace(tokens, peer, _replace(tokens[peer], rank, tokens[peer][rank] - 1))
        else:
            expected = number - 1 if action == READ_PREVIOUS else number
            found = slots[peer][expected % self.num_slots]
            if found != expected and expected:
                what = "half a payload" if found == _TORN else f"the payload of exchange {found}"
                fault = f"rank {rank} found {what} in the slot of rank {peer} for exchange {expected}"
        yield fault, (_replace(done, rank, done[rank] + 1), slots, tokens)


def _replace(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    return (*items[:index], item, *items[index + 1 :])
