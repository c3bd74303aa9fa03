"""Code that travels by value, decoded in processes that have never seen it; and codecs in unusual interpreters."""

import importlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cloudpickle
import pytest

from every_codec import EVERY
from fresh_python import run_python
from gather_core.registry import get_codec

_TO_FILE = """
import pickle, sys
from gather_core.registry import get_codec
def send(obj):
    frames = [bytes(memoryview(frame).cast("B")) for frame in get_codec(sys.argv[1]).encode(obj)]
    with open(sys.argv[2], "wb") as file:
        pickle.dump(frames, file)
"""
_FROM_FILE = """
import pickle, sys
from gather_core.registry import get_codec
with open(sys.argv[2], "rb") as file:
    frames = [memoryview(frame) for frame in pickle.load(file)]
def receive():
    return get_codec(sys.argv[1]).decode(frames)
"""
_LOCAL = """
import functools, pickle
def make(base):
    class Local:
        kind = "local"
        def __init__(self, x):
            self.x = x
        def add(self, y):
            return base + self.x + y
    def decorate(function):
        @functools.wraps(function)
        def wrapped(x):
            return [function(x)]
        return wrapped
    @decorate
    def double(x):
        return base * x
    def closure(x):
        return double(x) + [base]
    return [lambda x: x + base, closure, double, Local(5), Local]
send(make(100))
"""
_USE_LOCAL = """
function, closure, double, local, Local = receive()
print(function(1), closure(2), double(3), double.__name__, local.add(1), type(local) is Local, Local(7).x, local.kind)
"""
_MAIN = """
import functools
BASE = 100
class Point:
    scale = 2
    def __init__(self, x):
        self.x = x
    def double(self):
        return self.scale * self.x + BASE
class Child(Point):
    pass
def decorate(function):
    @functools.wraps(function)
    def wrapped(x):
        return [function(x)]
    return wrapped
@decorate
def triple(x):
    return BASE * 3 * x
"""


@pytest.mark.plan(26)
@pytest.mark.parametrize("spec", ["cloudpickle", "auto", "cloudpickle+zstd:min_nbytes=1", "auto+zstd:min_nbytes=1"])
def test_local_code_works_in_a_process_that_has_never_seen_it(spec: str, tmp_path: Path) -> None:
    run_python(_TO_FILE + _LOCAL, spec, str(tmp_path / "frames"))
    printed = run_python(_FROM_FILE + _USE_LOCAL, spec, str(tmp_path / "frames"))
    assert printed == "101 [200, 100] [300] double 106 True 7 local"


@pytest.mark.plan(26)
@pytest.mark.parametrize(
    ("spec", "main"), [("cloudpickle", ""), ("cloudpickle+zstd:min_nbytes=1", ""), ("auto", _MAIN), ("pickle", _MAIN)]
)
def test_code_of_main_works_there_too_by_value_or_as_that_of_the_same_main(
    spec: str, main: str, tmp_path: Path
) -> None:
    """By value with cloudpickle; by name, in ranks that run the same script, with the others."""
    run_python(_TO_FILE + _MAIN + "send([Point(4), Child(5), triple])", spec, str(tmp_path / "frames"))
    use = (
        "point, child, triple = receive()\n"
        "print(point.double(), child.double(), triple(2), type(child).__mro__[1] is type(point))\n"
        "print(type(point) is globals().get('Point'))"
    )
    assert run_python(main + _FROM_FILE + use, spec, str(tmp_path / "frames")).splitlines() == [
        "108 110 [600] True",
        str(bool(main)),
    ]


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    """A module that this process has imported, and no other can."""
    (tmp_path / "only_here.py").write_text("factor = 3\ndef multiply(x):\n    return factor * x\nclass Thing: x = 5\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        imported = importlib.import_module("only_here")
    yield imported
    del sys.modules["only_here"]


@pytest.mark.plan(27)
@pytest.mark.parametrize("spec", ["cloudpickle", "cloudpickle+zstd:min_nbytes=1"])
def test_a_module_registered_by_value_works_where_it_cannot_be_imported(
    spec: str, module: ModuleType, tmp_path: Path
) -> None:
    codec, file = get_codec(spec), tmp_path / "frames"
    use = "multiply, thing = receive()\nprint(multiply(4), thing.x)"
    obj = [module.multiply, module.Thing()]

    def sent() -> str:
        frames = [bytes(memoryview(frame).cast("B")) for frame in codec.encode(obj)]
        file.write_bytes(cloudpickle.dumps(frames))
        return run_python(
            f"try:\n    exec({_FROM_FILE + use!r})\nexcept Exception as exc:\n    print(exc)", spec, str(file)
        )

    assert "No module named 'only_here'" in sent()
    cloudpickle.register_pickle_by_value(module)
    try:
        assert sent() == "12 5"
    finally:
        cloudpickle.unregister_pickle_by_value(module)


_SUBINTERPRETER = """
import sys, _xxsubinterpreters as interpreters
script = '''
import sys
sys.path[:] = {path!r}
from gather_core import Codec, Limits, Gatherer
from gather_core.registry import get_codec
codec = get_codec("pickle")
assert codec.decode([memoryview(frame) for frame in codec.encode({{"a": [1, "x"]}})]) == {{"a": [1, "x"]}}
'''.format(path=sys.path)
number = interpreters.create(isolated=False)
try:
    interpreters.run_string(number, script)
    print("imported")
finally:
    interpreters.destroy(number)
"""


@pytest.mark.plan(49)
def test_a_subinterpreter_imports_the_seams_and_pickles() -> None:
    pytest.importorskip("_xxsubinterpreters", reason="this Python has none")
    assert run_python(_SUBINTERPRETER) == "imported"


@pytest.mark.plan(49)
@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_a_free_threaded_python_imports_every_codec() -> None:
    script = (
        "import sys; from gather_core.registry import get_codec\n"
        "for spec in sys.argv[1:]:\n    codec = get_codec(spec)\n"
        "    print(codec.decode([memoryview(frame) for frame in codec.encode(b'x')]))"
    )
    assert run_python(script, *EVERY).split() == ["b'x'"] * len(EVERY)
