"""The head of a pickled object, in the frames that it travels in: one, or several where joining would copy large bytes.

Several follow a frame that lists their lengths. The buffers that pickle took out come behind.
"""

import io
import itertools
import pickle
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from gather_core.blocks import result_buffer
from gather_core.codec import own
from gather_core.errors import DecodeError, LimitError, summarize

_LARGE_FROM_NBYTES = 1 << 17
"""Smaller parts of the head are cheaper copied into one frame."""
_REUSED_FROM_NBYTES = 1 << 18
"""Smaller heads are joined faster in memory from the allocator."""
_PIECES_FOLLOW = 0
"""The first byte of a frame that lists the lengths of the frames behind it that are the head; no pickle begins so."""
_LENGTH_NBYTES = 8
_START = struct.Struct("<2scQ")
_FRAME_START = struct.Struct("<cQ")
_PROTOCOL_5, _FRAME = b"\x80\x05", b"\x95"


class Chunks(list[Any]):
    """The file of a pickler: unlike BytesIO it copies nothing, and keeps no buffer.

    The C pickler writes large bytes, and bytearrays, as the very object.
    """

    def write(self, chunk: Any) -> None:
        # A view keeps a bytearray from being resized before it is sent.
        self.append(chunk if type(chunk) is bytes else memoryview(chunk))

    def frames(self) -> list[Any]:
        """The head, in one frame; in several behind one that says so where that spares the copying of large parts."""
        if len(self) == 1:
            return [self[0]]
        if max(map(len, self)) < _LARGE_FROM_NBYTES:
            return [_joined(self)]
        pieces: list[Any] = []
        for is_large, run in itertools.groupby(self, _is_large):
            chunks = list(run)
            pieces += chunks if is_large else [_joined(chunks)]
        return pieces if len(pieces) == 1 else [_list_of_pieces([len(piece) for piece in pieces]), *pieces]


def _is_large(chunk: Any) -> bool:
    return len(chunk) >= _LARGE_FROM_NBYTES


def _joined(chunks: Sequence[Any]) -> Any:
    """The chunks in one; where that is large, in memory that the frames of an earlier object have freed."""
    nbytes = sum(map(len, chunks))
    if nbytes < _REUSED_FROM_NBYTES or len(chunks) == 1:
        return b"".join(chunks)
    joined = result_buffer(nbytes)
    end = 0
    for chunk in chunks:
        start, end = end, end + len(chunk)
        joined[start:end] = chunk
    return joined


def load(frames: Sequence[memoryview]) -> object:
    """Unpickles an object from its head and buffers.

    Raises:
        DecodeError: They are not the frames of one pickle.
    """
    try:
        if len(frames) != 1:
            return _load_frames(frames)
        nbytes = len(frames[0]) - _START.size
        if nbytes > 0 and _START.unpack_from(frames[0]) == (_PROTOCOL_5, _FRAME, nbytes):  # as nearly all are
            return pickle.loads(frames[0])
        return _load_head(frames, ())
    except (DecodeError, LimitError):
        raise
    except Exception as exc:
        raise DecodeError(f"cannot unpickle: {summarize(exc)}") from exc


def _load_frames(frames: Sequence[memoryview]) -> object:
    first = frames[0]
    num_pieces = _num_pieces(frames) if first and first[0] == _PIECES_FOLLOW else 0
    buffers = iter([own(frame) for frame in frames[1 + num_pieces :]])
    obj = _load_head(frames[1 : 1 + num_pieces] or (first,), buffers)
    if surplus := len(list(buffers)):  # which the unpickler itself ignores
        raise DecodeError(f"{surplus} more frames than the pickle refers to")
    return obj


def _num_pieces(frames: Sequence[memoryview]) -> int:
    """How many frames behind the first are the head, which that one lists."""
    num_pieces, num_odd = divmod(len(frames[0]) - 1, _LENGTH_NBYTES)
    sizes = [len(frame) for frame in frames[1 : num_pieces + 1]]
    # Where large bytes lack one, unpickling would take the next byte of the pickle for it, and might not notice.
    if not num_pieces or num_odd or frames[0] != _list_of_pieces(sizes):
        raise DecodeError(f"frames of {sizes!r:.80} bytes are not the pieces of pickle that were sent")
    return num_pieces


def _list_of_pieces(sizes: Sequence[int]) -> bytes:
    return struct.pack(f"<B{len(sizes)}Q", _PIECES_FOLLOW, *sizes)


def _load_head(pieces: Sequence[memoryview], buffers: Iterable[memoryview]) -> object:
    """Unpickles the head; bytes behind its last frame are refused.

    What a damaged head has behind the end of the pickle but inside that frame is ignored, as pickle itself does.
    """
    # What pickle wrote as frames says how long it is; only other heads need the slower unpickler that tells.
    if len(pieces) == 1 and _is_framed(pieces[0]):
        return pickle.loads(pieces[0], buffers=buffers)
    # For what is small anyway, a copy is cheaper than reading piece by piece.
    stream = io.BytesIO(pieces[0]) if len(pieces) == 1 else io.BufferedReader(_Pieces(pieces))
    obj: object = pickle.Unpickler(stream, buffers=buffers).load()
    if surplus := sum(map(len, pieces)) - stream.tell():
        raise DecodeError(f"{surplus} bytes behind the pickle")
    return obj


def _is_framed(head: memoryview) -> bool:
    """Whether this is a pickle in frames, side by side, whose lengths end where it ends."""
    end = len(head)
    if end <= _START.size:
        return False
    protocol, opcode, nbytes = _START.unpack_from(head)
    if protocol != _PROTOCOL_5:
        return False
    start = _START.size
    while opcode == _FRAME and nbytes:
        start += nbytes
        if start + _FRAME_START.size >= end:
            return bool(start == end)
        opcode, nbytes = _FRAME_START.unpack_from(head, start)
        start += _FRAME_START.size
    return False


class _Pieces(io.RawIOBase):
    """Frames read as one file, without joining them: large bytes are copied once, to where they stay."""

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces = list(reversed(pieces))
        self._num_read = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._num_read

    def readinto(self, target: Any) -> int:
        while self._pieces:
            piece = self._pieces.pop()
            nbytes = min(len(piece), len(target))
            target[:nbytes] = piece[:nbytes]
            if nbytes < len(piece):
                self._pieces.append(piece[nbytes:])
            if nbytes:
                self._num_read += nbytes
                return nbytes
        return 0
