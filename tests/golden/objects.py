"""Which objects golden vectors hold, by codec and by name.

Add objects, and never change one that is there: its frames are in the files of every wire version since.
"""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from golden.arrays import ARRAYS, PICKLED, RAW, TENSORS, large_tensor
from golden.classes import Batch, Color, Frozen, Mode, Point, Row, double
from golden.plain import PLAIN, VALUES, Makers


@dataclass(frozen=True)
class Golden:
    """One object, and what its frames promise."""

    make: Callable[[], Any]
    spec: str
    is_exact: bool = False
    """Whether all releases of one wire version write exactly these frames."""
    is_code: bool = False
    """Whether the frames hold code: read by the Python and the cloudpickle that wrote them, and maybe by no other."""
    look: Callable[[Any], object] = lambda obj: obj
    """What is compared: the object itself, or what one does that cannot be compared."""


def _all(makers: Makers, spec: str, *, is_exact: bool = False) -> dict[str, Golden]:
    return {name: Golden(make, spec, is_exact) for name, make in makers.items()}


_TEXT_AND_RECORDS: Makers = {name: RAW[name] for name in ("numpy_text", "numpy_bytes", "numpy_records")}

_CLASSES: Makers = {
    "namedtuple": lambda: [Point(1, (2,)), Point(Point(0))],
    "enum": lambda: [Color.RED, {Color.BLUE: 1}],
    "flag": lambda: [Mode.READ, Mode.READ | Mode.WRITE, Mode(0)],
    "dataclass": lambda: Row([1, 2], Row([])),
    "dataclass_with_slots": lambda: Frozen("k", {"v": [1.5]}),
    "class": lambda: Batch(large_tensor(), "n"),
}

_BY_NAME: Makers = {
    "function": lambda: [double, len],
    "partial": lambda: functools.partial(operator.add, 1),
    "large_bytes": lambda: {"head": 1, "bytes": bytes(range(256)) * 512, "bytearray": bytearray(b"ab" * 65_536)},
}


def _of_pickle(spec: str) -> dict[str, Golden]:
    makers = PLAIN | VALUES | ARRAYS | TENSORS | PICKLED | _CLASSES | _BY_NAME
    goldens = _all(makers, spec)
    return goldens | {
        "partial": Golden(makers["partial"], spec, look=lambda add_1: add_1(2)),
        "torch_shared": Golden(makers["torch_shared"], spec, look=lambda pair: (pair, pair[0] is pair[1])),
    }


def _compiled(text: str) -> Any:
    """What a text calls `made`, as of no module and no file, whose path its code would hold."""
    namespace: dict[str, Any] = {"__name__": "no_module", "double": double}
    exec(compile(text, "<golden>", "exec"), namespace)
    return namespace["made"]


_CODE = {
    "lambda": ("made = lambda x: [x, double(x)]", lambda made: made(3)),
    "closure": ("def outer(n):\n return lambda x: n + x\nmade = outer(5)", lambda made: made(3)),
    "class": ("class made:\n def __init__(self):\n  self.x = [1]", lambda made: (made.__name__, vars(made()))),
}


def _by_value(spec: str) -> dict[str, Golden]:
    return {
        f"{name}_by_value": Golden(functools.partial(_compiled, text), spec, is_code=True, look=look)
        for name, (text, look) in _CODE.items()
    }


_AS_WITH_PICKLE = (
    *("numpy_scalars", "numpy_dtypes", "numpy_dtypes_of_arrays", "torch_dtypes", "torch_dtypes_of_tensors"),
    *PLAIN,
)
"""Long, and no other where it is only code that is sent in another way."""


def _with_code(spec: str) -> dict[str, Golden]:
    by_name = {name: golden for name, golden in _of_pickle(spec).items() if name not in _AS_WITH_PICKLE}
    return by_name | _by_value(spec)


GOLDENS: dict[str, dict[str, Golden]] = {
    "pickle": _of_pickle("pickle"),
    "cloudpickle": _with_code("cloudpickle"),
    "auto": _with_code("auto"),
    "msgpack": {
        **_all(PLAIN | VALUES | ARRAYS | TENSORS | _CLASSES | _TEXT_AND_RECORDS, "msgpack", is_exact=True),
        "sorted_sets": Golden(lambda: [{3, 1, (2,)}, frozenset({"b", "a"})], "msgpack:sorted_sets=true", is_exact=True),
    },
    "raw": _all(RAW, "raw", is_exact=True),
    "zstd": {
        "stored": Golden(lambda: b"too small to compress", "raw+zstd", is_exact=True),
        "compressed": Golden(lambda: b"0123456789" * 5000, "raw+zstd"),
        "from_200_bytes": Golden(lambda: ["ab" * 200], "msgpack+zstd:min_nbytes=200"),
        "dense": Golden(lambda: bytes(2_000_000), "raw+zstd:level=3"),
        "several_frames": Golden(lambda: [large_tensor(), {"x": 1}], "pickle+zstd:min_nbytes=1000"),
    },
}
