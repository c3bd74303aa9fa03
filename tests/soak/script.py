"""What an episode of the soak is: a pure function of its seed."""

from dataclasses import dataclass
from random import Random
from typing import Literal

WORLD_SIZE = 4
TRANSPORTS = ("gloo", "shm", "shm+gloo")
_CODECS = ("pickle", "auto", "cloudpickle", "msgpack", "raw", "pickle+zstd", "msgpack+zstd", "raw+zstd")

Disturbance = Literal["none", "kill", "short stop", "long stop"]


@dataclass(frozen=True)
class Episode:
    """One life of a Gatherer on all ranks."""

    seed: int
    transport: str
    codec: str
    slot_nbytes: int
    key: bytes | None
    num_operations: int
    timeout_s: float
    disturbance: Disturbance
    victim: int
    after_s: float
    """How long after the start the victim is killed or stopped."""
    stopped_s: float

    @property
    def must_succeed(self) -> bool:
        """Whether no rank has a reason to fail."""
        return self.disturbance in ("none", "short stop")


def episode(seed: int) -> Episode:
    """The episode of a seed."""
    random = Random(seed)
    disturbance: Disturbance = random.choice(["none", "none", "none", "kill", "short stop", "long stop"])
    return Episode(
        seed,
        random.choice(TRANSPORTS),
        random.choice(_CODECS),
        random.choice([1024, 16384, 1 << 18]),
        random.choice([None, None, b"a key of the soak's"]),
        random.randint(5, 40),
        {"none": 60.0, "kill": 20.0, "short stop": 60.0, "long stop": 1.5}[disturbance],
        disturbance,
        random.choice([0, 1, 2, 2, 3, 3, 3]),  # the last in line oftener, so that there are ranks that live long
        random.uniform(0, 0.6),
        {"short stop": random.uniform(0.1, 1.0), "long stop": 4.5}.get(disturbance, 0.0),
    )
