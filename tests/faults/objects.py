"""Objects and exceptions that make trouble where they are encoded."""

from typing import NoReturn


class Bomb:
    """Raises what it holds when it is pickled."""

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc

    def __reduce__(self) -> NoReturn:
        raise self.exc


class UglyError(Exception):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Marker:
    """Writes a file where somebody unpickles it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")
