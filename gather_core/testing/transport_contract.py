"""The conformance suite of transports: a pytest class that the test class of a transport inherits."""

from gather_core.testing.transport_exchanges import ExchangeClauses
from gather_core.testing.transport_failures import FailureClauses
from gather_core.testing.transport_lifetime import LifetimeClauses

__all__ = ["TransportContract"]


class TransportContract(ExchangeClauses, FailureClauses, LifetimeClauses):
    """Each test checks one clause of the docstrings of `Transport`, and says what is wrong where it fails.

    ```python
    class TestMyTransport(TransportContract):
        world_sizes = (1, 2, 3)

        def make_transport(self) -> Transport:
            return MyTransport()
    ```

    The ranks are threads of the test's process, whose contexts share a store, a bell and a name. Clauses that
    `Capabilities` exclude are skipped, and a stuck rank is a failure that says where it is stuck.

    A transport whose `join` makes contexts of its own, of ranks that can still be threads, overrides `contexts`:

    ```python
        def contexts(self, world_size: int) -> Sequence[GroupContext]:
            team = ThreadGroup(world_size)  # a new one for every call
            return [MyTransport.join(team.member(rank)) for rank in range(world_size)]
    ```

    A transport whose ranks are processes overrides `run_ranks`. Its `body` is called once in each of them, with what
    `join` returns there; it can be sent by cloudpickle, and raises where the test fails:

    ```python
        def run_ranks(self, world_size: int, body: Callable[[GroupContext], None]) -> None:
            def on_rank(rank: int, world_size: int) -> None:
                body(MyTransport.join(None))

            my_launcher.run(world_size, on_rank)  # raises an AssertionError where one raised, and ends those stuck
    ```

    Where all ranks run pytest itself (as under mpiexec) that is `body(MyTransport.join(None))` alone, with
    `world_sizes` the one size that there is.
    """
