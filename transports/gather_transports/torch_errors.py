"""What torch's backends say when they fail, which is text alone: no type tells a late peer from a lost one."""

import re

_SOURCE_PLACE = re.compile(r"\[\S+\.(cc|cpp|h):\d+\] ")


def first_line(exc: Exception) -> str:
    """The message without places in C++ sources, stack frames and advice."""
    lines = _SOURCE_PLACE.sub("", str(exc)).splitlines() or [type(exc).__name__]
    return lines[0].partition(". This is typically")[0]


def is_timeout(text: str) -> bool:
    """Whether a message says that a peer was late."""
    return "imed out" in text or "timeout" in text
