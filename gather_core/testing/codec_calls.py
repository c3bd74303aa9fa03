"""Clauses of the codec contract: round trips, and who owns which memory."""

import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest

from gather_core.errors import summarize
from gather_core.exactness import difference, scramble
from gather_core.testing.codec_case import CodecCase, Sample, copied, describe
from gather_core.testing.codec_frames import Landed, as_views

_NUM_THREADS = 4
_NUM_ROUNDS = 5
_SWITCH_S = 1e-5


class CallClauses(CodecCase):
    """What holds for every pair of calls."""

    def test_every_object_comes_back_exactly(self) -> None:
        """The round trip is exact, from read-only frames that lie somewhere inside a slot."""
        codec = self.make_codec()
        for obj in self._fresh_objects():
            who = describe(codec, obj)
            try:
                encoded = codec.encode(obj)
            except Exception as exc:
                pytest.fail(f"{who}: encode raised {summarize(exc)}; encode it, or leave it out of objects()")
            try:
                landed = Landed(as_views(encoded))
            except (TypeError, ValueError):
                pytest.skip("see test_frames_are_contiguous_bytes")
            try:
                decoded = codec.decode(landed.views)
            except Exception as exc:
                pytest.fail(
                    f"{who}: decode raised {summarize(exc)}; it gets read-only views of parts of a larger memory"
                )
            where = difference(decoded, obj)
            assert self.same(decoded, obj), f"{who} was changed ({where}); keep it exactly, or raise EncodeError"

    def test_frames_are_contiguous_bytes(self) -> None:
        """`encode` returns a sequence of C-contiguous bytes-likes, at least one."""
        codec = self.make_codec()
        for obj in self._fresh_objects():
            try:
                encoded = codec.encode(obj)
            except Exception:  # another clause
                continue
            try:
                as_views(encoded)
            except (TypeError, ValueError) as exc:
                pytest.fail(f"{describe(codec, obj)}: {exc}; return a list of C-contiguous bytes-likes, at least one")

    def test_frames_stay_as_they_are_when_more_is_encoded(self) -> None:
        """Frames are read until the operation ends: no buffer is used again for the next object."""
        codecs, encoded = [self.make_codec(), self.make_codec()], []
        for obj in self._fresh_objects():
            for codec in codecs:
                try:
                    views = as_views(codec.encode(obj))
                except Exception:  # another clause
                    continue
                encoded.append((obj, views, [bytes(view) for view in views]))
        for obj, views, before in encoded:
            assert [bytes(view) for view in views] == before, (
                f"{describe(codecs[0], obj)}: its frames changed when other objects were encoded; "
                "write each object into memory of its own"
            )

    def test_an_object_can_be_encoded_again(self) -> None:
        """`encode` remembers nothing of the object that it has encoded."""
        for sample in self._samples():
            try:
                frames = Landed(as_views(sample.codec.encode(sample.obj))).views
            except Exception as exc:
                pytest.fail(f"{sample}: the second encode raised {summarize(exc)}; keep no state between calls")
            decoded = sample.decode(frames, "what the second encode wrote")
            self._check_same(decoded, sample, "differs when it is encoded twice", "keep no state between calls")

    def test_frames_need_no_earlier_calls_to_be_decoded(self) -> None:
        """Each rank decodes with a codec of its own, and frames in any order."""
        writer, reader = self.make_codec(), self.make_codec()
        samples = []
        for sample in self._samples():
            frames = Landed(as_views(writer.encode(sample.obj))).views
            samples.append(Sample(reader, sample.obj, frames, sample.decoded))
        for sample in reversed(samples):
            decoded = sample.decode(sample.frames, "frames of another instance, in another order,")
            self._check_same(decoded, sample, "depends on earlier calls", "write all that decode needs into the frames")

    def test_a_decoded_object_keeps_nothing_of_borrowed_frames(self) -> None:
        """A read-only frame is borrowed: its memory is used again as soon as `decode` has returned."""
        for sample in self._samples():
            landed = Landed(sample.frames)
            decoded = sample.decode(landed.views, "read-only frames")
            landed.overwrite()
            problem = "changed when the memory of its read-only frames was used again"
            self._check_same(decoded, sample, problem, "copy what it keeps, as gather_core.codec.own does")

    def test_writable_frames_decode_alike(self) -> None:
        """A writable frame is a gift; it decodes to the same object."""
        for sample in self._samples():
            decoded = sample.decode(Landed(sample.frames, writable=True).views, "writable frames")
            self._check_same(decoded, sample, "differs where frames are writable", "decode both kinds alike")

    def test_decoded_objects_are_independent_of_each_other(self) -> None:
        """Two results share no memory, nor does one with the caller's object."""
        for sample in self._samples():
            sample.decoded = copied(sample.decoded)
            first = sample.decode(sample.frames, "the same frames")
            second = sample.decode(sample.frames, "the same frames again")
            if first is not sample.decoded:
                scramble(first)
            self._check_same(second, sample, "changed together with another one", "build a new object in each decode")

    def test_encode_does_not_change_the_object(self) -> None:
        """`encode` only reads."""
        codec = self.make_codec()
        for obj in self._fresh_objects():
            before = copied(obj)
            if before is obj or not self.same(obj, before):  # cannot be compared with what it was
                continue
            with suppress(Exception):  # another clause
                codec.encode(obj)
            where = difference(obj, before)
            assert self.same(obj, before), f"{describe(codec, before)}: encode changed it ({where}); work on a copy"

    def test_threads_share_one_codec(self) -> None:
        """Ranks may be threads of one process, with one codec object."""
        codec = self.make_codec()
        samples = [Sample(codec, sample.obj, sample.frames, sample.decoded) for sample in self._samples()]
        problems: list[str] = []
        start = threading.Barrier(_NUM_THREADS)

        def work(number: int) -> None:
            mine = samples[number % len(samples) :] + samples[: number % len(samples)]
            start.wait()
            for _ in range(_NUM_ROUNDS):
                problems.extend(self._round_trip_problems(mine))

        _run_threads([threading.Thread(target=work, args=(number,)) for number in range(_NUM_THREADS)])
        assert not problems, (
            f"{problems[0]}, while other threads used the codec; keep what a call works on in its locals"
        )

    def _round_trip_problems(self, samples: Sequence[Sample]) -> list[str]:
        for sample in samples:
            try:
                decoded = sample.codec.decode(Landed(as_views(sample.codec.encode(sample.obj))).views)
            except Exception as exc:
                return [f"{sample}: {summarize(exc)}"]
            if not self.same(decoded, sample.decoded):
                return [f"{sample} came back as {decoded!r:.80}"]
        return []


def _run_threads(threads: list[threading.Thread]) -> None:
    """Runs them with as many switches between them as Python offers."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
