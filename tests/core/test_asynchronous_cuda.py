"""Operations in the background with CUDA tensors: device and streams of the caller."""

from typing import Any

import pytest
import torch

from gather_core import Gatherer

cuda: Any = torch.cuda  # parts of which have no types
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_what_the_callers_stream_is_still_writing_is_waited_for() -> None:
    with Gatherer() as gatherer:
        for number in range(5):
            side = cuda.Stream()
            with torch.cuda.stream(side):
                tensor = torch.zeros(1 << 16, device="cuda")
                cuda._sleep(50_000_000)
                tensor.fill_(number + 1)
                pending = gatherer.all_gather_async(tensor)
            assert not pending.done()
            (got,) = pending.result(30)
            assert torch.equal(got, torch.full((1 << 16,), float(number + 1)))


def test_results_on_the_current_device_are_ready_for_any_stream() -> None:
    with Gatherer(tensor_device="current") as gatherer:
        for number in range(5):
            (got,) = gatherer.all_gather_async(torch.full((1 << 20,), float(number))).result(30)
            with cuda.stream(cuda.Stream()):
                assert got.device.type == "cuda"
                assert bool((got == number).all())


def test_metrics_on_the_device_are_reduced() -> None:
    with Gatherer() as gatherer:
        reduced = gatherer.reduce({"loss": torch.tensor(2.5, device="cuda")}, "mean")
    assert float(reduced["loss"]) == 2.5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_thread_uses_the_device_of_the_thread_that_made_the_gatherer() -> None:
    torch.cuda.set_device(1)
    try:
        with Gatherer(tensor_device="current") as gatherer:
            torch.cuda.set_device(0)
            (got,) = gatherer.all_gather_async(torch.zeros(3)).result(30)
            assert got.device.index == 1
    finally:
        torch.cuda.set_device(0)
