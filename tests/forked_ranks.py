"""Many ranks at little cost: forked children of one process, over a store in a file."""

import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gather_core.local_store import LocalBell
from gather_core.transport import GroupContext

_END_WITHIN_S = 60.0


def run_forked_ranks(world_size: int, body: Callable[[GroupContext], None]) -> list[int]:
    """Runs `body` with each rank's context in a child of its own; returns their exit codes, of which 0 is good.

    To be called in a process that may fork: a worker of a RankPool.
    """
    from torch._C._distributed_c10d import FileStore

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "store"))
        ranks = tuple(range(world_size))
        children: list[int] = []
        try:
            for rank in ranks:
                children.append(_fork(body, rank, ranks, lambda: FileStore(path, world_size)))
        finally:
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes


def _fork(body: Callable[[GroupContext], None], rank: int, ranks: tuple[int, ...], store: Callable[[], Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        end = threading.Timer(_END_WITHIN_S, os._exit, (2,))
        end.daemon = True
        end.start()
        body(GroupContext(rank, len(ranks), store(), LocalBell(), ranks, hosts=(0,) * len(ranks)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
