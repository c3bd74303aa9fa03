"""Mutations of bytes and of sequences of frames, for whatever format they are in."""

from random import Random

Case = tuple[bytes, ...]
"""One input: the frames of an object, or the slots of a round behind what says how to judge them."""
MOST_NBYTES = 1 << 12
"""Larger inputs are not mutated further."""
_INTERESTING = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xc0", b"\xc1", b"\xc7\xff", b"\xdd\xff\xff\xff\xff", b"\xff" * 8)


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Flips, overwrites, inserts, cuts, or repeats some bytes."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64)))
    draw = rng.randrange(7)
    if draw == 0:
        return data[:at] + bytes(byte ^ (1 << rng.randrange(8)) for byte in data[at : at + 1]) + data[at + 1 :]
    if draw == 1:
        return data[:at] + rng.randbytes(end - at) + data[end:]
    if draw == 2:
        new = rng.choice(_INTERESTING)
        return data[:at] + new + data[at + len(new) :]
    if draw == 3:
        return data[:at] + data[end:]
    if draw == 4:
        return data[:at]
    if draw == 5:
        return data[:at] + rng.randbytes(rng.choice((1, 2, 8))) + data[at:]
    return data[:at] + data[at:end] * rng.choice((2, 3, 9)) + data[end:]


def mutate_frames(case: Case, donor: Case, rng: Random) -> Case:
    """Changes the bytes of one frame, or drops, repeats, swaps, splices or borrows frames."""
    at = rng.randrange(len(case)) if case else 0
    draw = rng.randrange(10)
    if draw == 0:
        return case[:at] + case[at + 1 :]
    if draw == 1:
        return (*case[:at], *case[at : at + 1], *case[at:])
    if draw == 2:
        return tuple(rng.sample(case, len(case)))
    if draw == 3:
        return (*case[:at], rng.choice(donor) if donor else b"", *case[at + rng.randrange(2) :])
    if draw == 4 and donor and case:
        tail = rng.choice(donor)
        return (*case[:at], case[at][: rng.randrange(len(case[at]) + 1)] + tail[len(tail) // 2 :], *case[at + 1 :])
    return (*case[:at], mutate_bytes(case[at] if case else b"", rng), *case[at + 1 :])
