"""Bytes that zstd never wrote, or that lie about their size: refused, in little memory, in time."""

import struct
from collections.abc import Sequence

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import hostile
from confined import Confined
from gather_codecs.messagepack import MessagePackCodec
from gather_codecs.zstandard_frames import ZstdCodec
from gather_core.codec import Limits
from gather_core.errors import DecodeError, LimitError

pytest_plugins = ["confined_fixture"]

_MIB = 1 << 20
_BLOCK_NBYTES = 1 << 17
_LAST, _RAW, _RLE = 1, 0 << 1, 1 << 1
LOOSE = Limits(expansion_ratio=1 << 40)
HUGE = bytes.fromhex("28b52ffde06c06060663636363")
TEXT = bytes(MessagePackCodec().encode(b"abc" * 10_000)[0])
PACKED = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
SIZELESS = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 0)


def _message(size: int, packed: bytes) -> list[bytes]:
    return [struct.pack("<Q", size), packed]


def _frame(blocks: bytes, size: int | None = None, *, window_log: int = 10, dictionary: int = 0) -> bytes:
    """One frame, as RFC 8878 lays it out; without a content size if none is given."""
    descriptor = (0 if size is None else 3 << 6) | (3 if dictionary else 0)
    header = bytes([descriptor, window_log - 10 << 3]) + (struct.pack("<I", dictionary) if dictionary else b"")
    return b"\x28\xb5\x2f\xfd" + header + (b"" if size is None else struct.pack("<Q", size)) + blocks


def _zeros(nbytes: int) -> bytes:
    """Blocks that say "a zero, so many times"."""
    full, rest = divmod(nbytes, _BLOCK_NBYTES)
    sizes = [*[_BLOCK_NBYTES] * full, rest]
    kinds = [_RLE] * full + [_RLE | _LAST]
    blocks = [(size << 3 | kind).to_bytes(3, "little") + b"\0" for size, kind in zip(sizes, kinds, strict=True)]
    return b"".join(blocks)


NOTHING = (_RAW | _LAST).to_bytes(3, "little")
"""The blocks of an empty frame."""
BOMB_NBYTES = 800 * _MIB


def test_the_frames_made_here_are_frames(confined: Confined) -> None:
    message = _message(len(TEXT), PACKED)
    assert confined.call(hostile.decode, "msgpack+zstd", message).result() == b"abc" * 10_000
    zeros = _message(_MIB, _frame(_zeros(_MIB), _MIB, window_log=20))
    assert confined.call(hostile.outcomes, "msgpack+zstd", [zeros], LOOSE).result() == ["DecodeError"]  # msgpack's
    assert confined.call(hostile.decode, "msgpack+zstd", _message(1, _frame(_zeros(1), 1)), LOOSE).result() == 0
    assert zstandard.ZstdDecompressor().decompress(_frame(_zeros(_MIB), _MIB, window_log=20)) == bytes(_MIB)


@pytest.mark.plan(50)
@pytest.mark.parametrize("size", [struct.unpack("<Q", HUGE[5:13])[0], 100_000, 0, 1 << 40, (1 << 64) - 2])
@pytest.mark.parametrize("limits", [Limits(), LOOSE], ids=["default", "loose"])
def test_thirteen_bytes_that_declare_petabytes_are_refused(confined: Confined, size: int, limits: Limits) -> None:
    assert len(HUGE) == 13
    hostile.refusal(confined.call(hostile.decode, "msgpack+zstd", _message(size, HUGE), limits, more_nbytes=8 * _MIB))


@pytest.mark.plan(51)
@pytest.mark.parametrize(
    ("size", "packed", "limits"),
    [
        (BOMB_NBYTES, _frame(_zeros(BOMB_NBYTES), BOMB_NBYTES), Limits()),
        (BOMB_NBYTES, _frame(_zeros(BOMB_NBYTES), BOMB_NBYTES), Limits(expansion_ratio=1 << 40, frame_nbytes=_MIB)),
        (BOMB_NBYTES, _frame(_zeros(BOMB_NBYTES), BOMB_NBYTES), Limits(expansion_ratio=1 << 40, payload_nbytes=_MIB)),
        (30_000, _frame(_zeros(BOMB_NBYTES), BOMB_NBYTES), LOOSE),
        (30_000, _frame(_zeros(BOMB_NBYTES), 30_000), LOOSE),
        (30_000, _frame(_zeros(BOMB_NBYTES)), LOOSE),
        (4 * _MIB, _frame(_zeros(4 * _MIB - 1), 4 * _MIB), LOOSE),
        (4 * _MIB, _frame(NOTHING, 4 * _MIB), LOOSE),
        (4 * _MIB, _frame(_zeros(4 * _MIB)), LOOSE),
        (0, _frame(_zeros(BOMB_NBYTES), 0), LOOSE),
    ],
    ids=["ratio", "frame", "payload", "table", "low", "no size", "high", "nothing", "no size, true", "zero"],
)
@pytest.mark.fault(29)
def test_a_bomb_is_refused_whatever_it_declares(confined: Confined, size: int, packed: bytes, limits: Limits) -> None:
    assert len(packed) < 26_000
    message = _message(size, packed)
    hostile.refusal(confined.call(hostile.decode, "msgpack+zstd", message, limits, more_nbytes=8 * _MIB))


