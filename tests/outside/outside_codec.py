"""A codec of the distribution `gather-outside`, which knows gather-core by its public names only."""

import json
from collections.abc import Sequence

from gather_core import Codec, DecodeError, DecodeOptions, EncodeError, Frames, Trust


class ReversedJsonCodec(Codec):
    """JSON, written backwards.

    Args:
        sort_keys: Dicts are written, and so arrive, in the order of their keys.
    """

    name = "reversed_json"
    trust = Trust.DATA

    def __init__(self, *, sort_keys: bool = False) -> None:
        self._sort_keys = sort_keys

    @property
    def spec(self) -> str:
        return f"{self.name}:sort_keys=true" if self._sort_keys else self.name

    def encode(self, obj: object) -> Frames:
        _check(obj, "$")
        return [json.dumps(obj, sort_keys=self._sort_keys).encode()[::-1]]

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        if len(frames) != 1:
            raise DecodeError(f"{len(frames)} frames instead of one")
        return json.loads(bytes(frames[0])[::-1])


def _check(obj: object, path: str) -> None:
    """Refuses what JSON would change, such as tuples."""
    if type(obj) is dict and all(type(key) is str for key in obj):
        for key, value in obj.items():
            _check(value, f"{path}.{key}")
    elif type(obj) is list:
        for index, value in enumerate(obj):
            _check(value, f"{path}[{index}]")
    elif type(obj) not in (str, int, float, bool, type(None)):
        raise EncodeError(f"JSON does not keep the {type(obj).__name__} at {path}: use lists, and dicts with str keys")
