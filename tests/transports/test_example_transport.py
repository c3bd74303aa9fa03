"""The example of docs/write-a-transport.md is used in every way that the page shows, and fails as the page says.

That it keeps the contract is in test_transport_contract.py, whose broken transports are all made of it.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import store_transport
from fake_distribution import install
from gather_core import Gatherer, Transport, TransportTimeoutError, register_transport, registry
from gather_core.testing.transport_exchanges import ExchangeClauses
from page_blocks import script_of
from page_example import page_shows
from rank_pool import RankPool
from store_transport import StoreTransport

PAGE = Path(__file__).parents[2] / "docs" / "write-a-transport.md"
EXAMPLE = Path(store_transport.__file__)


def test_the_page_shows_the_example_as_it_is_and_it_is_short() -> None:
    example = EXAMPLE.read_text()
    assert page_shows(PAGE.name, EXAMPLE.name)
    assert len(example.splitlines()) < 60


class TestRoutedStore(ExchangeClauses):
    """The faster one that the page makes of it."""

    @pytest.fixture(autouse=True)
    def take_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry._transports, "registered", {})
        page: dict[str, Any] = {"__name__": "page"}
        exec(script_of(PAGE), page)
        self.routed: Callable[[], Transport] = page["RoutedStore"]

    def make_transport(self) -> Transport:
        return self.routed()


def gather_by(rank: int, world_size: int, how: str, folder: str) -> list[Any]:
    """Runs in a worker, which serves other tests afterwards."""
    sys.path.insert(0, folder)
    try:
        if how == "register":
            register_transport("store", StoreTransport)
        with Gatherer(transport=StoreTransport() if how == "object" else "store", timeout_s=20) as gatherer:
            return [
                type(gatherer.transport).__name__,
                gatherer.all_gather({"rank": rank, "large": bytes(40_000)}),
                gatherer.gather(rank, dst=1),
                gatherer.broadcast("from two" if rank == 2 else None, src=2),
            ]
    finally:
        sys.path.remove(folder)
        registry._transports.registered.clear()


@pytest.mark.parametrize("how", ["object", "register", "entry point"])
def test_it_is_gathered_with_as_an_object_and_by_name(how: str, pool: RankPool, tmp_path: Path) -> None:
    if how == "entry point":
        install(tmp_path, "gather-store", {"transports": [f"store = {EXAMPLE.stem}:StoreTransport"]})
    gathered = [{"rank": rank, "large": bytes(40_000)} for rank in range(3)]
    expected = [["StoreTransport", gathered, [0, 1, 2] if rank == 1 else None, "from two"] for rank in range(3)]
    assert pool.values(3, gather_by, how, str(tmp_path)) == expected


def test_a_killed_rank_is_named_at_the_deadline_and_everyone_hears_of_it(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> str:
        with Gatherer(transport=StoreTransport(), timeout_s=2 if rank == 0 else 40) as gatherer:
            gatherer.all_gather(rank)
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                gatherer.all_gather(rank)
            except TransportTimeoutError as exc:
                return f"missing {exc.missing}"
            except Exception as exc:
                return f"{type(exc).__name__}: {exc}"
        return "no error"

    outcomes = pool.run(3, body, expect_death=[1])
    assert outcomes[0].value == "missing (1,)"
    assert outcomes[2].value.startswith("AbortedError: rank 0")
    assert outcomes[2].seconds < 20, "it was told, and did not wait for its own deadline"