@pytest.mark.plan(51)
def test_a_bomb_within_the_limits_but_not_within_memory_is_a_decode_error(confined: Confined) -> None:
    message = _message(BOMB_NBYTES, _frame(_zeros(BOMB_NBYTES), BOMB_NBYTES))
    outcome = confined.call(hostile.decode, "msgpack+zstd", message, LOOSE)
    assert isinstance(outcome.error, DecodeError)
    assert isinstance(outcome.error.__cause__, MemoryError)


def _behind(more: bytes) -> list[bytes]:
    return _message(len(TEXT), PACKED + more)


@pytest.mark.plan(51)
@pytest.mark.parametrize(
    "message",
    [
        *(_behind(PACKED), _behind(b"garbage"), _behind(b"\0"), _behind(PACKED[:7]), _behind(SKIPPABLE[:5])),
        *(_behind(struct.pack("<II", 0x184D2A50, 0xFFFFFFFF)), _behind(_frame(_zeros(1), 1)), _behind(HUGE)),
        *(_behind(_frame(NOTHING, window_log=27)), _behind(_frame(_zeros(BOMB_NBYTES), window_log=27))),
        *(_message(2 * len(TEXT), PACKED + PACKED), _message(len(TEXT), SKIPPABLE + PACKED)),
        *(_message(len(TEXT), SIZELESS), _message(len(TEXT), TEXT), _message(0, b""), _message(0, SKIPPABLE[:7])),
        *(_message(1, _frame(_zeros(1), 1, dictionary=5)), _message(1, _frame(_zeros(1), window_log=31))),
        _message(1, _frame(_zeros(1), 1, window_log=31)[:-1]),
        _message(1, _frame((1 << 3 | 3 << 1 | _LAST).to_bytes(3, "little") + b"\0", 1)),
    ],
)
@pytest.mark.fault(29)
def test_what_is_not_one_frame_of_the_declared_size_is_refused(confined: Confined, message: list[bytes]) -> None:
    hostile.refusal(confined.call(hostile.decode, "msgpack+zstd", message, LOOSE, more_nbytes=8 * _MIB))


@pytest.mark.plan(51)
def test_a_window_is_never_taken_for_what_a_frame_says(confined: Confined) -> None:
    """A frame of known size needs none; a window of 2 GiB is no reason to refuse one byte, but must not be there."""
    message = _message(1, _frame(_zeros(1), 1, window_log=31))
    outcome = confined.call(hostile.outcomes, "msgpack+zstd", [message], more_nbytes=8 * _MIB)
    assert outcome.result() in (["value"], ["DecodeError"])


@pytest.mark.plan(51)
def test_a_frame_that_is_truncated_at_any_byte_is_refused(confined: Confined) -> None:
    messages = [_message(len(TEXT), PACKED[:length]) for length in range(len(PACKED))]
    assert "value" not in confined.call(hostile.outcomes, "msgpack+zstd", messages).result()
    padded = ZstdCodec(MessagePackCodec()).encode(bytes(10 * _MIB))
    messages = [[bytes(padded[0]), bytes(padded[1][:length])] for length in range(len(padded[1]))]
    seen = confined.call(hostile.outcomes, "msgpack+zstd", messages, LOOSE).result()
    assert seen.count("value") == 1  # where all of the padding is gone, and nothing else


@pytest.mark.parametrize("frames", [[], [b""], [b"\0"], [bytes(8)], [bytes(16), PACKED], [bytes(7), PACKED]])
def test_a_table_that_does_not_fit_the_frames_is_refused(confined: Confined, frames: Sequence[bytes]) -> None:
    hostile.refusal(confined.call(hostile.decode, "msgpack+zstd", frames))


@pytest.mark.parametrize("size", [len(TEXT) - 1, len(TEXT) + 1, 0, 1])
def test_a_table_that_says_another_size_than_the_frame_is_refused(confined: Confined, size: int) -> None:
    error = hostile.refusal(confined.call(hostile.decode, "msgpack+zstd", _message(size, PACKED)))
    assert f"the table says {size} bytes" in str(error)


@pytest.mark.parametrize(
    "limits", [Limits(frame_nbytes=29_999), Limits(payload_nbytes=29_999), Limits(expansion_ratio=5)]
)
def test_limits_hold_after_decompression(confined: Confined, limits: Limits) -> None:
    error = hostile.refusal(confined.call(hostile.decode, "msgpack+zstd", _message(len(TEXT), PACKED), limits))
    assert isinstance(error, LimitError)


VALID = [bytes(frame) for frame in ZstdCodec(MessagePackCodec(), min_nbytes=10).encode({"a": "x" * 300, "b": [1] * 99})]


@pytest.mark.plan(61)
@given(st.data())
def test_any_mutation_is_a_value_or_an_error_of_ours(confined: Confined, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in VALID]
    frame = frames[data.draw(st.integers(0, len(frames) - 1))]
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.sampled_from([len(frame), data.draw(st.integers(0, len(frame)))])) :]
    confined.call(hostile.outcomes, "msgpack+zstd", [frames], more_nbytes=8 * _MIB).result()
