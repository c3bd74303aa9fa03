"""Facts of a rank in which the doctor finds nothing wrong, for tests to change."""

from dataclasses import is_dataclass, replace
from typing import Any

from gather_core.doctor.facts import (
    Cores,
    Facts,
    Host,
    Launch,
    Memory,
    Mpi,
    Network,
    Plugin,
    ProcessLimits,
    Settings,
    Torch,
)

GIB = 1 << 30
HEALTHY = Facts(
    versions={"gather-core": "1.0", "Python": "3.12.1", "numpy": "2.0", "torch": "2.9"},
    torch=Torch("2.9.0", "", "12.8", "2.27.3", ("gloo", "nccl"), 2),
    network=Network({"lo": "loopback", "eth0": "connected", "eth1": "unconnected"}, "own"),
    memory=Memory(64 * GIB, 32 * GIB, 32 * GIB),
    limits=ProcessLimits(65536, 65536, None),
    cores=Cores((0, 1, 2, 3), 4, None),
    host=Host("kernel 0", "network 0", "memory 0"),
    launch=Launch("torchrun", 0, 2, 2),
    mpi=Mpi("4.1.0", "MPICH Version: 5.0"),
    settings=Settings((), ()),
    plugins=(Plugin("codec", "pickle", "works"), Plugin("transport", "shm", "works")),
    variables={"OMP_NUM_THREADS": "2"},
)


def facts(**changes: Any) -> Facts:
    """Healthy ones with changes; of a part, a dict changes only what it names: `facts(torch={"num_gpus": 0})`."""
    changed = HEALTHY
    for name, change in changes.items():
        part: Any = getattr(HEALTHY, name)
        is_part = is_dataclass(part)
        value: Any = replace(part, **change) if is_part else change
        changed = replace(changed, **{name: value})
    return changed
