"""The Gatherer: encode, round 1, verdict, round 2, decode. The only file that knows both seams."""

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar

from gather_core.blocks import result_buffer
from gather_core.call import Call, Timeout, as_int
from gather_core.codec import Codec, DecodeOptions, Limits, TensorDevice
from gather_core.codec_border import CodecBorder, give_largest
from gather_core.deadline import Deadline, seconds
from gather_core.errors import (
    AbortedError,
    ClosedError,
    DecodeError,
    DesyncError,
    GatherError,
    GroupBrokenError,
    LimitError,
    PeerLostError,
    ProtocolError,
    RankFailedError,
    SlotOverflowError,
    TransportTimeoutError,
    summarize,
)
from gather_core.notes import NOTES_WITHIN_S, Notes
from gather_core.positions import Position
from gather_core.rendezvous import connect
from gather_core.settings import DEFAULT_SLOT_NBYTES, GatherSettings, SettingsSource
from gather_core.slot import (
    HEADER_NBYTES,
    payload_parts,
    read_frames,
)
from gather_core.slot_writer import Outgoing, SlotWriter
from gather_core.small_slots import longest_small_frame, read_small_slots
from gather_core.stats import Stats
from gather_core.transport import PeerState, Transport
from gather_core.verdict import Verdict, judge

T = TypeVar("T")

