"""How deep the containers of an object are nested."""

import gc
from collections import Counter, OrderedDict

_CONTAINERS = frozenset({list, dict, tuple, set, frozenset, OrderedDict, Counter, slice})


def is_deeper(obj: object, max_depth: int) -> bool:
    """Whether a container has more than `max_depth` others inside each other; objects of other classes hold none."""
    level = [obj] if type(obj) in _CONTAINERS else []
    for _ in range(max_depth + 1):
        if not level:
            return False
        level = [item for item in gc.get_referents(*level) if type(item) in _CONTAINERS]
    return bool(level)
