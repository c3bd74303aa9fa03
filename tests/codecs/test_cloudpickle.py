"""CloudpickleCodec: what pickle cannot name travels by value, tensors as with pickle."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fresh_python import run_python
from gather_codecs.cloudpickle5 import CloudpickleCodec
from gather_codecs.zstandard_frames import ZstdCodec


@pytest.fixture
def codec() -> CloudpickleCodec:
    return CloudpickleCodec()


def test_lambdas_closures_and_local_classes_come_back(codec: CloudpickleCodec, roundtrip: Any) -> None:
    offset = 3

    class Local:
        value = offset

    back = roundtrip(codec, [lambda x: x + offset, Local()])
    assert back[0](4) == 7
    assert back[1].value == 3


@pytest.mark.plan(26)
def test_code_of_main_runs_in_a_process_that_has_never_seen_it(codec: CloudpickleCodec, tmp_path: Path) -> None:
    sender = (
        "import pathlib, sys\n"
        "from gather_codecs.cloudpickle5 import CloudpickleCodec\n"
        "class Point:\n    def double(self):\n        return 2 * self.x\n"
        "point = Point(); point.x = 21\n"
        "pathlib.Path(sys.argv[1]).write_bytes(CloudpickleCodec().encode(point)[0])\n"
    )
    receiver = (
        "import pathlib, sys\n"
        "from gather_codecs.cloudpickle5 import CloudpickleCodec\n"
        "print(CloudpickleCodec().decode([memoryview(pathlib.Path(sys.argv[1]).read_bytes())]).double())\n"
    )
    assert run_python(sender, str(tmp_path / "frame")) == ""
    assert run_python(receiver, str(tmp_path / "frame")) == "42"


def test_tensors_and_arrays_inside_a_closure_travel_out_of_band_and_as_elements(
    codec: CloudpickleCodec, roundtrip: Any
) -> None:
    view, array = torch.arange(1_000_000.0)[:5000], np.arange(5000)

    def total() -> float:
        return float(view.sum()) + float(array.sum())

    assert sum(len(frame) for frame in codec.encode(total)) < 70_000
    assert len(codec.encode(total)) == 3
    assert roundtrip(codec, total)() == total()


def test_parameters_bf16_and_sharing_survive(codec: CloudpickleCodec, roundtrip: Any, assert_same: Any) -> None:
    parameter = torch.nn.Parameter(torch.randn(5000).bfloat16())
    back = roundtrip(codec, [parameter, parameter])
    assert_same(back[0], parameter)
    assert back[0] is back[1]


def test_ranks_with_other_versions_of_python_do_not_match(
    codec: CloudpickleCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = codec.fingerprint()
    assert "{}.{}".format(*sys.version_info[:2]) in here
    assert ZstdCodec(codec).fingerprint() == f"{here}+zstd"
    assert codec.spec == "cloudpickle"
    monkeypatch.setattr(sys, "version_info", type("version_info", (), {"major": 3, "minor": 99}))
    assert codec.fingerprint() != here