_HARMLESS = (RankFailedError, SlotOverflowError, DecodeError)
"""What leaves the group usable: the same on every rank, or (a decode error) after the last exchange."""


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
        timeout_s: Seconds (or a timedelta) for construction and for each operation; None: the group's own timeout.
        limits: Bounds on what is believed from the wire; must be equal on all ranks.
        tensor_device: Where decoded tensors land: `"cpu"`, `"current"` or a function of the CPU tensor.
        payload_checksum: Whether payloads are checksummed: `"auto"`: wherever bytes cross a wire, and below 64 KiB.

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
    ) -> None:
        settings = GatherSettings(
            codec, transport, slot_nbytes, overflow, timeout_s, limits, tensor_device, payload_checksum
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
        self._notes = connection.notes
        self._terms = connection.terms
        self._rank = connection.context.rank
        self._slot_nbytes = connection.terms.slot_nbytes
        self._codec_border = CodecBorder(connection.codec, DecodeOptions(settings.tensor_device, settings.limits))
        self._writer = SlotWriter(connection.transport, connection.context.rank, connection.terms)
        self._small_up_to = longest_small_frame(connection.terms)
        self._everyone = range(connection.context.world_size)
        self._lock = threading.RLock()
        self._busy = False
        self._seq = 0
        self._broken: BaseException | None = None
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, _release, connection.notes, connection.transport)

    @property
    def rank(self) -> int:
        """This rank, in group ranks."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Number of ranks in the group."""
        return self._terms.world_size

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

    def all_gather(self, obj: T, *, timeout_s: Timeout = None, tag: str = "") -> list[T]:
        """(all ranks) Returns the objects of all ranks, in rank order; this rank's own is a copy too.

        Args:
            obj: Any object that the codec can encode.
            timeout_s: Seconds until this rank gives up; None: the Gatherer's own.
            tag: Names the call in error messages; must be equal on all ranks.

        Raises:
            RemoteEncodeError: A rank has bad arguments or an object that cannot be encoded; on every rank. The group
                stays usable.
            SlotOverflowError: With `overflow="error"`, an object does not fit; on every rank. The group stays usable.
            DecodeError: An object cannot be decoded here; on this rank. The group stays usable.
            ProtocolError: The ranks are at different operations, or bytes were damaged. The group is broken.
            TransportError: A rank did not come in time, died, or aborted. The group is broken.
            ClosedError: The Gatherer is closed, or belongs to the parent process.
        """
        result: list[T] = self._operate(Call("all_gather", None, tag, timeout_s, True, self._everyone), obj)
        return result

    def gather(self, obj: T, dst: int = 0, *, timeout_s: Timeout = None, tag: str = "") -> list[T] | None:
        """(all ranks) Returns the objects of all ranks on rank `dst`, None elsewhere; raises as `all_gather`."""
        dst = as_int(dst)
        is_root = self._is_root(dst)
        wanted = self._everyone if is_root else ()
        objects: list[T] = self._operate(Call("gather", dst, tag, timeout_s, True, wanted, routed=True), obj)
        return objects if is_root else None

    def broadcast(self, obj: Any = None, src: int = 0, *, timeout_s: Timeout = None, tag: str = "") -> Any:
        """(all ranks) Returns the object of rank `src`; what others pass is ignored. Raises as `all_gather`."""
        src = as_int(src)
        call = Call("broadcast", src, tag, timeout_s, self._is_root(src), (src,))
        return self._operate(call, obj)[0]

    def run(self, fn: Callable[..., T], *args: Any, timeout_s: Timeout = None, tag: str = "") -> list[T]:
        """(all ranks) Calls `fn(*args)` on every rank and returns all results, in rank order.

        `timeout_s` counts from the moment that this rank's own call has returned: it must cover the slowest rank's.

        Raises:
            RemoteCallError: The function raised an Exception on some ranks; on every rank, with their tracebacks. The
                group stays usable. Anything else (KeyboardInterrupt, SystemExit) aborts.
            GatherError: As `all_gather`.
        """
        self._check_process()
        self._check_open()
        call = Call("run", None, tag, timeout_s, True, self._everyone)
        failure: Exception | None = None
        value: Any = None
        try:
            value = self._call_function(call, fn, args)
        except Exception as exc:
            failure = exc
        except BaseException as exc:
            self.abort(exc)
            raise
        results: list[T] = self._operate(call, value, failed_call=failure)
        return results

    def abort(self, exc: BaseException | None = None) -> None:
        """Tells the other ranks that this one gives up, without waiting for them, and breaks the group.

        Their current or next operation raises `AbortedError` with this rank and the text of `exc`. Idempotent.
        """
        if self._broken is None and self._finalizer.alive and self._pid == os.getpid():
            cause = exc if exc is not None else GatherError("abort() was called")
            self._broken = cause
            text = summarize(cause)
            self._notes.abort(text)
            self._transport.abort(text)

    def close(self) -> None:
        """Gives connections and memory back; never collective, idempotent. Later calls raise `ClosedError`."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is not None:
            self.abort(exc)
        self.close()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ClosedError("this Gatherer belongs to the parent process: construct one after the fork")

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise ClosedError("this Gatherer is closed")
        if self._broken is not None:
            raise GroupBrokenError(
                f"the group is broken since: {summarize(self._broken)}; construct a new Gatherer"
            ) from self._broken

    def _operate(self, call: Call, obj: object, failed_call: Exception | None = None) -> list[Any]:
        """Runs one operation under the lock; from here on whatever goes wrong reaches every rank."""
        self._check_process()  # before the lock: in a forked child, a thread of the parent's may hold it for ever
        with self._lock:
            if self._busy:
                raise GatherError("called from inside another operation of the same Gatherer, such as its codec")
            self._check_open()
            self._busy = True
            try:
                self._notes.check()
                self._seq += 1
                self._notes.position = (self._seq, call.operation, call.tag, "encode")
                return self._exchange(call, obj, failed_call)
            except _HARMLESS:
                raise
            except BaseException as exc:
                self._break(exc)
            finally:
                self._busy = False
                if self._broken is None:
                    self._notes.position = (self._seq, call.operation, call.tag, "done")

    def _is_root(self, root: object) -> bool:
        """Whether this rank is the root; what is no rank at all is reported by the operation."""
        return type(root) is int and root == self._rank

    def _call_function(self, call: Call, fn: Callable[..., T], args: Sequence[Any]) -> T:
        """Calls the function given to `run`, while others who ask are told that this is what keeps this rank busy."""
        before = self._notes.position
        meanwhile: Position = (self._seq + 1, call.operation, call.tag, "function")
        self._replace_position(before, meanwhile)
        try:
            return fn(*args)
        finally:
            self._replace_position(meanwhile, before)

    def _replace_position(self, old: Position, new: Position) -> None:
        """Changes what others are told, unless an operation, of the function or another thread, has its say."""
        if self._lock.acquire(blocking=False):
            try:
                if not self._busy and self._notes.position is old:
                    self._notes.position = new
            finally:
                self._lock.release()

    def _exchange(self, call: Call, obj: object, failed_call: Exception | None) -> list[Any]:
        outgoing, timeout_s = self._prepare(call, obj, failed_call)
        started_s = monotonic()
        self._notes.position = (self._seq, call.operation, call.tag, "round 1")
        slots = self._transport.all_gather_slots(outgoing.filled, timeout_s=timeout_s)
        if len(slots) != self._terms.world_size:
            raise ProtocolError(f"the transport returned {len(slots)} slots for {self.world_size} ranks")
        if outgoing.failure is None:
            frames = read_small_slots(slots, outgoing.agreement, self._small_up_to)
            if frames is not None:
                self._count(outgoing)
                self._notes.position = (self._seq, call.operation, call.tag, "decode")
                decode = self._codec_border.decode
                return [decode(rank, (frames[rank],)) for rank in call.wanted]
        try:
            verdict = judge(slots, outgoing.agreement, self._terms)
        except RankFailedError as exc:
            raise exc from outgoing.failure
        payloads = self._collect(call, outgoing, slots, verdict, Deadline(timeout_s, started_s))
        self._count(outgoing, verdict)
        self._notes.position = (self._seq, call.operation, call.tag, "decode")
        return self._decode(call, payloads, verdict)

    def _prepare(self, call: Call, obj: object, failed_call: Exception | None) -> tuple[Outgoing, float]:
        """Fills this rank's slot: with its object, or with what went wrong."""
        timeout_s = self._connection.timeout_s
        if failed_call is not None:
            return self._writer.write_failure(failed_call, "call", self._seq), timeout_s
        try:
            if call.timeout_s is not None:
                timeout_s = seconds(call.timeout_s)
            op = call.check(self.world_size)
            frames = self._codec_border.encode(obj) if call.sends else ()
            return self._writer.write(frames, self._seq, op), timeout_s
        except Exception as exc:
            return self._writer.write_failure(exc, "encode", self._seq), timeout_s

    def _collect(
        self, call: Call, outgoing: Outgoing, slots: Sequence[memoryview], verdict: Verdict, deadline: Deadline
    ) -> dict[int, memoryview]:
        """Returns the payloads that this rank wants, after round 2 where one is needed."""
        sizes = verdict.nbytes_in_round_2
        payloads: dict[int, memoryview] = {}
        for rank in call.wanted:
            end = HEADER_NBYTES + verdict.headers[rank].total_nbytes
            if sizes is None or not sizes[rank]:
                if end > len(slots[rank]):
                    raise ProtocolError(f"the slot of rank {rank} has {len(slots[rank])} of its {end} bytes")
                payload = slots[rank][HEADER_NBYTES:end]
                payloads[rank] = payload if sizes is None else memoryview(bytes(payload))
        if sizes is not None:
            self._notes.position = (self._seq, call.operation, call.tag, "round 2")
            arrived = self._round_2(call, outgoing, sizes, deadline)
            payloads.update((rank, arrived[rank]) for rank in call.wanted if sizes[rank])
        return payloads

    def _round_2(
        self, call: Call, outgoing: Outgoing, sizes: Sequence[int], deadline: Deadline
    ) -> Sequence[memoryview]:
        parts = payload_parts(outgoing.frames) if sizes[self._rank] else []
        timeout_s = deadline.remaining_s()
        receives = not call.routed or call.root == self._rank
        into = [result_buffer(size if receives else 0) for size in sizes]
        if not call.routed:
            return self._transport.all_gather_exact(parts, sizes, into=into, timeout_s=timeout_s)
        parts_per_peer = [parts if peer == call.root else [] for peer in self._everyone]
        matrix = [[size if peer == call.root else 0 for peer in self._everyone] for size in sizes]
        return self._transport.all_to_all_exact(parts_per_peer, matrix, into=into, timeout_s=timeout_s)

    def _count(self, outgoing: Outgoing, verdict: Verdict | None = None) -> None:
        stats = self.stats
        stats.operations += 1
        stats.sent_nbytes += HEADER_NBYTES + outgoing.nbytes
        if verdict is not None and verdict.largest_nbytes > self._slot_nbytes:
            stats.second_rounds += verdict.nbytes_in_round_2 is not None
            stats.largest_slot_nbytes = max(stats.largest_slot_nbytes, verdict.largest_nbytes)

    def _decode(self, call: Call, payloads: Mapping[int, memoryview], verdict: Verdict) -> list[Any]:
        """Verifies all payloads, then decodes them, in rank order."""
        terms = self._terms
        frames_of = []
        for rank in call.wanted:
            payload, header = payloads[rank], verdict.headers[rank]
            covered = header.total_nbytes < terms.covered_below_nbytes
            try:
                frames = read_frames(payload, header, terms.limits, frames_checked=covered)
            except (ProtocolError, LimitError) as exc:
                raise ProtocolError(f"payload of rank {rank}: {exc}") from exc
            frames_of.append((rank, frames if payload.readonly else give_largest(frames)))
        decode = self._codec_border.decode
        return [decode(rank, frames) for rank, frames in frames_of]

    def _break(self, exc: BaseException) -> NoReturn:
        """Breaks the group, tells the others, and raises what is known about the cause; takes 1.5 s at most."""
        self._broken = error = exc
        deadline = Deadline(NOTES_WITHIN_S)
        try:
            if isinstance(exc, TransportTimeoutError | PeerLostError | DesyncError):
                dead = [rank for rank, state in enumerate(self._transport.peers()) if state is PeerState.DEAD]
                self._broken = error = self._notes.explain(exc, deadline, dead)
            elif isinstance(exc, AbortedError):
                self._broken = error = self._notes.origin(exc)
            if not isinstance(error, AbortedError):
                self._notes.abort(summarize(error), deadline)
        finally:  # also where a Ctrl-C ends the asking
            self._transport.abort(summarize(error))
        if error is exc:
            raise exc
        raise error from exc


def _release(notes: Notes, transport: Transport) -> None:
    notes.close()
    transport.close()
