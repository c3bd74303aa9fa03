"""A model of areas and loans over shared memory, and an explorer that goes through every order of its ranks' steps.

As in `double_buffer`, ranks write, give and take tokens, and read. What they write goes into an area that is free, and
is lent where enough others are free; what a rank has borrowed it may return at any later time, or never. A rank that
reads anything but what was written for the exchange, or holds it while it is written over, has found a fault.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from explorer import first_fault

TORN = -1
Pairs = frozenset[tuple[int, int, int, int]]


class State(NamedTuple):
    """Of all ranks; each item has one entry per rank."""

    steps: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    """How many each reader has not taken."""
    areas: tuple[tuple[int, ...], ...]
    """The exchange that was written into each, or `TORN`."""
    not_returned: tuple[tuple[int, ...], ...]
    """How many have each area on loan, as its rank knows."""
    returned: tuple[tuple[int, ...], ...]
    """Tokens of loans that it has not seen yet."""
    chosen: tuple[int, ...]
    being_read: tuple[int, ...]
    """The area of the last payload that was not lent, or -1."""
    extents: tuple[tuple[tuple[int, bool], ...], ...]
    """For each turn: area, and whether it is lent."""
    held: Pairs
    """(reader, writer, area, exchange) of what is borrowed."""


class LoanModel:
    """What is explored.

    Args:
        world_size: How many ranks.
        num_exchanges: How many exchanges each does.
        num_areas: Of each rank.
        never_lent: How many of them stay for payloads that are not lent.
        knows_being_read: Whether a rank leaves alone what it has not lent in the last exchange.
        returns_early: Whether borrowers give the token back and go on to read.
    """

    def __init__(
        self,
        world_size: int,
        num_exchanges: int,
        *,
        num_areas: int = 3,
        never_lent: int = 2,
        knows_being_read: bool = True,
        returns_early: bool = False,
    ) -> None:
        self._ranks = range(world_size)
        self._num_exchanges = num_exchanges
        self._num_areas = num_areas
        self._never_lent = never_lent
        self._knows_being_read = knows_being_read
        self._returns_early = returns_early
        self._program = [
            ("begin to write", 0),
            ("hand over", 0),
            *(("give", distance) for distance in range(1, world_size)),
            *(("take", distance) for distance in range(1, world_size)),
            *((action, distance) for distance in range(1, world_size) for action in ("read", "have read")),
        ]

    def fault(self) -> str:
        """Explores every order; returns the first fault, or nothing."""
        nobody = tuple((0,) * len(self._ranks) for _ in self._ranks)
        empty = tuple((0,) * self._num_areas for _ in self._ranks)
        extents = tuple(tuple((0, False) for _ in self._ranks) for _ in range(2))
        none = tuple(-1 for _ in self._ranks)
        start = State((0,) * len(self._ranks), nobody, empty, empty, empty, none, none, extents, frozenset())
        return first_fault(start, self._successors)

    def _successors(self, state: State) -> Iterator[tuple[str, State]]:
        for loan in state.held:
            yield "", self._returned(state._replace(held=state.held - {loan}), loan[1], loan[2])
        for rank, done in enumerate(state.steps):
            number, step = divmod(done, len(self._program))
            if number < self._num_exchanges:
                action, distance = self._program[step]
                peer = (rank + distance) % len(self._ranks)
                yield from self._step(state, rank, number + 1, action, peer)

    def _step(self, state: State, rank: int, number: int, action: str, peer: int) -> Iterator[tuple[str, State]]:
        turn = number % 2
        fault = ""
        if action == "begin to write":
            state = self._with_tokens_taken(state, rank)
            area = self._free_area(state, rank)
            if area is None:
                yield f"rank {rank} has no free area", state
                return
            fault = self._held_fault(state, rank, area)
            state = _set(state, "areas", rank, _at(state.areas[rank], area, TORN))
            state = _set(state, "chosen", rank, area)
        elif action == "hand over":
            state = _set(state, "areas", rank, _at(state.areas[rank], state.chosen[rank], number))
            state = self._handed_over(state, rank, turn)
        elif action == "give":
            state = _set(state, "tokens", rank, _at(state.tokens[rank], peer, state.tokens[rank][peer] + 1))
        elif action == "take":
            if not state.tokens[peer][rank]:
                return
            state = _set(state, "tokens", peer, _at(state.tokens[peer], rank, state.tokens[peer][rank] - 1))
        else:
            area, lent = state.extents[turn][peer]
            if state.areas[peer][area] != number and not (lent and action == "have read"):
                fault = f"rank {rank} read something else than exchange {number} of rank {peer}"
            if lent and action == "read":
                state = state._replace(held=state.held | {(rank, peer, area, number)})
                if self._returns_early:
                    state = self._returned(state, peer, area)
        yield fault, state._replace(steps=_at(state.steps, rank, state.steps[rank] + 1))

    def _free_area(self, state: State, rank: int) -> int | None:
        for area in range(self._num_areas):
            being_read = self._knows_being_read and state.being_read[rank] == area
            if not state.not_returned[rank][area] and not being_read:
                return area
        return None

    def _handed_over(self, state: State, rank: int, turn: int) -> State:
        state = self._with_tokens_taken(state, rank)
        area = state.chosen[rank]
        lent = state.not_returned[rank].count(0) > self._never_lent
        if lent:
            state = _set(state, "not_returned", rank, _at(state.not_returned[rank], area, len(self._ranks) - 1))
        state = _set(state, "being_read", rank, -1 if lent else area)
        return _set(state, "extents", turn, _at(state.extents[turn], rank, (area, lent)))

    def _with_tokens_taken(self, state: State, rank: int) -> State:
        left = tuple(lent - back for lent, back in zip(state.not_returned[rank], state.returned[rank], strict=True))
        state = _set(state, "not_returned", rank, left)
        return _set(state, "returned", rank, (0,) * self._num_areas)

    def _returned(self, state: State, lender: int, area: int) -> State:
        return _set(state, "returned", lender, _at(state.returned[lender], area, state.returned[lender][area] + 1))

    def _held_fault(self, state: State, lender: int, area: int) -> str:
        for reader, writer, held_area, number in state.held:
            if (writer, held_area) == (lender, area):
                return f"rank {lender} writes over what rank {reader} has borrowed for exchange {number}"
        return ""


def _at(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    return (*items[:index], item, *items[index + 1 :])


def _set(state: State, field: str, rank: int, value: object) -> State:
    changed: dict[str, Any] = {field: _at(getattr(state, field), rank, value)}
    return state._replace(**changed)
