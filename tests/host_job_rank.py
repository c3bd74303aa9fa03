"""One rank of a job on several hosts: `python host_job_rank.py FOLDER RANK WORLD_SIZE`; see host_job.py."""

import os
import pickle
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle

_WITHIN_S = 60.0


def _store(folder: Path, rank: int, address: str) -> Any:
    """The job's store, hosted by rank 0 on a port that is free there."""
    from torch._C._distributed_c10d import TCPStore

    told = folder / "port"
    if rank == 0:
        store = TCPStore(address, 0, None, True, wait_for_workers=False, timeout=timedelta(seconds=_WITHIN_S))
        (folder / "port.tmp").write_text(str(store.port))
        os.rename(folder / "port.tmp", told)
        return store
    deadline = time.monotonic() + _WITHIN_S
    while not told.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("rank 0 did not come")
        time.sleep(0.01)
    return TCPStore(address, int(told.read_text()), None, False, timeout=timedelta(seconds=_WITHIN_S))


def _main() -> None:
    folder, rank, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    body, arguments = pickle.loads((folder / "body").read_bytes())
    store = _store(folder, rank, sys.argv[4])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    outcome: tuple[bool, Any]
    try:
        outcome = (True, body(rank, world_size, *arguments))
    except BaseException as exc:
        outcome = (False, f"{type(exc).__name__}: {exc}\n{traceback.format_exc()}")
    written = folder / f"written by {rank}"
    written.write_bytes(cloudpickle.dumps(outcome))
    os.rename(written, folder / f"outcome {rank}")
    deadline = time.monotonic() + _WITHIN_S
    num_expected = world_size - int(os.environ.get("GATHER_TEST_LOST", "0"))
    while rank == 0 and len([*folder.glob("outcome *")]) < num_expected:  # the network may be down: not by the store
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    sys.stdout.flush()
    os._exit(0)  # without waiting for connections to ranks that a test has killed


if __name__ == "__main__":
    _main()
