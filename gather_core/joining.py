"""Who this rank is: asked of the transport that knows, or of whoever has started the job."""

from gather_core.background import run_bounded
from gather_core.deadline import Deadline
from gather_core.errors import GatherError, SettingsError
from gather_core.handshake import SETUP
from gather_core.launched import belongs_to_mpi, is_communicator, warn_if_alone
from gather_core.process_group import is_initialized
from gather_core.registry import AUTO, transport_class, transport_classes
from gather_core.transport import GroupContext, Transport


def arrive_within(transport: object, group: object, timeout_s: float) -> tuple[GroupContext, int]:
    """Returns this rank's place in the group, and the number of this Gatherer on it."""
    deadline = Deadline(timeout_s)
    shared = _join_within(transport, group, timeout_s)
    return shared, run_bounded(lambda: _take_number(shared), deadline.remaining_s())


def _take_number(shared: GroupContext) -> int:
    """Returns the number of this Gatherer on its group, which all ranks count alike.

    A rank that has skipped a construction, or failed before it came to this, catches up: a number that was decided
    without this rank is left behind as soon as another rank has.
    """
    store = shared.store
    while True:
        number = store.add(_arrivals(shared.rank), 1)
        was_decided = store.check([f"{number}/{SETUP}/decision"])
        if not was_decided or all(store.add(_arrivals(rank), 0) <= number for rank in range(shared.world_size)):
            return number


def _arrivals(rank: int) -> str:
    return f"arrivals/{rank}"


def _join_within(transport: object, group: object, timeout_s: float) -> GroupContext:
    """Finds out who this rank is; a bad transport is no reason to fail here, as round 0 tells the others of it."""
    if isinstance(transport, Transport):
        return transport.join_within(group, timeout_s=timeout_s)
    spec = transport if isinstance(transport, str) else AUTO
    try:
        joiner = _joiner_of_auto(group) if spec.partition(":")[0] == AUTO else _class_that_joins(spec)
    except GatherError:
        group = group if is_initialized() or is_communicator(group) else None
        joiner = _joiner_of_auto(group)
    return joiner.join_within(group, timeout_s=timeout_s)


def _joiner_of_auto(group: object) -> type[Transport]:
    """Who knows the ranks: torch where it has a process group, MPI where that has started this process, or nobody.

    Through what their bytes then go is chosen later: see `auto_choice.py`.
    """
    if is_communicator(group):
        return transport_class("mpi")
    if group is not None or is_initialized():
        return Transport
    if belongs_to_mpi():
        return transport_class("mpi")
    warn_if_alone()
    return transport_class("single")


def _class_that_joins(spec: str) -> type[Transport]:
    """The one that knows the ranks: of two, that between hosts; of a malformed spec, whatever it begins with."""
    try:
        return transport_classes(spec)[-1]
    except SettingsError:
        return transport_class(spec.partition(":")[0])
