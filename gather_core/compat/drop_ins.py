"""The drop-ins: the arguments of the originals, checked so that what is wrong on one rank is heard by all."""

import os
import warnings
from collections.abc import Callable
from functools import wraps
from operator import index
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from gather_core.compat.hidden_gatherers import hidden_gatherer
from gather_core.compat.seed_wire import all_gather_over_seed_wire
from gather_core.errors import RemoteCallError, RemoteEncodeError, SettingsError
from gather_core.nearest import did_you_mean
from gather_core.process_group import find_process_group, global_rank, is_outside, to_group_rank

if TYPE_CHECKING:
    from gather_core.gatherer import Gatherer

P = ParamSpec("P")
T = TypeVar("T")

_WIRE = "GATHER_WIRE"
_WIRES = ("seed", "native")


def all_gather_list(data: Any, group: Any = None, max_size: int = 16384) -> list[Any]:
    """(all ranks) Returns the objects of all ranks, in group-rank order: DPR's and fairseq's function, on their wire.

    Ranks that run the originals may be in the same job, as long as all ranks make the same calls in the same order. It
    shares the job's own group: never call it beside another collective of that group. With `GATHER_WIRE=native` on all
    ranks it goes through a Gatherer with the job's settings (`GATHER_*`) instead: any codec and transport, connections
    of its own, and no limit of `max_size`.

    Args:
        data: Anything that pickles; CUDA tensors arrive as CPU tensors.
        group: A ProcessGroup or 1-D DeviceMesh; None: the default group, and where none is initialised, this process
            alone.
        max_size: Bytes per rank, from 5 to 2**32 - 1, the same on all ranks: the pickle and its 4-byte size.

    Raises:
        SettingsError: (a ValueError) The object does not fit in `max_size`; on this rank. The others get a
            `RemoteEncodeError` that names it, and the group stays usable. Also for a `max_size` out of range or an
            unknown `GATHER_WIRE`; then this rank has not joined.
        Exception: What pickling raised; on this rank, else likewise.
        RemoteEncodeError: Another rank sent nothing, because of the errors above; nothing is ever left out instead.
        UntrustedCodecError: `GATHER_FORBID_CODE` is set, else likewise.
        ProtocolError: Bytes that no correct rank writes.
        DecodeError: The bytes of a rank do not unpickle here; names it.
        TransportError: The all-reduce failed, as when a rank did not come within the group's own timeout. An original
            that raises before its all-reduce (a size, a pickle) is such a rank.
    """
    if _is_native():
        return hidden_gatherer(group).all_gather(data, tag="all_gather_list")
    return all_gather_over_seed_wire(data, group, max_size)


def _is_native() -> bool:
    wire = os.environ.get(_WIRE) or _WIRES[0]
    if wire not in _WIRES:
        raise SettingsError(f"{_WIRE} must be one of {', '.join(_WIRES)}, not {wire!r}.{did_you_mean(wire, _WIRES)}")
    return wire == "native"


