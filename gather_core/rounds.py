"""The rounds of one operation: encode, round 1, verdict, round 2, decode. The only file that knows both seams."""

from collections.abc import Sequence
from time import monotonic
from typing import Any

from gather_core.blocks import result_buffer
from gather_core.call import PLAIN, ROUTED, Call, Received, op_code
from gather_core.codec import DecodeOptions, Frames, own
from gather_core.codec_border import MOST_HELD, MOST_HELD_OF_SLOTS, CodecBorder, give_large
from gather_core.deadline import Deadline, seconds
from gather_core.errors import DecodeError, LimitError, ProtocolError, RankFailedError
from gather_core.lazy import LazyObjects
from gather_core.parcels import Manifest, announced, in_one_payload, nbytes_in_one_payload, sender
from gather_core.rendezvous import Connection
from gather_core.seal import private_copies
from gather_core.slot import HEADER_NBYTES, Header, payload_parts, read_frames
from gather_core.slot_reader import SlotReader
from gather_core.slot_writer import Outgoing, SlotWriter
from gather_core.small_slots import longest_small_frame, pack_small_slot, read_small_slots
from gather_core.stats import Stats
from gather_core.verdict import Verdict, judge
from gather_core.watch import Watch, Watcher


class Rounds:
    """One rank's part in the operations of a Gatherer, one at a time; which thread calls is the caller's business."""

    def __init__(self, connection: Connection, options: DecodeOptions, stats: Stats) -> None:
        self.seq = 0
        """Number of the operation that runs, or ran last."""
        self._stats = stats
        self._watcher = Watcher(f"rank {connection.context.rank} of {connection.context.scope}", stats)
        self._watch: Watch | None = None
        self._timeout_s = connection.timeout_s
        self._transport = connection.transport
        self._notes = connection.notes
        self._terms = connection.terms
        self._rank = connection.context.rank
        self._everyone = range(connection.context.world_size)
        self._border = CodecBorder(connection.codec, options)
        self._writer = SlotWriter(connection.transport, connection.context.rank, connection.terms)
        self._reader = SlotReader(connection.terms)
        self._small_up_to = longest_small_frame(connection.terms)
        self._seal_nbytes = connection.terms.seal_nbytes

    def operate(self, call: Call, obj: Any, failed_call: Exception | None = None) -> Any:
        """(all ranks) Runs one operation; what was wrong before it, `failed_call`, reaches every rank.

        A metrics dict costs more in calls than in work, so what takes one exchange of small objects is done here, and
        all else by the methods below.

        Returns:
            The objects of the ranks that the call wants, in order: a list, or what its form and laziness say.

        Raises:
            RankFailedError, SlotOverflowError: Some rank failed; on every rank. The ranks are in step.
            DecodeError: Here alone, after the last exchange. The ranks are in step.
            BaseException: The ranks may not be in step any more.
        """
        self.seq = seq = self.seq + 1
        manner, notes, world_size = call.manner, self._notes, self._terms.world_size
        if failed_call is not None or not call.sends or manner.form != "object" or self._watcher.is_wanted():
            return self._operate_in_full(call, obj, failed_call)
        notes.position = (seq, call.operation, call.tag, "encode")
        timeout_s, outgoing = self._timeout_s, None
        try:
            if call.timeout_s is not None:
                timeout_s = seconds(call.timeout_s)
            agreement = self._writer.agreement(seq, world_size, call.op or call.check(world_size))
            frames = self._border.encode(obj if manner.checked is None else manner.checked(obj))
            if len(frames) == 1 and len(frames[0]) <= self._small_up_to:
                small_slot = pack_small_slot(frames[0], self._rank, agreement)
                filled = len(small_slot)
                self._transport.slot(filled)[:filled] = small_slot
            else:
                outgoing = self._writer.write(frames, agreement)
        except Exception as exc:  # which this frame must not keep: its traceback holds this frame
            return self._run(call, self._writer.write_failure(exc, "encode", seq), timeout_s)
        if outgoing is not None:
            return self._run(call, outgoing, timeout_s)
        started_s = monotonic()
        notes.position = (seq, call.operation, call.tag, "round 1")
        slots = self._transport.all_gather_slots(filled, timeout_s=timeout_s)
        if len(slots) != world_size:
            raise _wrong_number_of(slots, world_size)
        small = read_small_slots(slots, agreement, self._small_up_to, self._rank, small_slot)
        if small is None:
            outgoing = Outgoing(frames, filled - HEADER_NBYTES, filled, agreement)
            try:
                return self._result(call, outgoing, slots, timeout_s, started_s)
            finally:
                slots = ()  # as in `_result`
        self._stats.operations += 1
        self._stats.sent_nbytes += filled
        notes.position = (seq, call.operation, call.tag, "decode")
        if manner is PLAIN or manner is ROUTED:
            return self._border.decode_small(call.wanted, small)
        received: Received = [(rank, (small[rank],)) for rank in call.wanted]
        return self._confirmed(call, received, timeout_s) if manner.confirm else self._finished(call, received)

    def _operate_in_full(self, call: Call, obj: Any, failed_call: Exception | None) -> Any:
        """(all ranks) As `operate`, for what is no single object or has failed before, and where somebody looks."""
        if not self._watcher.is_wanted():
            return self._run(call, *self._prepare(call, obj, failed_call))
        try:
            with self._watcher.watch(call, self.seq) as self._watch:
                return self._run(call, *self._prepare(call, obj, failed_call))
        finally:
            self._watch = None

    def _run(self, call: Call, outgoing: Outgoing, timeout_s: float) -> Any:
        """(all ranks) What follows where this rank's slot is filled."""
        started_s = monotonic()
        self._enter(call, "round 1")
        return self._result(call, outgoing, self._all_gather_slots(outgoing.filled, timeout_s), timeout_s, started_s)

    def _result(
        self, call: Call, outgoing: Outgoing, slots: Sequence[memoryview], timeout_s: float, started_s: float
    ) -> Any:
        """(all ranks) What follows round 1, which began at `started_s`."""
        try:
            received = self._judged(call, outgoing, slots, Deadline(timeout_s, started_s))
        finally:
            slots = ()  # else what this rank itself has failed with would hold them, in a cycle with its frames
        if call.manner.form == "parcels":
            received = self._deliver(call, outgoing, received, Deadline(timeout_s, started_s))
        self._enter(call, "decode")
        if call.manner.confirm:
            return self._confirmed(call, received, timeout_s)
        return self._finished(call, received)

    def _all_gather_slots(self, nbytes: int, timeout_s: float) -> Sequence[memoryview]:
        """(all ranks) Round 1: the slots of all ranks, which with seals are copies that peers cannot change."""
        terms = self._terms
        slots = self._transport.all_gather_slots(nbytes, timeout_s=timeout_s)
        if len(slots) != terms.world_size:
            raise _wrong_number_of(slots, terms.world_size)
        return slots if terms.seal is None else private_copies(slots)

    def _enter(self, call: Call, phase: str) -> None:
        """Goes on to a phase, for whoever asks where this rank is, and whoever looks how long it takes."""
        self._notes.position = (self.seq, call.operation, call.tag, phase)
        if self._watch is not None:
            self._watch.phase(phase)

    def decode(self, rank: int, frames: Sequence[memoryview]) -> Any:
        """Rebuilds one object; raises DecodeError."""
        return self._border.decode(rank, frames)

    def encode(self, obj: object) -> Frames:
        """Returns the frames of one object; raises EncodeError and LimitError."""
        return self._border.encode(obj)

    def _prepare(self, call: Call, obj: object, failed_call: Exception | None) -> tuple[Outgoing, float]:
        """Fills this rank's slot, be it with what went wrong; returns what it brings, and how long this rank waits."""
        self._enter(call, "encode")
        timeout_s = self._timeout_s
        if failed_call is not None:
            return self._writer.write_failure(failed_call, "call", self.seq), timeout_s
        try:
            if call.timeout_s is not None:
                timeout_s = seconds(call.timeout_s)
            agreement = self._writer.agreement(self.seq, self._terms.world_size, call.check(self._terms.world_size))
            return self._fill(call, obj, agreement), timeout_s
        except Exception as exc:
            return self._writer.write_failure(exc, "encode", self.seq), timeout_s

    def _fill(self, call: Call, obj: Any, agreement: bytes) -> Outgoing:
        """With nothing, an object, frames or parcels."""
        manner = call.manner
        if not call.sends:
            return self._writer.write((), agreement)
        if manner.checked is not None:
            obj = manner.checked(obj)
        if manner.form != "parcels":
            return self._writer.write(obj if manner.form == "frames" else self._border.encode(obj), agreement)
        return self._fill_with_parcels([self._border.encode(each) for each in obj], agreement)

    def _fill_with_parcels(self, parcels: Sequence[Frames], agreement: bytes) -> Outgoing:
        terms = self._terms
        frames = in_one_payload(parcels)
        if terms.overflow_is_error or self._writer.fits(frames):
            return self._writer.write(frames, agreement)
        frames, parts_per_rank = announced(parcels, self._rank, agreement, terms)
        outgoing = self._writer.write(frames, agreement)
        outgoing.parcels = parts_per_rank
        return outgoing

    def _judged(self, call: Call, outgoing: Outgoing, slots: Sequence[memoryview], deadline: Deadline) -> Received:
        """What was sent to this rank, after round 2 where one is needed."""
        healthy = self._reader.read(slots, outgoing.agreement, call.wanted)
        if healthy is not None:
            received, longest = healthy
            self._count(call, outgoing, HEADER_NBYTES + longest, in_second_round=False)
            return received
        try:
            verdict = judge(slots, outgoing.agreement, self._terms)
        except RankFailedError as exc:
            # Without the frames of `judge`: they hold views of all slots, and in a cycle with what they raise.
            raise exc.with_traceback(None) from outgoing.failure
        payloads = self._collect(call, outgoing, slots, verdict, deadline)
        second = verdict.nbytes_in_round_2 is not None
        self._count(call, outgoing, verdict.largest_nbytes, in_second_round=second)
        most_held = MOST_HELD if second else MOST_HELD_OF_SLOTS
        return [
            (rank, self._frames(rank, payloads[rank], verdict.headers[rank], most_held)) for rank in sorted(payloads)
        ]

    def _collect(
        self, call: Call, outgoing: Outgoing, slots: Sequence[memoryview], verdict: Verdict, deadline: Deadline
    ) -> dict[int, memoryview]:
        """Returns the payloads that this rank wants and that came."""
        sizes = verdict.nbytes_in_round_2
        payloads: dict[int, memoryview] = {}
        for rank in call.wanted:
            end = HEADER_NBYTES + verdict.headers[rank].total_nbytes
            if sizes is None or not sizes[rank]:
                if end > len(slots[rank]):
                    raise ProtocolError(f"the slot of rank {rank} has {len(slots[rank])} of its {end} bytes")
                payload = slots[rank][HEADER_NBYTES : end - self._seal_nbytes]
                payloads[rank] = payload if sizes is None else memoryview(bytes(payload))
        if sizes is not None:
            if call.manner.admit is not None:
                sizes = list(call.manner.admit(sizes))
            self._enter(call, "round 2")
            arrived = self._round_2(call, outgoing, sizes, deadline)
            for rank in call.wanted:
                if sizes[rank]:
                    payloads[rank] = self._opened(rank, arrived[rank], verdict.headers[rank])
        return payloads

    def _round_2(
        self, call: Call, outgoing: Outgoing, sizes: Sequence[int], deadline: Deadline
    ) -> Sequence[memoryview]:
        parts = _all_parts(outgoing) if sizes[self._rank] else []
        timeout_s = deadline.remaining_s()
        receives = not call.manner.routed or call.root == self._rank
        into = [result_buffer(size if receives else 0) for size in sizes]
        if not call.manner.routed:
            return self._transport.all_gather_exact(parts, sizes, into=into, timeout_s=timeout_s)
        parts_per_peer = [parts if peer == call.root else [] for peer in self._everyone]
        matrix = [[size if peer == call.root else 0 for peer in self._everyone] for size in sizes]
        return self._transport.all_to_all_exact(parts_per_peer, matrix, into=into, timeout_s=timeout_s)

    def _deliver(self, call: Call, outgoing: Outgoing, received: Received, deadline: Deadline) -> Received:
        """The parcels for this rank, of those who sent some; those that travel by themselves do it here."""
        manifests = {rank: self._manifest(rank, frames, outgoing.agreement) for rank, frames in received}
        parcels = {rank: manifest.frames_for(self._rank) for rank, manifest in manifests.items()}
        nothing = [0] * len(self._everyone)
        matrix = [manifests[rank].nbytes_per_rank if rank in manifests else nothing for rank in self._everyone]
        if any(map(any, matrix)):
            parcels = {rank: frames and _copied(frames) for rank, frames in parcels.items()}
            self._enter(call, "round 2")
            parts_per_peer = outgoing.parcels or [()] * len(self._everyone)
            into = [result_buffer(row[self._rank]) for row in matrix]
            arrived = self._transport.all_to_all_exact(
                parts_per_peer, matrix, into=into, timeout_s=deadline.remaining_s()
            )
            for rank, manifest in manifests.items():
                if parcels[rank] is None:
                    header = manifest.headers[self._rank]
                    parcels[rank] = self._frames(rank, self._opened(rank, arrived[rank], header, sender(rank)), header)
            self._count_parcels(outgoing, matrix)
        return [(rank, frames or ()) for rank, frames in parcels.items()]

    def _manifest(self, rank: int, frames: Sequence[memoryview], agreement: bytes) -> Manifest:
        try:
            return Manifest(frames, agreement, self._terms.world_size, self._terms.limits)
        except (ProtocolError, LimitError) as exc:
            raise ProtocolError(f"payload of rank {rank}: {exc}") from exc

    def _opened(self, rank: int, payload: memoryview, header: Header, context: bytes = b"") -> memoryview:
        """The payload without its seal, where there are seals, which is checked."""
        if self._terms.seal is None:
            return payload
        if payload.readonly:  # a peer may share its memory, as in round 1
            payload = memoryview(bytes(payload))
        try:
            return self._terms.seal.open(header.pack(), payload, context)
        except ProtocolError as exc:
            raise ProtocolError(f"payload of rank {rank}: {exc}") from None

    def _frames(
        self, rank: int, payload: memoryview, header: Header, most_held: int = MOST_HELD
    ) -> Sequence[memoryview]:
        """Verifies a payload and cuts it into its frames."""
        terms = self._terms
        covered = header.total_nbytes < terms.covered_below_nbytes
        try:
            frames = read_frames(payload, header, terms.limits, frames_checked=covered)
        except (ProtocolError, LimitError) as exc:
            raise ProtocolError(f"payload of rank {rank}: {exc}") from exc
        return frames if payload.readonly else give_large(frames, most_held)

    def _finished(self, call: Call, received: Received) -> Any:
        if call.manner.taken is not None:
            return call.manner.taken(received)
        decode = self._border.decode
        if call.manner.lazy:
            return LazyObjects(decode, [[own(frame) for frame in frames] for _, frames in received])
        return [decode(rank, frames) for rank, frames in received]

    def _confirmed(self, call: Call, received: Received, timeout_s: float) -> Any:
        """(all ranks) As `_finished`, and one more exchange, by which every rank learns whether all could decode."""
        result: Any = None
        failure: DecodeError | None = None
        try:
            result = self._finished(call, received)
        except DecodeError as exc:
            failure = exc
        self.seq += 1
        self._enter(call, "round 1")
        if failure is None:
            op = op_code(call.operation, call.root, call.tag, "confirm")
            agreement = self._writer.agreement(self.seq, self._terms.world_size, op)
            outgoing = self._writer.write((), agreement)
        else:
            outgoing = self._writer.write_failure(failure, "decode", self.seq)
        slots = self._all_gather_slots(outgoing.filled, timeout_s)
        try:
            judge(slots, outgoing.agreement, self._terms)
        except RankFailedError as exc:
            raise exc from failure
        finally:
            del failure, outgoing, slots  # as in `_result`
        return result

    def _count(self, call: Call, outgoing: Outgoing, largest_nbytes: int, *, in_second_round: bool) -> None:
        stats = self._stats
        stats.operations += 1
        stats.sent_nbytes += HEADER_NBYTES + outgoing.nbytes
        if largest_nbytes > self._terms.slot_nbytes and call.manner.admit is None:
            stats.second_rounds += in_second_round  # not those of a stream, whose chunks are as long as its budget says
            stats.largest_slot_nbytes = max(stats.largest_slot_nbytes, largest_nbytes)
        if self._watch is not None:
            self._watch.sent(HEADER_NBYTES + outgoing.nbytes, outgoing.frames, in_second_round=in_second_round)

    def _count_parcels(self, outgoing: Outgoing, matrix: Sequence[Sequence[int]]) -> None:
        """Counts what travelled by itself."""
        stats, nbytes = self._stats, sum(matrix[self._rank])
        stats.sent_nbytes += nbytes
        stats.second_rounds += 1
        in_one = HEADER_NBYTES + nbytes_in_one_payload(max(map(sum, matrix)), len(matrix))
        stats.largest_slot_nbytes = max(stats.largest_slot_nbytes, in_one)
        if self._watch is not None:
            self._watch.sent(nbytes, [part for parts in outgoing.parcels for part in parts[1:]], in_second_round=True)


def _wrong_number_of(slots: Sequence[memoryview], world_size: int) -> ProtocolError:
    return ProtocolError(f"the transport returned {len(slots)} slots for {world_size} ranks")


def _all_parts(outgoing: Outgoing) -> list[memoryview]:
    seal = [memoryview(outgoing.seal)] if outgoing.seal else []
    return payload_parts(outgoing.frames) + seal


def _copied(frames: Sequence[memoryview]) -> Sequence[memoryview]:
    return [memoryview(bytes(frame)) for frame in frames]
