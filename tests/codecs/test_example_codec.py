"""The example of docs/write-a-codec.md keeps the contract, and is used in every way that the page shows."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_distribution import install
from gather_core import Codec, DecodeError, DecodeOptions, Gatherer, register_codec, registry
from gather_core.codec_border import CodecBorder
from gather_core.exactness import difference
from gather_core.testing import CodecContract
from gather_core.testing.codec_frames import Landed, as_views
from page_example import page_shows
from thread_gatherers import on_gatherers

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "safetensors_codec.py"
STATE: dict[str, torch.Tensor] = {
    "weight": torch.arange(6.0).reshape(3, 2).to(torch.bfloat16),
    "steps": torch.tensor(7),
    "mask": torch.tensor([[True, False]]),
}


@pytest.fixture
def codec_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class of the example; what it registers is forgotten at the end."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(registry._codecs, "registered", {})
    yield importlib.import_module(EXAMPLE.stem).SafetensorsCodec
    del sys.modules[EXAMPLE.stem]


@pytest.mark.usefixtures("codec_class")
class TestSafetensorsCodec(CodecContract):
    def make_codec(self) -> Codec:
        codec: Codec = sys.modules[EXAMPLE.stem].SafetensorsCodec()
        return codec

    def objects(self) -> Sequence[object]:
        return [
            *({}, STATE, {"": torch.zeros(0, 3), "b": torch.tensor(-0.0), "a": torch.tensor([float("nan")])}),
            *({"transposed": torch.arange(12.0).reshape(3, 4).t()}, {"large": torch.randn(300, 300)}),
        ]

    def refused(self) -> Sequence[object]:
        tensor = torch.ones(3)
        return [
            *(
                None,
                [tensor],
                tensor,
                {1: tensor},
                {"a": 1.0},
                {"__metadata__": tensor},
                {"a": tensor.to(torch.complex64)},
            ),
            *({"a": torch.nn.Parameter(tensor)}, {"a": torch.ones(3, requires_grad=True)}, {"a": tensor.to_sparse()}),
            *({"a": tensor.to("meta")}, torch.nn.Linear(2, 2).state_dict()),
        ]


def test_the_page_shows_the_example_as_it_is_and_it_is_short() -> None:
    example = EXAMPLE.read_text()
    assert page_shows("write-a-codec.md", EXAMPLE.name)
    assert len(example.splitlines()) < 40


def test_its_frames_together_are_a_safetensors_file(codec_class: Any) -> None:
    loaded: dict[str, torch.Tensor] = importlib.import_module("safetensors.torch").load(
        b"".join(bytes(view) for view in as_views(codec_class().encode(STATE)))
    )
    assert difference({key: loaded[key] for key in STATE}, STATE) is None


def test_a_large_tensor_is_copied_neither_into_its_frame_nor_out_of_a_given_one(codec_class: Any) -> None:
    tensor = torch.randn(300, 300)
    _, frame = as_views(codec_class().encode({"large": tensor}))
    assert torch.frombuffer(frame.obj, dtype=torch.float32).data_ptr() == tensor.data_ptr()
    given = Landed(as_views(codec_class().encode({"large": tensor})), writable=True)
    decoded = codec_class().decode(given.views)["large"]
    given.views[1][:] = bytes(len(given.views[1]))
    assert not decoded.any()


def _spoiled(spoil: Callable[[dict[str, Any]], object], nbytes: int = 0) -> bytes:
    """The header of `{"a": torch.ones(3)}` with something else in it, or that many bytes shorter than it says."""
    header = {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
    spoil(header)
    text = json.dumps(header).encode()
    return (len(text) + nbytes).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda header: header["a"].update(shape=[-1]),
        lambda header: header["a"].update(shape=[2**62]),
        lambda header: header["a"].update(shape=[3.0]),
        lambda header: header["a"].update(dtype="F64"),
        lambda header: header["a"].update(dtype=["F32"]),
        lambda header: header.update(b=header["a"]),
        lambda header: header.clear(),
    ],
)
def test_a_header_that_says_what_is_not_there_is_refused(
    codec_class: Any, spoil: Callable[[dict[str, Any]], object]
) -> None:
    border = CodecBorder(codec_class(), DecodeOptions())
    data = memoryview(bytes(12))
    assert border.decode(0, [memoryview(_spoiled(lambda header: None)), data])
    with pytest.raises(DecodeError):
        border.decode(0, [memoryview(_spoiled(spoil)), data])


def test_a_header_of_another_length_than_it_says_is_refused(codec_class: Any) -> None:
    with pytest.raises(DecodeError, match="as it says"):
        codec_class().decode([memoryview(_spoiled(lambda header: None, nbytes=1)), memoryview(bytes(12))])


@pytest.mark.parametrize("how", ["object", "register", "entry point"])
def test_it_is_gathered_with_as_an_object_and_by_name(
    codec_class: Any, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "register":
        register_codec("safetensors", codec_class)
    if how == "entry point":
        point = f"safetensors = {EXAMPLE.stem}:SafetensorsCodec"
        monkeypatch.syspath_prepend(install(tmp_path, "gather-safetensors", {"codecs": [point]}))

    def body(gatherer: Gatherer) -> tuple[str, list[object]]:
        return gatherer.codec.spec, gatherer.all_gather(STATE | {"rank": torch.tensor(gatherer.rank)})

    expected = [STATE | {"rank": torch.tensor(rank)} for rank in range(3)]
    specs = ["safetensors"] if how == "object" else ["safetensors", "safetensors+zstd:min_nbytes=1"]
    for spec in specs:
        codec = codec_class() if how == "object" else spec
        for used, objects in on_gatherers(3, body, codec=codec):
            assert (used, difference(objects, expected)) == (spec, None)


def test_it_is_accepted_where_code_is_forbidden_and_on_one_rank(
    codec_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATHER_FORBID_CODE", "1")
    with Gatherer(codec_class(), "single") as gatherer:
        assert difference(gatherer.all_gather(STATE), [STATE]) is None
