"""The double buffer needs no acknowledgements: every order of steps is explored, and planted faults are found."""

import threading
from typing import Any

import pytest

from double_buffer import GIVE, READ, READ_PREVIOUS, TAKE, WRITE, Model
from gather_core.testing.thread_ranks import local_contexts
from gather_transports import semaphores, shm
from gather_transports.shm import ShmTransport


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_two_slots_in_turn_need_no_acknowledgements(world_size: int) -> None:
    assert Model(world_size, num_exchanges=4).fault() == ""


@pytest.mark.parametrize("world_size", [2, 3])
def test_one_slot_is_overwritten_while_others_read(world_size: int) -> None:
    assert "in the slot of rank" in Model(world_size, num_slots=1).fault()


@pytest.mark.fault(24)
def test_a_token_that_is_given_before_the_payload_is_found() -> None:
    assert "in the slot of rank" in Model(2, order=(GIVE, WRITE, TAKE, READ)).fault()


@pytest.mark.fault(24)
def test_reading_before_the_tokens_are_taken_is_found() -> None:
    assert "in the slot of rank" in Model(2, order=(WRITE, GIVE, READ, TAKE)).fault()


def test_reading_after_the_next_token_was_given_is_found() -> None:
    assert Model(2, order=(WRITE, READ_PREVIOUS, GIVE, TAKE)).fault() == ""
    assert "in the slot of rank" in Model(2, order=(WRITE, GIVE, READ_PREVIOUS, TAKE)).fault()


def test_ranks_that_wait_for_each_other_before_they_give_are_found() -> None:
    assert "stuck" in Model(2, order=(WRITE, TAKE, GIVE, READ)).fault()


@pytest.mark.fault(24)
def test_the_transport_does_what_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three exchanges of one of two ranks: where each step is made, its slots in turn, and all before it returns."""
    steps: list[object] = []
    transports = [ShmTransport(), ShmTransport()]
    watched = threading.get_ident()

    def record(step: str, function: Any) -> Any:
        def call(token: Any) -> Any:
            if threading.get_ident() == watched:
                steps.append(step)
            return function(token)

        return call

    contexts = local_contexts(2)
    opening = threading.Thread(target=lambda: transports[1].open(contexts[1], 1024, timeout_s=10))
    opening.start()
    transports[0].open(contexts[0], 1024, timeout_s=10)
    opening.join()
    monkeypatch.setattr(shm, "post", record(GIVE, semaphores.post))
    monkeypatch.setattr(shm, "try_wait", record(TAKE, semaphores.try_wait))
    for number in range(3):
        exchange = threading.Thread(target=lambda: transports[1].all_gather_slots(0, timeout_s=10))
        exchange.start()
        transports[0].slot(1)[0] = number
        steps.append((WRITE, number))
        views = transports[0].all_gather_slots(1, timeout_s=10)
        steps.append((READ, views[0][0]))
        exchange.join()
    for transport in transports:
        transport.close()
    expected = [[(WRITE, number), GIVE, TAKE, (READ, number)] for number in range(3)]
    assert steps == [step for exchange in expected for step in exchange]
