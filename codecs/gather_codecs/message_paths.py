"""Where in an object lies what the msgpack codec refuses: `$.batch[3].meta`."""

from collections import deque
from collections.abc import Iterator
from typing import Any

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
        return "$" + "".join(reversed(self._ways))

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
    ways, seen = deque([("", root)]), {id(root)}
    while ways:
        way, parent = ways.popleft()
        for step, item in _children(parent):
            if item is child:
                return way + step
            if type(item) in (list, dict) and id(item) not in seen:
                seen.add(id(item))
                ways.append((way + step, item))
    return ""


def _children(parent: Any) -> Iterator[tuple[str, Any]]:
    """Each child with the step to it, in the order of encoding; none of registered classes, whose are not known."""
    if isinstance(parent, dict):
        for key, value in parent.items():
            is_name = type(key) is str and key.isidentifier()
            text = f"{key!r:.40}" if type(key) in _PLAIN_KEYS else f"<{type(key).__name__}>"
            yield f".{key}" if is_name else f"[{text}]", value
            yield f"[key of {text}]", key
    elif isinstance(parent, list | tuple | set | frozenset):
        for index, item in enumerate(parent):
            yield f"[{index}]", item
    elif type(parent) is slice:
        yield from ((f".{name}", getattr(parent, name)) for name in ("start", "stop", "step"))
