"""Clauses of the codec contract: frames that are not what `encode` wrote, and objects that it must refuse."""

import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from gather_core.codec import Codec, DecodeOptions, Limits, Trust
from gather_core.errors import LimitError, summarize
from gather_core.testing.codec_case import CodecCase, Sample, describe
from gather_core.testing.codec_frames import SPRUNG, Landed, as_views, planted

_NUM_FLIPPED = 40
"""Bytes of a head that are damaged, one at a time."""
_NUM_FLIPPED_STARTS = 8
"""Bytes at the start of another frame that are damaged, one at a time: a length may be there."""
_NUM_FRAMES = 12
"""Frames of one object that are damaged, one at a time; where there are more, the first and the last."""
_LONGEST_ENDING = 64
"""Bytes at the end of a frame that may say nothing, such as a newline."""
_DAMAGED_NBYTES = 8 << 20
"""More memory than decoding a small damaged object can need."""
_SMALL_NBYTES = 100_000
_CONTAINERS = (list, tuple, dict, set, frozenset)
"""Whether these are complete can always be told, by a closing mark or a count."""


class DamageClauses(CodecCase):
    """What holds for frames and objects that are not as they should be."""

    def test_truncated_frames_are_refused(self) -> None:
        """Containers raise when a part of them was cut off; without a newline at the end they may be complete."""
        for sample in self._samples():
            if isinstance(sample.obj, _CONTAINERS):
                for index in _some_frames(sample.frames):
                    for nbytes in _cuts(len(sample.frames[index])):
                        self._check_cut(sample, index, nbytes)

    def _check_cut(self, sample: Sample, index: int, nbytes: int) -> None:
        """That a loss is refused; where this cut loses nothing, a shorter one that does."""
        for left in range(nbytes, max(-1, nbytes - _LONGEST_ENDING), -1):
            frames = [*sample.frames[:index], sample.frames[index][:left], *sample.frames[index + 1 :]]
            try:
                decoded = sample.codec.decode(frames)
            except Exception:
                return
            assert self.same(decoded, sample.decoded), (
                f"{sample}: decode with frame {index} cut from {len(sample.frames[index])} bytes to {left} returned "
                f"{decoded!r:.80}; write its length, or a closing mark, and check it, and raise DecodeError"
            )

    def test_missing_frames_are_refused(self) -> None:
        """No frames at all raise, and containers of which one frame is missing."""
        for sample in self._samples():
            with suppress(Exception):
                decoded = sample.codec.decode([])
                pytest.fail(f"{sample}: decode of no frames returned {decoded!r:.80}; raise DecodeError")
            for index in _some_frames(sample.frames):
                self._check_missing(sample, index)

    def _check_missing(self, sample: Sample, index: int) -> None:
        try:
            decoded = sample.codec.decode([*sample.frames[:index], *sample.frames[index + 1 :]])
        except Exception:
            return
        taken = self.same(decoded, sample.decoded) or isinstance(sample.obj, _CONTAINERS)
        assert not taken, (
            f"{sample}: decode with frame {index} missing returned {decoded!r:.80}; check the number of frames, and "
            "raise DecodeError"
        )

    def test_extra_frames_are_not_ignored(self) -> None:
        """Frames that nothing refers to are never dropped silently."""
        for sample in self._samples():
            for extra in (b"", b"extra", bytes(sample.frames[-1])):
                frames = Landed([*sample.frames, extra]).views
                with suppress(Exception):
                    decoded = sample.codec.decode(frames)
                    if self.same(decoded, sample.decoded):
                        pytest.fail(
                            f"{sample}: decode ignored an extra frame of {len(extra)} bytes; check their number, "
                            "and raise DecodeError"
                        )

    def test_a_failed_decode_leaves_the_codec_usable(self) -> None:
        """The frames of one rank say nothing about those of the next."""
        for sample in self._samples():
            for frames in ([], [frame[: len(frame) // 2] for frame in sample.frames]):
                with suppress(Exception):
                    sample.codec.decode(frames)
            decoded = sample.decode(sample.frames, "good frames after bad ones")
            self._check_same(decoded, sample, "differs after bad frames", "keep no state between calls")

    def test_damaged_bytes_are_an_error_or_an_object(self) -> None:
        """Data only: no length is believed before it is checked, and whatever is wrong is an Exception."""
        self._skip_code("executes what damaged bytes happen to say")
        samples = self._samples()
        if any(map(_runs_planted_code, samples)):
            pytest.skip("damaged bytes would be executed; see test_planted_code_is_not_executed")
        for sample in samples:
            for frames in _with_flipped_bytes(sample.frames):
                peak = _peak_nbytes(sample, frames)
                assert peak < _DAMAGED_NBYTES + 100 * sum(map(len, frames)), (
                    f"{sample}: decode with one wrong byte allocated {peak} bytes; check lengths against the "
                    "bytes that are there before allocating for them"
                )

    def test_planted_code_is_not_executed(self) -> None:
        """A codec that declares Trust.DATA only builds allow-listed types."""
        self._skip_code("says that decoding can run code")
        ran = next((sample for sample in self._samples() if _runs_planted_code(sample)), None)
        assert ran is None, f"{ran}: decode ran code that was planted in its frames; declare Trust.CODE"

    def test_limits_hold_for_what_grows_while_it_is_decoded(self) -> None:
        """Sizes after decompression are checked against `Limits` before anything is allocated."""
        codec = self.make_codec()
        frames = self._compressed(codec)
        tracemalloc.start()
        try:
            codec.decode(frames, DecodeOptions(limits=Limits(frame_nbytes=_SMALL_NBYTES)))
            problem = f"grew from {sum(map(len, frames))} bytes beyond Limits.frame_nbytes={_SMALL_NBYTES}"
        except LimitError:
            peak = tracemalloc.get_traced_memory()[1]
            problem = f"allocated {peak} bytes before it raised LimitError" if peak > 10 * _SMALL_NBYTES else ""
        except Exception as exc:
            problem = f"raised {summarize(exc)} and not LimitError"
        finally:
            tracemalloc.stop()
        assert not problem, f"codec {codec.spec!r}: decode {problem}; compare the size with options.limits first"

    def test_refused_objects_raise_and_leave_the_codec_usable(self) -> None:
        """The round trip is exact or `encode` raises, and the next object is not affected."""
        if not self.refused():
            pytest.skip("refused() names no objects")
        for sample in self._samples():
            for obj in self.refused():
                with suppress(Exception):
                    sample.codec.encode(obj)
                    pytest.fail(
                        f"{describe(sample.codec, obj)}: encode took it; raise EncodeError for what is not kept"
                    )
            try:
                frames = Landed(as_views(sample.codec.encode(sample.obj))).views
            except Exception as exc:
                pytest.fail(f"{sample}: encode after a refused object raised {summarize(exc)}; keep no state")
            decoded = sample.decode(frames, "what was encoded after a refused object")
            self._check_same(decoded, sample, "differs after a refused one", "keep no state between calls")

    def _skip_code(self, why: str) -> None:
        if self.make_codec().trust is not Trust.DATA:
            pytest.skip(f"for Trust.DATA: this codec {why}")

    def _compressed(self, codec: Codec) -> Sequence[memoryview]:
        """The frames of an object that grows while it is decoded; skips where there is none."""
        try:
            frames = Landed(as_views(codec.encode(self.compressible()))).views
        except Exception as exc:
            pytest.skip(f"it does not encode compressible(): {summarize(exc)}")
        if sum(map(len, frames)) >= _SMALL_NBYTES:
            pytest.skip("it does not compress")
        return frames


def _some_frames(frames: Sequence[memoryview]) -> list[int]:
    """The first ones and the last."""
    return sorted({*range(min(len(frames), _NUM_FRAMES)), len(frames) - 1})


def _cuts(nbytes: int) -> list[int]:
    return sorted({0, 1, nbytes // 2, nbytes - 1} & set(range(nbytes)))


def _with_flipped_bytes(frames: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    for index in _some_frames(frames):
        nbytes = len(frames[index])
        positions = (
            range(min(nbytes, _NUM_FLIPPED_STARTS)) if index else range(0, nbytes, max(1, nbytes // _NUM_FLIPPED))
        )
        for position in positions:
            for flip in (0x01, 0x80, 0xFF):
                damaged = bytearray(frames[index])
                damaged[position] ^= flip
                yield Landed([*frames[:index], bytes(damaged), *frames[index + 1 :]]).views


def _runs_planted_code(sample: Sample) -> bool:
    SPRUNG.clear()
    for frames in _with_planted_code(sample.frames):
        with suppress(Exception):
            sample.codec.decode(frames)
    return bool(SPRUNG)


def _with_planted_code(frames: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Planted code as the only frame, and in the place of others, as long as that was where it fits."""
    for code in planted():
        yield Landed([code]).views
        for index in _some_frames(frames):
            yield Landed([*frames[:index], code.ljust(len(frames[index])), *frames[index + 1 :]]).views


def _peak_nbytes(sample: Sample, frames: Sequence[memoryview]) -> int:
    """How much memory decoding took at its peak, whatever came of it; fails the test where it was no Exception."""
    tracemalloc.start()
    try:
        with suppress(Exception):
            sample.codec.decode(frames)
    except BaseException as exc:
        pytest.fail(f"{sample}: decode with one wrong byte raised {type(exc).__name__}; raise DecodeError")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak
