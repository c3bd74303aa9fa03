"""Any Python objects of the processes of a Fabric, gathered by a Gatherer."""

from typing import TYPE_CHECKING, TypeVar

from gather_core import Gatherer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def all_gather(fabric: "Fabric", gatherer: Gatherer, data: T) -> list[T]:
    """(all ranks) One entry per rank, whatever they are; the tensors in them lie on the device of this rank."""
    return [fabric.to_device(part) for part in gatherer.all_gather(data, tag="fabric")]
