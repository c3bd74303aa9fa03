"""How long a rank of shared memory spins before it sleeps."""

import time
from collections.abc import Callable

import pytest

from gather_transports import semaphores, shm_spin
from gather_transports.shm_control import ControlBlock, create_control
from gather_transports.shm_spin import Spinner
from shm_ranks import new_file


class Turns:
    """Stands for the clock and for the other processes of this CPU."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turn_s = 10e-6
        self.num_turns = 0
        self.in_turn: Callable[[], None] = lambda: None

    def take(self) -> None:
        self.num_turns += 1
        self.now += self.turn_s
        self.in_turn()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns()
    monkeypatch.setattr(shm_spin, "perf_counter", lambda: turns.now)
    monkeypatch.setattr(shm_spin, "let_others_run", turns.take)
    return turns


@pytest.fixture
def control() -> ControlBlock:
    with new_file() as fd:
        create_control(fd, 2)
        return ControlBlock(fd, 0, 2)


@pytest.fixture
def token(control: ControlBlock) -> semaphores.Semaphore:
    return control.token(1, 0)


def num_turns(spinner: Spinner, token: semaphores.Semaphore, turns: Turns) -> int:
    before = turns.num_turns
    spinner.take(token)
    return turns.num_turns - before


def test_a_token_that_is_there_is_taken_at_once(token: semaphores.Semaphore, turns: Turns) -> None:
    semaphores.post(token)
    assert Spinner().take(token)
    assert turns.num_turns == 0
    assert semaphores.try_wait(token) != 0


def test_others_run_until_the_token_comes(token: semaphores.Semaphore, turns: Turns) -> None:
    def give() -> None:
        if turns.num_turns == 7:
            semaphores.post(token)

    turns.in_turn = give
    assert Spinner().take(token)
    assert turns.num_turns == 7


def test_spinning_ends_where_it_is_in_vain_and_gets_another_chance_ever_more_rarely(
    token: semaphores.Semaphore, turns: Turns
) -> None:
    spinner = Spinner()
    spun = [num_turns(spinner, token, turns) for _ in range(100)]
    assert spun[:6] == [50, 25, 13, 7, 4, 0]
    assert [number for number, count in enumerate(spun) if count] == [0, 1, 2, 3, 4, 15, 47]
    assert (spun[15], spun[47]) == (50, 50)


def test_what_comes_in_time_makes_it_spin_again(token: semaphores.Semaphore, turns: Turns) -> None:
    spinner = Spinner()
    assert [spinner.take(token) for _ in range(15)] == [False] * 15
    turns.in_turn = lambda: semaphores.post(token)
    assert spinner.take(token)
    turns.in_turn = lambda: None
    assert num_turns(spinner, token, turns) == 50


def test_other_work_on_the_cpu_ends_it_at_once_but_a_token_that_came_meanwhile_is_taken(
    token: semaphores.Semaphore, turns: Turns
) -> None:
    spinner = Spinner()
    turns.turn_s = 3e-3
    assert [num_turns(spinner, token, turns) for _ in range(300)] == [1] + [0] * 127 + [1] + [0] * 171
    spinner = Spinner()
    turns.in_turn = lambda: semaphores.post(token)
    assert spinner.take(token)
    assert num_turns(spinner, token, turns) == 0


def test_letting_others_run_takes_no_time_where_nobody_wants_to() -> None:
    started = time.perf_counter()
    for _ in range(1000):
        shm_spin.let_others_run()
    assert time.perf_counter() - started < 5
