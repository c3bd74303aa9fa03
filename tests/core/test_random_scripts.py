"""Random scripts of operations and failures: every rank gets what the model says, over any transport."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gather_core import Gatherer, Transport
from gather_transports.threads import ThreadGroup, ThreadRank, ThreadsTransport
from random_scripts import SLOT_NBYTES, Outcome, expected, script
from rank_pool import RankPool
from scripted_operations import perform
from thread_gatherers import FixedSlots

WORLD_SIZE = 3
THREADS_SEEDS, PROCESS_SEEDS = range(1000), range(40)
Outcomes = list[list[Outcome]]


def outcomes_on_rank(seeds: Sequence[int], world_size: int, construct: Callable[..., Gatherer]) -> Outcomes:
    """(all ranks) What every step of every script gives here; ends with an operation that must succeed."""
    settings: dict[str, Any] = {"slot_nbytes": SLOT_NBYTES, "timeout_s": 50}
    with construct(**settings) as lenient, construct(overflow="error", **settings) as strict:
        outcomes = []
        for seed in seeds:
            steps = script(seed, world_size)
            outcomes.append([perform(step, strict if step.strict else lenient) for step in steps])
        everyone = [*range(world_size)]
        assert lenient.all_gather(lenient.rank) == strict.all_gather(strict.rank) == everyone
    return outcomes


def outcomes_over_threads(seeds: Sequence[int], make_transport: type[Transport] = ThreadsTransport) -> list[Outcomes]:
    def run_rank(member: ThreadRank) -> Outcomes:
        return outcomes_on_rank(
            seeds, WORLD_SIZE, lambda **settings: Gatherer(transport=make_transport(), group=member, **settings)
        )

    outcomes: list[Outcomes] = []
    for outcome in ThreadGroup(WORLD_SIZE).run(run_rank):
        if isinstance(outcome, BaseException):
            raise outcome
        outcomes.append(outcome)
    return outcomes


def outcomes_of_the_model(seeds: Sequence[int]) -> list[Outcomes]:
    return [
        [[expected(step, rank, WORLD_SIZE) for step in script(seed, WORLD_SIZE)] for seed in seeds]
        for rank in range(WORLD_SIZE)
    ]


def differences(seeds: Sequence[int], found: list[Outcomes], right: list[Outcomes]) -> list[Any]:
    """Seed, rank and step of what differs, with both."""
    return [
        (seed, rank, script(seed, WORLD_SIZE)[step], found[rank][index][step], outcome)
        for rank, scripts in enumerate(right)
        for (index, seed) in enumerate(seeds)
        for step, outcome in enumerate(scripts[index])
        if found[rank][index][step] != outcome
    ]


@pytest.mark.fault(51)
@pytest.mark.parametrize("transport", [ThreadsTransport, FixedSlots])
def test_a_thousand_random_scripts_leave_all_ranks_in_step_and_with_what_the_model_says(
    transport: type[Transport],
) -> None:
    seeds = THREADS_SEEDS[::2] if transport is FixedSlots else THREADS_SEEDS[1::2]
    assert differences(seeds, outcomes_over_threads(seeds, transport), outcomes_of_the_model(seeds)) == []


@pytest.mark.fault(51)
@pytest.mark.parametrize("transport", ["gloo", "shm"])
def test_processes_get_what_threads_get(pool: RankPool, transport: str) -> None:
    def body(rank: int, world_size: int, transport: str) -> Outcomes:
        return outcomes_on_rank(PROCESS_SEEDS, world_size, lambda **settings: Gatherer(transport=transport, **settings))

    assert (
        differences(PROCESS_SEEDS, pool.values(WORLD_SIZE, body, transport), outcomes_over_threads(PROCESS_SEEDS)) == []
    )


def test_scripts_have_every_outcome_there_is() -> None:
    found = {outcome[0] for rank in outcomes_of_the_model(THREADS_SEEDS) for steps in rank for outcome in steps}
    assert found == {
        "ok",
        "RemoteEncodeError",
        "RemoteCallError",
        "RemoteDecodeError",
        "ReduceError",
        "SlotOverflowError",
        "DecodeError",
    }
