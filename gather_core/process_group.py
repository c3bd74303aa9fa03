"""How transports and drop-ins find a torch.distributed group: the only file of the core that asks torch who we are."""

from typing import Any

from gather_core.bell import bell_of
from gather_core.errors import SettingsError
from gather_core.local_store import ScopedStore
from gather_core.transport import DEFAULT_TIMEOUT_S, GroupContext


def is_initialized() -> bool:
    """Whether this process has a default process group; does not import torch for a process that never did."""
    import sys

    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def global_rank() -> int:
    """This process's rank in the default group; 0 without one. Asks no store."""
    import sys

    return int(sys.modules["torch.distributed"].get_rank()) if is_initialized() else 0


def find_process_group(group: object) -> Any:
    """Returns the ProcessGroup that is meant: by itself, by a 1-D DeviceMesh, or by None.

    None is the default group, and where none is initialised, this process alone, for which None is returned.

    Raises:
        ValueError: This rank is not in `group`, or it was destroyed.
        TypeError: `group` is something else.
    """
    if group is None and not is_initialized():
        return None
    process_group = _process_group(group)
    if not is_registered(process_group):
        raise ValueError("this process group was destroyed")
    return process_group


def is_registered(process_group: Any) -> bool:
    """Whether torch.distributed still knows the group."""
    import torch.distributed as dist

    try:
        dist.get_process_group_ranks(process_group)
    except (KeyError, ValueError):
        return False
    return True


def is_outside(group: object) -> bool:
    """Whether `group` is what torch hands to ranks that are not in a new group."""
    if group is None or not is_initialized():
        return False
    import torch.distributed as dist

    return group is dist.GroupMember.NON_GROUP_MEMBER


def to_group_rank(process_group: Any, rank: int) -> int:
    """Returns the group rank of a global rank; for this process alone they are the same.

    Raises:
        ValueError: It is not in the group. (The default group takes any number for one of its ranks.)
    """
    if process_group is None:
        return rank
    import torch.distributed as dist

    return dist.get_group_rank(process_group, rank)


def join_process_group(group: object) -> GroupContext:
    """Describes this rank's place in a ProcessGroup, a 1-D DeviceMesh, or (None) the default group.

    Raises:
        ValueError: This rank is not in `group`.
        TypeError: `group` is something else.
        SettingsError: torch.distributed is not initialised.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise SettingsError("torch.distributed is not initialised: call init_process_group() first")
    process_group = _process_group(group)
    ranks = tuple(dist.get_process_group_ranks(process_group))
    global_rank = dist.get_rank()
    world: Any = dist.group.WORLD
    name = str(process_group.group_name)
    bell = bell_of(world, store_of(world), global_rank)
    return GroupContext(
        rank=ranks.index(global_rank),
        world_size=len(ranks),
        store=ScopedStore(f"gather_core/{name}", bell.store),
        bell=bell,
        ranks=ranks,
        name=name,
        timeout_s=_timeout_s(process_group),
        process_group=process_group,
    )


def store_of(process_group: Any) -> Any:
    """The store that the group was made with; torch 2.8 tells it by a function of its own only."""
    if hasattr(process_group, "get_group_store"):
        return process_group.get_group_store()
    from torch.distributed.distributed_c10d import _get_process_group_store

    return _get_process_group_store(process_group)


def _process_group(group: object) -> Any:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    if group is None:
        return dist.group.WORLD
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this rank is not in the group: only its members take part")
    if isinstance(group, dist.ProcessGroup):
        return group
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"a DeviceMesh must be 1-D, this one has {group.ndim} dimensions: pick one, as mesh['dp']")
        if group.get_coordinate() is None:
            raise ValueError("this rank is not in the DeviceMesh: only its members take part")
        return group.get_group()
    raise TypeError(f"group must be a ProcessGroup, a 1-D DeviceMesh or None, not {type(group).__name__}")


def _timeout_s(process_group: Any) -> float:
    """The group's own timeout, or 600 s where its backend does not tell."""
    for device_type in process_group._device_types:
        try:
            backend = process_group._get_backend(device_type)
        except RuntimeError:  # a device type without a backend in this group
            continue
        options = getattr(backend, "options", None)
        timeout = getattr(options, "_timeout", None)
        if timeout is not None:
            return float(timeout.total_seconds())
    return DEFAULT_TIMEOUT_S
