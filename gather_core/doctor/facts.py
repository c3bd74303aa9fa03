"""What the doctor knows of one rank: values only, which travel between ranks as JSON.

No host name, no address, and of variables only those in `variables` with their values.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Interface = Literal["loopback", "connected", "unconnected"]
"""Of a network interface: leads to this host only, has an address, or has none."""
OwnName = Literal["own", "loopback", "elsewhere", "nothing", "late"]
"""What this host's name resolves to: an address of this host, one that only this host reaches, addresses that this host
does not have, nothing; or the answer did not come in time."""
PluginState = Literal["works", "unavailable", "broken"]
"""Broken: it cannot even be loaded. Unavailable: it says that it cannot run here."""


@dataclass(frozen=True)
class Torch:
    """The build of torch, and the devices that it sees."""

    version: str | None
    problem: str = ""
    """Why it cannot be imported."""
    cuda: str | None = None
    """The CUDA that it was built for."""
    nccl: str | None = None
    backends: tuple[str, ...] = ()
    """Those of gloo, nccl and mpi that are built in."""
    num_gpus: int = 0


@dataclass(frozen=True)
class Network:
    """Where Gloo and NCCL could listen."""

    interfaces: Mapping[str, Interface]
    """Empty where the system does not tell."""
    own_name: OwnName


@dataclass(frozen=True)
class Memory:
    """Bytes; None where the system does not tell."""

    available_nbytes: int | None
    """What host and control groups leave to this process."""
    shm_nbytes: int | None
    """Size of /dev/shm."""
    shm_free_nbytes: int | None


@dataclass(frozen=True)
class ProcessLimits:
    """None: without bound."""

    open_files: int | None
    open_files_at_most: int | None
    """Up to which this process may raise the limit itself."""
    file_nbytes: int | None


@dataclass(frozen=True)
class Cores:
    """Processors."""

    usable: tuple[int, ...]
    """Numbers of those that this process may run on."""
    online: int
    quota: float | None
    """How many at once the control group grants in the mean; None: all."""


@dataclass(frozen=True)
class Host:
    """Texts that are equal on ranks of one host, and say nothing else; None where the system does not tell."""

    kernel: str | None
    """Equal where one kernel runs."""
    network: str | None
    """Equal where, besides, the loopback address is the same one: containers may have one of their own."""
    memory: str | None
    """Equal where, besides, memory and process ids are shared."""


@dataclass(frozen=True)
class Launch:
    """Who has started this process, and as which of how many ranks."""

    by: Literal["torchrun", "mpiexec", "srun", "nobody"]
    rank: int = 0
    world_size: int = 1
    local_ranks: int | None = None
    """Ranks on this host; None where the launcher does not tell."""


@dataclass(frozen=True)
class Mpi:
    """mpi4py and the MPI library below it."""

    mpi4py: str | None
    """Version; None: not installed."""
    library: str = ""
    problem: str = ""
    """Why it cannot be imported."""


@dataclass(frozen=True)
class Settings:
    """What `GATHER_*` variables and the file that they name make of a Gatherer."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    transport: str = "auto"
    slot_nbytes: int = 16384


@dataclass(frozen=True)
class Plugin:
    """A codec or transport that specs may name."""

    kind: Literal["codec", "transport"]
    name: str
    state: PluginState
    reason: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """All that one rank has found."""

    versions: Mapping[str, str]
    torch: Torch
    network: Network
    memory: Memory
    limits: ProcessLimits
    cores: Cores
    host: Host
    launch: Launch
    mpi: Mpi
    settings: Settings
    plugins: tuple[Plugin, ...]
    variables: Mapping[str, str]
    """Those that are set of: the known `GATHER_*`, `*_SOCKET_IFNAME`, `OMP_NUM_THREADS`."""

    def as_dict(self) -> dict[str, Any]:
        """Values that `json.dumps` takes."""
        return asdict(self)

    def as_json(self) -> str:
        """One line, which `from_json` reads."""
        return json.dumps(self.as_dict())

    @classmethod
    def from_json(cls, text: str) -> "Facts":
        """Reads what `as_json` wrote.

        Raises:
            ValueError: It is something else, as from another release.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_json(text)
