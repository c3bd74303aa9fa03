"""A small codec that keeps the contract; tests make broken ones of it."""

import ast
import struct
from collections.abc import Sequence
from typing import Any, ClassVar

from gather_core.codec import Codec, DecodeOptions, Frames, Trust
from gather_core.errors import DecodeError, EncodeError
from gather_core.exactness import difference

PLAIN: tuple[object, ...] = (None, 5, -0.0, "text", b"x", [], {"b": [1, (2,)], "a": "y" * 500}, ["z", {3}], [2, 1])


class RightCodec(Codec):
    """Python literals. Two frames: the length of the text, and the text."""

    name = "right"
    trust = Trust.DATA
    objects: ClassVar[Sequence[object]] = PLAIN
    refused: ClassVar[Sequence[object]] = (object(), [float("nan")], bytearray(b"x"))

    def encode(self, obj: object) -> Frames:
        text = self.dumps(obj)
        return [struct.pack("<Q", len(text)), text]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> Any:  # noqa: B008
        if len(frames) != 2 or bytes(frames[0]) != struct.pack("<Q", len(frames[1])):
            raise DecodeError("wrong frames")
        return self.loads(bytes(frames[1]))

    def dumps(self, obj: object) -> bytes:
        text = repr(obj).encode()
        try:
            lost = difference(_literal(text), obj)
        except Exception as exc:
            raise EncodeError("no literal") from exc
        if lost:
            raise EncodeError(lost)
        return text

    def loads(self, text: bytes) -> Any:
        return _literal(text)


def _literal(text: bytes) -> Any:
    while True:
        try:
            return ast.literal_eval(text.decode())
        except SystemError:  # CPython counts how deep `ast` recurses for all threads together, and says where they met
            continue
