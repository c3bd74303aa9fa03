"""Any Python objects of the processes of an Accelerator, gathered by a Gatherer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from gather_core import Gatherer, interleave

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def gather_for_metrics(accelerator: "Accelerator", gatherer: Gatherer, samples: Sequence[T]) -> list[T]:
    """(all ranks) The samples of this step, of all ranks, without those that fill up the last batch."""
    gathered = [sample for part in gatherer.all_gather(samples, tag="samples") for sample in part]
    state = accelerator.gradient_state
    return gathered[: state.remainder] if state.end_of_dataloader and state.remainder > 0 else gathered


def gather_epoch(gatherer: Gatherer, batches: Sequence[Sequence[T]], dst: int = 0) -> list[T] | None:
    """(all ranks) On `dst` the samples of all ranks' batches, in the order of the data set; None elsewhere."""
    parts = gatherer.gather(batches, dst=dst, tag="epoch")
    return None if parts is None else [sample for batch in interleave(parts) for sample in batch]
