"""docs/how-to/accelerate.md: what the processes of an Accelerator gather through a Gatherer."""

from typing import Any

import pytest

from accelerate_samples import gather_epoch, gather_for_metrics
from gather_core import Gatherer
from launched_rank import as_under_torchrun
from page_example import page_shows
from rank_pool import RankPool

pytest.importorskip("accelerate", reason="accelerate is in the dependency group `integrations`")

WORDS = ["zero", "one", "two", "three", "four", "five", "six"]


def _on_accelerator(rank: int, world_size: int, body: Any, **options: Any) -> Any:
    """Returns `body(accelerator, loader over WORDS in batches of 2, gatherer)`; forgets what accelerate keeps."""
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState, GradientState
    from torch.utils.data import DataLoader

    with as_under_torchrun(rank, world_size):
        try:
            accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
            loader = accelerator.prepare(DataLoader(WORDS, batch_size=2))  # type: ignore[arg-type]
            with Gatherer("msgpack", timeout_s=30) as gatherer:
                assert (gatherer.rank, gatherer.world_size) == (accelerator.process_index, accelerator.num_processes)
                return body(accelerator, loader, gatherer)
        finally:
            GradientState._reset_state()
            AcceleratorState._reset_state(reset_partial_state=True)


def test_the_page_shows_the_example_as_it_is() -> None:
    assert page_shows("how-to/accelerate.md", "accelerate_samples.py")


def test_each_step_has_the_samples_of_all_ranks_and_the_last_one_none_twice(pool: RankPool) -> None:
    def steps(accelerator: Any, loader: Any, gatherer: Gatherer) -> list[list[dict[str, str]]]:
        return [gather_for_metrics(accelerator, gatherer, [{"word": word} for word in batch]) for batch in loader]

    def body(rank: int, world_size: int) -> Any:
        return _on_accelerator(rank, world_size, steps)

    rows = [{"word": word} for word in WORDS]
    assert pool.values(2, body) == [[rows[:4], rows[4:]]] * 2


def test_uneven_batches_of_an_epoch_come_in_the_order_of_the_data_set_on_one_rank(pool: RankPool) -> None:
    def epoch(accelerator: Any, loader: Any, gatherer: Gatherer) -> list[str] | None:
        return gather_epoch(gatherer, [[word.upper() for word in batch] for batch in loader], dst=1)

    def body(rank: int, world_size: int) -> Any:
        return _on_accelerator(rank, world_size, epoch, even_batches=False)

    assert pool.values(2, body) == [None, [word.upper() for word in WORDS]]
