"""docs/how-to/fabric.md: what the processes of a Fabric gather through a Gatherer."""

from typing import Any

import pytest
import torch

from fabric_objects import all_gather
from gather_core import Gatherer
from launched_rank import as_under_torchrun
from page_example import page_shows
from rank_pool import RankPool

pytest.importorskip("lightning_fabric", reason="lightning-fabric is in the dependency group `integrations`")


def test_the_page_shows_the_example_as_it_is() -> None:
    assert page_shows("how-to/fabric.md", "fabric_objects.py")


def test_texts_and_tensors_of_uneven_shapes_arrive_beside_each_other(pool: RankPool) -> None:
    def body(rank: int, world_size: int) -> list[Any]:
        from lightning_fabric import Fabric

        with as_under_torchrun(rank, world_size):
            fabric = Fabric(accelerator="cpu", devices=world_size, strategy="ddp")
            fabric.launch()
            with Gatherer("msgpack", timeout_s=30) as gatherer:
                assert (gatherer.rank, gatherer.world_size) == (fabric.global_rank, fabric.world_size)
                return all_gather(fabric, gatherer, {"text": f"from {rank}", "scores": torch.arange(rank + 2.0)})

    for parts in pool.values(2, body):
        assert [part["text"] for part in parts] == ["from 0", "from 1"]
        assert [part["scores"].tolist() for part in parts] == [[0.0, 1.0], [0.0, 1.0, 2.0]]
