"""Counts what gather-core asks of the job's store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gather_core.local_store import ScopedStore

_VERBS = ("set", "get", "add", "check", "wait", "compare_set", "delete_key")


@contextmanager
def store_calls() -> Iterator[list[str]]:
    """Lists the calls, in any thread of this process, that go through the Gatherers' part of a store."""
    calls: list[str] = []

    def counted(verb: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def count(store: ScopedStore, *args: Any) -> Any:
            calls.append(verb)
            return call(store, *args)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for verb in _VERBS:
            patch.setattr(ScopedStore, verb, counted(verb, getattr(ScopedStore, verb)))
        yield calls
