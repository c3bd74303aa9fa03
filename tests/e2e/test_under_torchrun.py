"""A script of a user's own, as torchrun starts it: what it defines itself is in `__main__`, on every rank."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_SCRIPT = """
    import dataclasses, enum, typing
    import torch.distributed as dist
    from gather_core import Gatherer

    class Split(enum.Enum):
        TRAIN = 1

    @dataclasses.dataclass
    class Row:
        rank: int
        split: Split

        def twice(self):
            return 2 * self.rank

    class Pair(typing.NamedTuple):
        left: int
        right: object

    def scale(factor):
        class Local(Row):
            pass
        return [Row(factor, Split.TRAIN), Pair(factor, (lambda value: factor * value)), Local(factor, Split.TRAIN), Row]

    dist.init_process_group("gloo")
    with Gatherer(codec="auto", timeout_s=60) as gatherer:
        rank = gatherer.rank
        for peer, (row, pair, local, cls) in enumerate(gatherer.all_gather(scale(rank))):
            assert type(row) is Row and cls is Row and row == Row(peer, Split.TRAIN) and row.split is Split.TRAIN
            assert type(pair) is Pair and pair.right(10) == 10 * peer
            assert isinstance(local, Row) and local.twice() == 2 * peer
        functions = gatherer.run(lambda: scale.__name__)
        if rank == 0:
            print("gathered", functions)
    dist.destroy_process_group()
"""


@pytest.mark.plan(26)
def test_auto_carries_what_the_script_itself_defines(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(_SCRIPT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "gathered ['scale', 'scale']\n"
