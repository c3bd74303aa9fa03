"""The Gatherer: what users call, and what holds between two operations."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar, overload

from gather_core.call import PLAIN, ROUTED, Call, Manner, Received, Timeout, as_int, op_code
from gather_core.codec import Codec, DecodeOptions, Limits, TensorDevice
from gather_core.errors import GatherError, SettingsError
from gather_core.lazy import LazyObjects
from gather_core.membership import Membership
from gather_core.reduction import check_metrics, combine
from gather_core.rendezvous import connect
from gather_core.settings import DEFAULT_SLOT_NBYTES, GatherSettings, SettingsSource
from gather_core.stats import GroupStats, Stats
from gather_core.stream import GatherStream, Plan, Sender, StreamProgress, StreamRounds
from gather_core.stream_chunks import DEFAULT_BUDGET_NBYTES
from gather_core.transport import Transport

T = TypeVar("T")


class Gatherer:
    """Every rank hands in one object and gets the objects of all ranks, exactly, or every rank gets an error.

    Construction and every operation are collective over `group`: all its ranks make the same calls in the same order.
    Threads may share a Gatherer; their calls are serialised. Ranks are group ranks everywhere.

    Args:
        codec: A spec such as `"pickle"` or `"msgpack+zstd:level=3"`, or a Codec.
        transport: A spec such as `"gloo"`, `"auto"`, or a Transport, which then belongs to this Gatherer.
        group: A torch ProcessGroup, 1-D DeviceMesh or mpi4py communicator of which this rank is a member; None: torch's
            default group, and where none is initialised, the job that mpiexec started, or this process alone.
        slot_nbytes: Size of each rank's slot in bytes, header included; at least 1024, rounded up to a multiple of 64.
            What fits in it travels in one exchange, and more where the transport can at no cost.
        overflow: What happens to larger objects: `"second_round"` sends them, at need in a second exchange; `"error"`
            raises `SlotOverflowError` on every rank.
        timeout_s: Seconds (or a timedelta) for all ranks to come, for connecting them then (of ranks that differ, the
            shortest), and for each operation; None: the group's own timeout.
        limits: Bounds on what is believed from the wire; must be equal on all ranks.
        tensor_device: Where decoded tensors land: `"cpu"`, `"current"` or a function of the CPU tensor.
        payload_checksum: Whether payloads are checksummed: `"auto"`: wherever bytes cross a wire, and below 64 KiB.
        key: Seals every slot and payload, so that ranks believe only what was written with the same key, in this run:
            its bytes, at least 16 random ones; or `"file:PATH"`, which only this user may read; or `"env:NAME"`. All
            ranks need it. It does not encrypt.

    Raises:
        ValueError: This rank is not in `group`; on this rank only.
        TypeError: `group` is no group; on this rank, while the others of the default group get a SetupError.
        SetupError: Some rank has bad arguments, other settings, cannot open its transport, or does not come within
            the timeout; on every rank, naming those ranks. The original is `__cause__` where it happened.
    """

    def __init__(
        self,
        codec: str | Codec = "pickle",
        transport: str | Transport = "auto",
        *,
        group: object = None,
        slot_nbytes: int = DEFAULT_SLOT_NBYTES,
        overflow: Literal["second_round", "error"] = "second_round",
        timeout_s: Timeout = None,
        limits: Limits = Limits(),  # noqa: B008
        tensor_device: TensorDevice = "cpu",
        payload_checksum: bool | Literal["auto"] = "auto",
        key: bytes | str | None = None,
    ) -> None:
        settings = GatherSettings(
            codec, transport, slot_nbytes, overflow, timeout_s, limits, tensor_device, payload_checksum, key
        )
        self._start(settings, group)

    @classmethod
    def from_settings(cls, source: SettingsSource = None, *, profile: str | None = None, **overrides: Any) -> Self:
        """(all ranks of the group) Constructs a Gatherer from settings that a job keeps outside its code.

        From the weakest to the strongest: the defaults, the table `[gather]` of `source`, its table
        `[gather.profiles.NAME]`, variables such as `GATHER_SLOT_NBYTES` and `GATHER_LIMITS__NUM_FRAMES`, `overrides`.
        `limits` are merged key by key. `docs/settings.md` shows each of them.

        ```python
        gatherer = Gatherer.from_settings("job.toml", profile="debug", group=mesh["dp"])
        ```

        Args:
            source: The path of a TOML file; a mapping (a dict, an OmegaConf DictConfig) or argparse Namespace with the
                settings, or with all of them below `gather`, in which None means "not given"; a GatherSettings; or
                None: the file that `GATHER_SETTINGS` names, if any.
            profile: Which of the source's profiles to use; None: the one that `GATHER_PROFILE` names, if any; "": none.
            overrides: Keywords of `Gatherer`, `group` among them; `limits` may be a mapping. None is a value here.

        Raises:
            ValueError, TypeError: As the constructor.
            SetupError: As the constructor. What is wrong with the file, table, variables or keywords of one rank is
                raised on every rank, naming rank, place, key, value and the nearest known name; on that rank the
                SettingsError is `__cause__`.
        """
        from gather_core.settings_sources import settings_or_failure

        gatherer = cls.__new__(cls)
        gatherer._start(settings_or_failure(source, profile, overrides), overrides.get("group"))
        return gatherer

    def _start(self, settings: GatherSettings, group: object) -> None:
        """(all ranks) Connects; what is wrong with the settings of one rank is raised by all."""
        connection = connect(settings, group)
        self.settings = settings
        self.stats = Stats()
        self._connection = connection
        self._codec = connection.codec
        self._transport = connection.transport
        self._rank = connection.context.rank
        self._world_size = connection.context.world_size
        self._everyone = range(self._world_size)
        op = op_code("all_gather", None, "")
        self._plain_all_gather = Call("all_gather", None, "", None, True, self._everyone, op=op)
        self._slot_nbytes = connection.terms.slot_nbytes
        options = DecodeOptions(settings.tensor_device, settings.limits)
        self._membership = Membership(connection, options, self.stats)
        self._stream: Callable[[], GatherStream[Any] | None] = _none

    @property
    def rank(self) -> int:
        """This rank, in group ranks."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Number of ranks in the group."""
        return self._world_size

    @property
    def codec(self) -> Codec:
        """The codec in use."""
        return self._codec

    @property
    def transport(self) -> Transport:
        """The transport in use; what `auto` chose."""
        return self._transport

    @property
    def slot_nbytes(self) -> int:
        """The slot size in use, in bytes."""
        return self._slot_nbytes

    def describe(self) -> str:
        """Says in one line what is in use and why, and which `slot_nbytes` would have saved second rounds so far."""
        text = (
            f"rank {self._rank} of {self.world_size}, codec {self._codec.spec}, "
            f"transport {self._transport.spec} ({self._connection.reason}), slots of {self._slot_nbytes} bytes"
        )
        stats = self.stats
        if stats.second_rounds:
            text += (
                f"; {stats.second_rounds} of {stats.operations} operations needed a second round, "
                f"which slot_nbytes={stats.largest_slot_nbytes} would have saved"
            )
        return text

    @overload
    def all_gather(
        self, obj: T, *, lazy: Literal[False] = False, confirm: bool = False, timeout_s: Timeout = None, tag: str = ""
    ) -> list[T]: ...
    @overload
    def all_gather(
        self, obj: T, *, lazy: Literal[True], confirm: bool = False, timeout_s: Timeout = None, tag: str = ""
    ) -> LazyObjects[T]: ...
    def all_gather(
        self, obj: T, *, lazy: bool = False, confirm: bool = False, timeout_s: Timeout = None, tag: str = ""
    ) -> list[T] | LazyObjects[T]:
        """(all ranks) Returns the objects of all ranks, in rank order; this rank's own is a copy too.

        Args:
            obj: Any object that the codec can encode.
            lazy: Returns a sequence that decodes each object when it is first looked at; each rank may choose.
            confirm: Makes a decode error of one rank an error of all, at the cost of one more exchange.
            timeout_s: Seconds until this rank gives up; None: the Gatherer's own.
            tag: Names the call in error messages; must be equal on all ranks, as `confirm` must.

        Raises:
            RemoteEncodeError: A rank has bad arguments or an object that cannot be encoded; on every rank. The group
                stays usable.
            SlotOverflowError: With `overflow="error"`, an object does not fit; on every rank. The group stays usable.
            DecodeError: An object cannot be decoded here; on this rank. The group stays usable.
            RemoteDecodeError: The same, with `confirm`, and not `lazy`; on every rank. The group stays usable.
            ProtocolError: The ranks are at different operations, or bytes were damaged. The group is broken.
            TransportError: A rank did not come in time, died, or aborted. The group is broken.
            ClosedError: The Gatherer is closed, or belongs to the parent process.
            GatherError: Another operation of this Gatherer runs in this thread, or a stream has not ended.
        """
        if lazy or confirm or tag or timeout_s is not None:
            manner = Manner(lazy=lazy, confirm=confirm) if lazy or confirm else PLAIN
            call = Call("all_gather", None, tag, timeout_s, True, self._everyone, manner)
        else:
            call = self._plain_all_gather
        result: list[T] | LazyObjects[T] = self._membership.operate(call, obj)
        return result

    def gather(
        self, obj: T, dst: int = 0, *, confirm: bool = False, timeout_s: Timeout = None, tag: str = ""
    ) -> list[T] | None:
        """(all ranks) Returns the objects of all ranks on rank `dst`, None elsewhere; raises as `all_gather`."""
        dst = as_int(dst)
        is_root = self._is_root(dst)
        wanted = self._everyone if is_root else ()
        manner = Manner(routed=True, confirm=confirm) if confirm else ROUTED
        call = Call("gather", dst, tag, timeout_s, True, wanted, manner)
        objects: list[T] = self._membership.operate(call, obj)
        return objects if is_root else None

    def broadcast(
        self, obj: Any = None, src: int = 0, *, confirm: bool = False, timeout_s: Timeout = None, tag: str = ""
    ) -> Any:
        """(all ranks) Returns the object of rank `src`; what others pass is ignored. Raises as `all_gather`."""
        src = as_int(src)
        manner = Manner(confirm=True) if confirm else PLAIN
        call = Call("broadcast", src, tag, timeout_s, self._is_root(src), (src,), manner)
        return self._membership.operate(call, obj)[0]

    def scatter(
        self,
        objs: Sequence[T] | None = None,
        src: int = 0,
        *,
        confirm: bool = False,
        timeout_s: Timeout = None,
        tag: str = "",
    ) -> T:
        """(all ranks) Returns this rank's object of those that rank `src` hands in, one per rank, in rank order.

        What others pass is ignored. Bytes that do not fit in the slot of `src` travel only to the rank that they are
        for. Raises as `all_gather`; an error of `src` too where it hands in another number of objects.
        """
        src = as_int(src)
        call = Call("scatter", src, tag, timeout_s, self._is_root(src), (src,), self._of_parcels(confirm))
        obj: T = self._membership.operate(call, objs)[0]
        return obj

    def all_to_all(
        self, objs: Sequence[T], *, confirm: bool = False, timeout_s: Timeout = None, tag: str = ""
    ) -> list[T]:
        """(all ranks) Hands in one object for each rank, and returns what each rank has for this one, in rank order.

        Bytes that do not fit in a slot travel only to the rank that they are for. Raises as `all_gather`; on every rank
        too where one hands in another number of objects.
        """
        call = Call("all_to_all", None, tag, timeout_s, True, self._everyone, self._of_parcels(confirm))
        objects: list[T] = self._membership.operate(call, objs)
        return objects

    def reduce(
        self,
        metrics: Mapping[str, T],
        op: Literal["sum", "mean", "max", "min"] = "sum",
        *,
        timeout_s: Timeout = None,
        tag: str = "",
    ) -> dict[str, T]:
        """(all ranks) Reduces the metrics of all ranks, name by name; every rank gets the same dict.

        Ranks add in rank order, so that floats come out the same everywhere; NaN stays NaN.

        Args:
            metrics: From names to real numbers, or to arrays or tensors of one dtype and shape, which are reduced
                element by element. The order of names may differ; the result has that of rank 0.
            op: The mean of integers is of floats. A sum counts truth values, and keeps the dtype of other arrays.
            timeout_s: As in `all_gather`.
            tag: As in `all_gather`.

        Raises:
            ReduceError: A name is missing on a rank, or its value is of another kind there; on every rank, naming rank
                and name. The group stays usable.
            GatherError: As `all_gather`.
        """
        manner = Manner(checked=partial(check_metrics, op=op))
        call = Call(f"reduce({op})", None, tag, timeout_s, True, self._everyone, manner)
        return combine(self._membership.operate(call, metrics), op)

    def barrier(self, *, timeout_s: Timeout = None, tag: str = "") -> None:
        """(all ranks) Returns once every rank has called it; one that does not come is named by the error.

        Raises:
            GatherError: As `all_gather`.
        """
        self._membership.operate(Call("barrier", None, tag, timeout_s, False, ()), None)

    def iter_gather(
        self,
        items: Iterable[T],
        dst: int = 0,
        *,
        budget_nbytes: int = DEFAULT_BUDGET_NBYTES,
        progress: Callable[[StreamProgress], None] | None = None,
        timeout_s: Timeout = None,
        tag: str = "",
    ) -> GatherStream[T]:
        """(all ranks) Streams the items of every rank to rank `dst`, which gets `(rank, item)` pairs as they arrive.

        Elsewhere the call itself sends everything, and returns an empty iterator. Those of one rank come in their
        order. As long as it runs, other calls of this Gatherer raise. It ends early on every rank where `dst` closes
        what it got, or drops it, as by `break`.

        ```python
        with gatherer.iter_gather(predictions(), dst=0) as pairs:
            for rank, prediction in pairs:
                file.write(prediction)
        ```

        Args:
            items: Iterated over as the stream advances; ranks may have different numbers of them. One may change as
                soon as the next is asked for.
            dst: The rank that gets them.
            budget_nbytes: Encoded bytes that are under way at most, on all ranks together; each rank holds an equal
                share of it, and sends an item that is larger than that without others. Must be equal on all ranks.
            progress: Called on this rank after each round of the stream; what it raises ends the stream on every rank.
            timeout_s: Seconds for each round, of which `dst` begins one when it has used up what the last one brought:
                it must cover the time that it takes for that, and that which the slowest rank needs for one item.
            tag: As in `all_gather`.

        Raises:
            RemoteEncodeError: The items of a rank raised, or one cannot be encoded; on every rank, on `dst` while it
                iterates. The stream is over; the group stays usable.
            GatherError: As `all_gather`; on `dst` while it iterates.
        """
        dst = as_int(dst)
        limits = self.settings.limits
        room = self._slot_nbytes if self.settings.overflow == "error" else limits.payload_nbytes
        plan = Plan(items, self._rank, self.world_size, budget_nbytes, room, limits.num_frames, progress)
        rounds = StreamRounds(self._membership, plan, dst, timeout_s, tag)
        stream: GatherStream[T] = GatherStream(rounds, plan)
        if self._is_root(dst):
            self._stream = weakref.ref(stream)
            return stream.begin()
        Sender(rounds, plan).run()
        return stream

    def gather_stats(self, *, timeout_s: Timeout = None, tag: str = "") -> GroupStats:
        """(all ranks) Returns the stats of all ranks, which show per tag who keeps the others waiting.

        Set `stats.is_recording` on every rank before. `print` shows a table.

        Raises:
            GatherError: As `all_gather`.
        """
        manner = Manner(form="frames", taken=_group_stats)
        call = Call("gather_stats", None, tag, timeout_s, True, self._everyone, manner)
        result: GroupStats = self._membership.operate(call, [self.stats.to_json().encode()])
        return result

    def all_gather_async(
        self, obj: T, *, confirm: bool = False, timeout_s: Timeout = None, tag: str = ""
    ) -> Future[list[T]]:
        """(all ranks) As `all_gather`, in the background: returns a Future that is running already.

        Asynchronous calls run one after another in one thread, in the order of the calls, and a synchronous call runs
        behind those that have not ended: so the order of calls is the same on all ranks if that of the code is. The
        object must not change until the Future is done; where it holds CUDA tensors, the stream that is current here is
        waited for. `cancel()` is False. Leaving the `with` block without an exception waits for all of them; `close`
        does not: those that have not begun fail with ClosedError, and one that runs aborts.

        Raises:
            SettingsError: The transport shares the job's own group, on which other collectives would come in between;
                on this rank, so on all.
            ClosedError, GroupBrokenError: The Gatherer is closed, or the group broken.
        """
        return self._membership.submit(lambda: self.all_gather(obj, confirm=confirm, timeout_s=timeout_s, tag=tag))

    def gather_async(
        self, obj: T, dst: int = 0, *, confirm: bool = False, timeout_s: Timeout = None, tag: str = ""
    ) -> Future[list[T] | None]:
        """(all ranks) As `gather`, in the background; see `all_gather_async`."""
        return self._membership.submit(lambda: self.gather(obj, dst, confirm=confirm, timeout_s=timeout_s, tag=tag))

    def broadcast_async(
        self, obj: Any = None, src: int = 0, *, confirm: bool = False, timeout_s: Timeout = None, tag: str = ""
    ) -> Future[Any]:
        """(all ranks) As `broadcast`, in the background; see `all_gather_async`."""
        return self._membership.submit(lambda: self.broadcast(obj, src, confirm=confirm, timeout_s=timeout_s, tag=tag))

    def run(self, fn: Callable[..., T], *args: Any, timeout_s: Timeout = None, tag: str = "") -> list[T]:
        """(all ranks) Calls `fn(*args)` on every rank and returns all results, in rank order.

        `timeout_s` counts from the moment that this rank's own call has returned: it must cover the slowest rank's.

        Raises:
            RemoteCallError: The function raised an Exception on some ranks; on every rank, with their tracebacks. The
                group stays usable. Anything else (KeyboardInterrupt, SystemExit) aborts.
            GatherError: As `all_gather`.
        """
        self._membership.check()
        call = Call("run", None, tag, timeout_s, True, self._everyone)
        failure: Exception | None = None
        value: Any = None
        try:
            value = self._membership.call_function(call, fn, args)
        except Exception as exc:
            failure = exc
        except BaseException as exc:
            self.abort(exc)
            raise
        results: list[T] = self._membership.operate(call, value, failed_call=failure)
        return results

    def abort(self, reason: BaseException | str | None = None) -> None:
        """Tells the other ranks that this one gives up, without waiting for them, and breaks the group.

        Their current or next operation raises `AbortedError` with this rank and the text of `reason`. Idempotent.
        """
        self._membership.abort(GatherError(reason) if isinstance(reason, str) else reason)

    def close(self) -> None:
        """Gives connections and memory back; never collective, idempotent. Later calls raise `ClosedError`."""
        self._membership.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if exc is not None:
                self.abort(exc)
            else:
                self._finish()
        finally:
            self.close()

    def _finish(self) -> None:
        """Ends what this rank has begun: the stream that it receives, asynchronous operations."""
        stream = self._stream()
        if stream is not None:
            stream.close()
        self._membership.drain()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Gatherer is one process's place in a group, which cannot be pickled or copied")

    def _of_parcels(self, confirm: bool) -> Manner:
        return Manner(form="parcels", confirm=confirm, checked=self._one_per_rank)

    def _one_per_rank(self, objs: Any) -> list[Any]:
        """The objects for all ranks; raises where there are more or fewer."""
        if not isinstance(objs, Iterable):
            raise SettingsError(f"an object for each rank is needed, as in a list, not {type(objs).__name__}")
        each = list(objs)
        if len(each) != self.world_size:
            raise SettingsError(f"{len(each)} objects for {self.world_size} ranks: there must be one for each")
        return each

    def _is_root(self, root: object) -> bool:
        """Whether this rank is the root; what is no rank at all is reported by the operation."""
        return type(root) is int and root == self._rank


def _group_stats(received: Received) -> GroupStats:
    return GroupStats.from_json([bytes(frames[0]) for _, frames in received])


def _none() -> None:
    """No stream."""
