"""Where in an object lies what the msgpack codec refuses: `$.batch[3].meta`."""

from collections import deque
from collections.abc import Iterator
from typing import Any, TypeAlias

from gather_core.errors import shorten

Step: TypeAlias = "tuple[str, Any]"
"""From a container to a child: what leads to it, and the key or index; made into text only where it is needed."""

_MOST_CHARACTERS = 40
_MOST_BITS = 128
_MOST_OF_A_PATH = 300
_PLAIN_KEYS = (type(None), bool, int, float, str, bytes)


class Refusal(Exception):  # noqa: N818
    """What cannot be kept exactly, and why; on its way up each message that it leaves adds the way down to it."""

    def __init__(self, culprit: object, reason: str) -> None:
        self.reason = reason
        self._culprit = culprit
        self._child = culprit
        self._ways: list[str] = []
        super().__init__(reason)

    @property
    def path(self) -> str:
        """From the object that was to be encoded, `$`, to what is refused."""
        return "$" + shorten("".join(reversed(self._ways)), _MOST_OF_A_PATH)

    def is_in(self, root: Any, origin: object) -> None:
        """Called as the refusal leaves each message, from the inside out.

        Args:
            root: In which it is to be found.
            origin: What to look for in the message around this one.
        """
        if root is self._culprit:  # it contains itself: the shortest way to it is enough
            self._ways.clear()
        elif root is not self._child:
            self._ways.append(_way(root, self._child))
        self._child = origin


def _way(root: Any, child: object) -> str:
    """The shortest way through lists and dicts; empty if there is none."""
    steps: deque[tuple[Any, tuple[Step, ...]]] = deque([(root, ())])
    seen = {id(root)}
    while steps:
        parent, way = steps.popleft()
        for step, item in _children(parent):
            if item is child:
                return _text((*way, step))
            if type(item) in (list, dict) and id(item) not in seen:
                seen.add(id(item))
                steps.append((item, (*way, step)))
    return ""


def _children(parent: Any) -> Iterator[tuple[Step, Any]]:
    """Each child with the step to it, in the order of encoding; none of registered classes, whose are not known."""
    if isinstance(parent, dict):
        for key, value in parent.items():
            yield ("", key), value
            yield ("key of ", key), key
    elif isinstance(parent, list | tuple | set | frozenset):
        for index, item in enumerate(parent):
            yield ("", index), item
    elif type(parent) is slice:
        yield from ((("", name), getattr(parent, name)) for name in ("start", "stop", "step"))


def _text(way: tuple[Step, ...]) -> str:
    return "".join(map(_step_text, way))


def _step_text(step: Step) -> str:
    of, key = step
    if not of and type(key) is str and key.isidentifier() and len(key) <= _MOST_CHARACTERS:
        return f".{key}"
    if type(key) not in _PLAIN_KEYS or (type(key) is int and key.bit_length() > _MOST_BITS):
        return f"[{of}<{type(key).__name__}>]"
    return f"[{of}{key!r:.{_MOST_CHARACTERS}}]"
