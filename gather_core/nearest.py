"""What somebody who mistyped a name may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the known name that is nearest, whatever its case; "" where none is near."""
    by_folded = {one.casefold(): one for one in known}
    near = get_close_matches(str(name).casefold(), by_folded, 1)
    return f" Did you mean {by_folded[near[0]]!r}?" if near else ""