def _told_to_all(function: Callable[P, T]) -> Callable[P, T]:
    """What is wrong with one rank's arguments is one error on all ranks, and not one of a `run` that nobody called."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except RemoteCallError as exc:
            raise RemoteEncodeError(exc.failures) from exc.__cause__

    return wrapped


def _check(gatherer: "Gatherer", check: Callable[..., T], *args: Any) -> T:
    """Returns what `check(*args)` returns; where it raises, joins the operation that the others are in with the error.

    Which operation that is does not matter: a failure has none.
    """
    try:
        return check(*args)
    except Exception as exc:
        gatherer.run(_fail, exc)
        raise


def _fail(exc: Exception) -> NoReturn:
    raise exc


@_told_to_all
def all_gather_object(object_list: Any, obj: Any, group: Any = None) -> None:
    """(all ranks) Fills `object_list` with the objects of all ranks: `torch.distributed.all_gather_object`.

    Args:
        object_list: One place per rank of the group; filled only where everything has arrived.
        obj: Anything that the job's codec can encode.
        group: A ProcessGroup or 1-D DeviceMesh; None: the default group, and where none is initialised, this process
            alone.

    Raises:
        RemoteEncodeError: On some ranks the object cannot be encoded or the list has another length; on every rank,
            naming those. The group stays usable.
        GatherError: As `Gatherer.all_gather`, and on the first call on a group as the constructor of Gatherer.
    """
    if _is_outside(group, "all_gather_object"):
        return
    gatherer = hidden_gatherer(group)
    _check(gatherer, _check_places, object_list, gatherer.world_size)
    _fill(object_list, gatherer.all_gather(obj, tag="all_gather_object"))


@_told_to_all
def gather_object(
    obj: Any, object_gather_list: Any = None, dst: int | None = None, group: Any = None, group_dst: int | None = None
) -> None:
    """(all ranks) Fills `object_gather_list` on one rank: `torch.distributed.gather_object`.

    Args:
        obj: Anything that the job's codec can encode.
        object_gather_list: On the destination, one place per rank of the group; None (or empty) elsewhere.
        dst: The destination as a global rank; 0 where neither is given.
        group: As for `all_gather_object`.
        group_dst: The destination as a rank of the group; not beside `dst`.

    Raises:
        RemoteEncodeError: Some ranks have wrong arguments, or an object that cannot be encoded; on every rank, naming
            those. The group stays usable.
        GatherError: As `all_gather_object`.
    """
    if _is_outside(group, "gather_object"):
        return
    gatherer = hidden_gatherer(group)
    root = _check(gatherer, _root, "dst", dst, group_dst, group, gatherer.world_size)
    _check(gatherer, _check_gather_list, object_gather_list, gatherer.rank == root, gatherer.world_size)
    objects = gatherer.gather(obj, root, tag="gather_object")
    if objects is not None:
        _fill(object_gather_list, objects)


@_told_to_all
def broadcast_object_list(
    object_list: Any, src: int | None = None, group: Any = None, device: Any = None, group_src: int | None = None
) -> None:
    """(all ranks) Fills `object_list` with that of one rank: `torch.distributed.broadcast_object_list`.

    Args:
        object_list: On the source, what it sends, which stays as it is; elsewhere as many places.
        src: The source as a global rank; 0 where neither is given.
        group: As for `all_gather_object`.
        device: Of no effect: the job's transport decides where bytes travel.
        group_src: The source as a rank of the group; not beside `src`.

    Raises:
        RemoteEncodeError: Some ranks have wrong arguments or a list of another length, or the source has an object that
            cannot be encoded; on every rank, naming those. The group stays usable.
        GatherError: As `all_gather_object`.
    """
    del device
    if _is_outside(group, "broadcast_object_list"):
        return
    gatherer = hidden_gatherer(group)
    root = _check(gatherer, _root, "src", src, group_src, group, gatherer.world_size)
    sent = _check(gatherer, _list_or_length, object_list, gatherer.rank == root)
    # Every rank says how many places it has, so that all see every mismatch, in the exchange that there is anyway.
    parts: list[Any] = gatherer.all_gather(sent, tag=f"broadcast_object_list from {root}")
    _check_lengths(parts, root)
    if gatherer.rank != root:
        _fill(object_list, parts[root])


def _is_outside(group: Any, name: str) -> bool:
    """Whether this rank is not in the group, which is no error in torch, but warned of."""
    if not is_outside(group):
        return False
    text = f"{name}() does nothing on global rank {global_rank()}, which is not in the group that it was given"
    warnings.warn(text, UserWarning, stacklevel=4)
    return True


def _root(name: str, in_world: Any, in_group: Any, group: Any, world_size: int) -> int:
    """The root in group ranks, from the two ways in which callers of torch may give it."""
    if in_world is not None and in_group is not None:
        raise SettingsError(f"{name}={in_world!r} and group_{name}={in_group!r} are both given: pass one of them")
    if in_group is not None:
        rank = index(in_group)
    else:
        rank = to_group_rank(find_process_group(group), index(0 if in_world is None else in_world))
    if not 0 <= rank < world_size:
        raise SettingsError(f"{name} is rank {rank} of a group that has ranks 0 to {world_size - 1}")
    return rank


def _check_places(object_list: Any, world_size: int) -> None:
    places = len(object_list)
    if places != world_size:
        raise SettingsError(f"the list has {places} places for the objects of {world_size} ranks")
    _check_writable(object_list)


def _check_writable(object_list: Any) -> None:
    if not hasattr(object_list, "__setitem__"):
        raise TypeError(f"objects are filled into a list, not into a {type(object_list).__name__}")


def _check_gather_list(object_gather_list: Any, is_root: bool, world_size: int) -> None:
    if is_root:
        if object_gather_list is None:
            raise SettingsError(f"object_gather_list must be a list of {world_size} places on the destination")
        _check_places(object_gather_list, world_size)
    elif object_gather_list is not None and len(object_gather_list):
        raise SettingsError("object_gather_list must be None on every rank but the destination")


def _list_or_length(object_list: Any, is_root: bool) -> list[Any] | int:
    if is_root:
        return list(object_list)
    _check_writable(object_list)
    return len(object_list)


def _check_lengths(parts: list[Any], root: int) -> None:
    sent = len(parts[root])
    failures = {
        rank: f"its object_list has {part} places for the {sent} objects of rank {root}"
        for rank, part in enumerate(parts)
        if rank != root and part != sent
    }
    if failures:
        raise RemoteEncodeError(failures)


def _fill(object_list: Any, objects: list[Any]) -> None:
    for place, obj in enumerate(objects):
        object_list[place] = obj
