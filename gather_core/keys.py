"""Where the key of seals comes from: given as bytes, or named as a file or variable that only this user can read."""

import os
import stat

from gather_core.errors import SettingsError
from gather_core.seal import MIN_KEY_NBYTES


def load_key(key: bytes | str) -> bytes:
    """Returns the key itself.

    Args:
        key: The bytes of it; or `"file:PATH"`, a file of this user that nobody else may read or write (mode 0600 or
            0400), without a line break at its end; or `"env:NAME"`, a variable.

    Raises:
        SettingsError: There is none, it is too short, or others could read it. Never says what is in it.
    """
    where = key if isinstance(key, str) else "the key"
    if isinstance(key, str):
        kind, _, place = key.partition(":")
        if kind == "file":
            key = _from_file(place)
        elif kind == "env":
            if place not in os.environ:
                raise SettingsError(f"the key is to be in the variable {place}, which is not set")
            key = os.environ[place].encode("utf-8", "surrogateescape")
        else:  # what was given may be a key, so it is not repeated
            raise SettingsError('key must be bytes, "file:PATH" or "env:NAME"')
    if len(key) < MIN_KEY_NBYTES:
        raise SettingsError(f"{where} has {len(key)} bytes: a key needs {MIN_KEY_NBYTES} at least, and random ones")
    return key


def _from_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            problem = _why_not_private(status)
            if problem:
                raise SettingsError(f"the key file {path} {problem}")
            return file.read().removesuffix(b"\n").removesuffix(b"\r")
    except OSError as exc:
        raise SettingsError(f"the key file {path} cannot be read: {exc.strerror}") from exc


def _why_not_private(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if not hasattr(os, "geteuid"):
        return None
    if status.st_uid not in (os.geteuid(), 0):
        return "belongs to another user"
    if stat.S_IMODE(status.st_mode) & 0o077:
        return f"has mode {stat.S_IMODE(status.st_mode):04o}, with which others can read or write it: chmod 600"
    return None
