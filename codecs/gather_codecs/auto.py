"""Pickle, and cloudpickle for those parts of an object that pickle cannot name."""

import abc
import copyreg
import dataclasses
import importlib
import io
import pickle
import sys
import types
import typing
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from gather_codecs.pickle5 import Encoder, Idle, PickleCodec, of_this_python

_SINGLETON_TYPES = (type(None), type(...), type(NotImplemented))
"""No module has these under their names, but pickle knows them."""


class AutoCodec(PickleCodec):
    """As `pickle`, except for what it cannot name, which goes by value as with `cloudpickle`: lambdas, local classes.

    Each part of an object is asked once, so what pickle can send arrives as pickle sends it, wherever it stands:
    classes and functions of a module by name, those of `__main__` too, which every rank must then have. A class that
    goes by value is another class on the ranks that receive it. What would arrive as something else is refused, though
    `cloudpickle` takes it: a memoryview, an open file. Asking costs about 0.2 us more than pickle for each part that is
    neither a number nor text nor a plain container.

    All ranks must run the same version of Python, as with cloudpickle.
    """

    name = "auto"
    _idle = Idle()

    def fingerprint(self) -> str:
        return of_this_python(self.spec)

    def _new_encoder(self) -> Encoder:
        return _Encoder()


class _Pickler(pickle.Pickler):
    by_value: Any = None
    """What says how to send by value; from then on this pickler is good for no other object."""

    def reducer_override(self, obj: Any) -> Any:
        """Called by the pickler for each part that is neither a number nor text nor a plain container."""
        kind = type(obj)
        if (kind is not types.FunctionType and not issubclass(kind, type)) or _pickle_can(obj):
            return NotImplemented
        if self.by_value is None:
            # Imported where it is needed: most jobs never do.
            import cloudpickle

            # Only to be asked how: it writes nothing, but knows which functions of one object share their globals.
            self.by_value = cloudpickle.Pickler(io.BytesIO(), 5)
        return self.by_value.reducer_override(obj)


def _pickle_can(obj: Any) -> bool:
    """Whether pickle finds this class or function under its name, or has a reducer of the user's for its metaclass."""
    name: str = getattr(obj, "__qualname__", None) or obj.__name__
    try:
        found: Any = _module_of(obj, name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception:  # whatever it is, pickle does not find it either
        found = None
    return found is obj or any(obj is kind for kind in _SINGLETON_TYPES) or type(obj) in copyreg.dispatch_table


def _module_of(obj: Any, name: str) -> types.ModuleType:
    module_name = getattr(obj, "__module__", None) or pickle.whichmodule(obj, name)  # type: ignore[attr-defined]
    return sys.modules.get(module_name) or importlib.import_module(module_name)


def _as_cloudpickle(obj: Any) -> Any:
    import cloudpickle

    return cloudpickle.Pickler.dispatch_table[type(obj)](obj)


def _reduce_method(method: types.MethodType) -> Any:
    """By its name where the object has it under that, as pickle does without looking."""
    found = getattr(method.__self__, method.__func__.__name__, None)
    is_found = type(found) is types.MethodType and found.__func__ is method.__func__
    return method.__reduce__() if is_found else _as_cloudpickle(method)


def _reduce_type_variable(variable: Any) -> Any:
    module = sys.modules.get(variable.__module__)
    is_found = getattr(module, variable.__name__, None) is variable
    return variable.__reduce__() if is_found else _as_cloudpickle(variable)


def _reduce_file(file: io.TextIOWrapper) -> Any:
    return _as_cloudpickle(file) if file is sys.stdout or file is sys.stderr else file.__reduce_ex__(5)


_REDUCERS: Mapping[type, Callable[[Any], Any]] = {
    **dict.fromkeys(
        [
            *(types.ModuleType, types.CodeType, types.CellType, types.GetSetDescriptorType, types.MappingProxyType),
            *(property, classmethod, staticmethod, weakref.WeakSet, dataclasses._FIELD_BASE),  # type: ignore[attr-defined]
            *(abc.abstractproperty, abc.abstractclassmethod, abc.abstractstaticmethod),
            *(type({}.keys()), type({}.values()), type({}.items())),
            *(type(OrderedDict().keys()), type(OrderedDict().values()), type(OrderedDict().items())),
        ],
        _as_cloudpickle,
    ),
    types.MethodType: _reduce_method,
    typing.TypeVar: _reduce_type_variable,
    io.TextIOWrapper: _reduce_file,
}
"""For types that pickle cannot send at all, or not always, and that classes and functions may hold."""


class _Encoder(Encoder):
    _new_pickler = _Pickler
    _more_reducers = _REDUCERS
    _pickler: _Pickler

    def starts_over(self) -> bool:
        return self._pickler.by_value is None and super().starts_over()
