"""Draws the diagrams of the site: `python docs/diagrams/draw.py` writes the SVG files beside this one."""

from collections.abc import Callable
from pathlib import Path

from canvas import Canvas

_RANKS = (75, 240, 405)
"""The middle of the column of each of three ranks."""
_WIDTH = 480


def layers() -> str:
    """What a Gatherer is made of."""
    c = Canvas(_WIDTH, 250, "Your code calls the Gatherer, which uses one codec and one transport")
    c.box(140, 10, 200, 44, "your code", kind="plain")
    c.arrow((240, 54), (240, 88))
    c.text(252, 76, "objects", kind="small left")
    c.box(90, 90, 300, 50, "Gatherer", "protocol, failures, settings", kind="accent")
    c.arrow((150, 140), (110, 176))
    c.arrow((330, 140), (370, 176))
    c.box(20, 178, 190, 62, "codec", "object to bytes; no ranks")
    c.box(270, 178, 190, 62, "transport", "bytes to ranks; no objects")
    return c.svg()


def slot() -> str:
    """How the bytes of a slot lie."""
    c = Canvas(_WIDTH, 400, "A slot: header of 64 bytes, frame table, frames padded to 64 bytes, unused rest")
    c.text(10, 20, "one rank's slot, slot_nbytes long", kind="left strong")
    parts = ((10, 90, "header"), (100, 90, "frame table"), (190, 90, "frame 0"), (280, 90, "frame 1"))
    for x, width, name in parts:
        c.box(x, 32, width, 50, name, kind="accent" if name == "header" else "")
    c.box(370, 32, 100, 50, "not sent", kind="plain")
    for x, text in ((55, "64 bytes"), (145, "8 per frame"), (235, "padded"), (325, "padded"), (420, "or ignored")):
        c.text(x, 98, text, kind="small")
    c.text(235, 116, "total_nbytes: table and frames, each padded to a multiple of 64", kind="small")
    c.text(10, 158, "the header, byte by byte", kind="left strong")
    rows = (
        ("0", "total_nbytes", "the size prefix: all bytes after the header"),
        ("8", "header_checksum", "of all that follows in the header"),
        ("16", "rank, num_frames", "whose slot it is; 0 frames: no object here"),
        ("24", "payload_checksum", "of the table, and of the frames too on a wire"),
    )
    for number, (byte, name, meaning) in enumerate(rows):
        y = 172 + number * 32
        c.text(10, y + 19, byte, kind="small left")
        c.box(34, y, 132, 28, name, small=True)
        c.text(176, y + 19, meaning, kind="small left")
    c.text(10, 321, "32", kind="small left")
    c.box(34, 302, 436, 88, kind="accent")
    c.text(44, 322, "the agreement block: equal on all ranks if all is well", kind="small left strong")
    c.text(44, 342, "magic, version, kind (DATA or ERROR), flags, group_id, seq,", kind="small left")
    c.text(44, 359, "world_size, op (hash of operation, root and tag)", kind="small left")
    c.text(44, 379, "so the verdict on a healthy round is one comparison per slot", kind="small left")
    return c.svg()


def _ranks(c: Canvas, y: int, texts: tuple[str, str, str], kinds: tuple[str, str, str] = ("", "", "")) -> None:
    for x, text, kind in zip(_RANKS, texts, kinds, strict=True):
        c.box(x - 65, y, 130, 40, text, kind=kind)


def _down(c: Canvas, y: int, end: int) -> None:
    for x in _RANKS:
        c.arrow((x, y), (x, end))


def rounds() -> str:
    """One operation in which all is well."""
    c = Canvas(_WIDTH, 440, "One operation: encode, round 1, verdict, round 2 where needed, decode")
    for number, x in enumerate(_RANKS):
        c.text(x, 18, f"rank {number}", kind="strong")
    _ranks(c, 28, ("encode", "encode", "encode"))
    _down(c, 68, 96)
    c.box(10, 98, 460, 54, "round 1: every rank gets every rank's slot", "always one exchange", kind="accent")
    _down(c, 152, 180)
    _ranks(c, 182, ("verdict", "verdict", "verdict"))
    c.text(240, 242, "every rank judges the same headers, so all come to the same verdict", kind="small")
    _down(c, 250, 276)
    c.box(10, 278, 460, 54, "round 2, only where a payload did not fit:", "those payloads whole", kind="plain")
    _down(c, 332, 360)
    _ranks(c, 362, ("decode", "decode", "decode"))
    c.text(240, 426, "all_gather: a list of three objects, on every rank", kind="small")
    return c.svg()


def failure() -> str:
    """One operation in which a rank cannot encode its object."""
    c = Canvas(_WIDTH, 330, "Rank 1 cannot encode: its slot says so, and every rank raises the same error")
    for number, x in enumerate(_RANKS):
        c.text(x, 18, f"rank {number}", kind="strong")
    _ranks(c, 28, ("DATA slot", "ERROR slot", "DATA slot"), ("", "bad", ""))
    c.text(240, 88, "encode raised TypeError", kind="small")
    _down(c, 94, 114)
    c.box(10, 116, 460, 54, "round 1: every rank gets every rank's slot", "the schedule is the same", kind="accent")
    _down(c, 170, 196)
    for x in _RANKS:
        c.box(x - 72, 198, 144, 58, "RemoteEncodeError", "failures = {1: …}", kind="bad", small=True)
    c.text(240, 280, "nobody waits for an exchange that never comes;", kind="small")
    c.text(240, 298, "the group is in step and usable", kind="small")
    return c.svg()


def memory() -> str:
    """Where an object's bytes are on their way, whose they are, and until when."""
    c = Canvas(_WIDTH, 440, "The memory that an object passes through, and how long each piece lives")
    steps = (
        ("your object", "yours; do not change it before the call returns", "plain"),
        ("frames", "views of the object where it is large: no copy", ""),
        ("this rank's slot", "the transport's; filled in place, used again by every call", "accent"),
        ("views of all slots", "borrowed: until the next call, or lent by shm for as long as you like", "accent"),
        ("memory of results", "the operation's own; round 2 receives right into it", ""),
        ("decoded objects", "yours: not used again as long as you hold them", "plain"),
    )
    for number, (name, meaning, kind) in enumerate(steps):
        y = 10 + number * 72
        c.box(10, y, 150, 46, name, kind=kind)
        first, _, second = meaning.partition("; " if "; " in meaning else ": ")
        c.text(174, y + 20, first, kind="small left strong")
        c.text(174, y + 38, second, kind="small left")
        if number < len(steps) - 1:
            c.arrow((85, y + 46), (85, y + 70))
    return c.svg()


DIAGRAMS: dict[str, Callable[[], str]] = {
    "layers.svg": layers,
    "slot.svg": slot,
    "rounds.svg": rounds,
    "failure.svg": failure,
    "memory.svg": memory,
}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        Path(__file__).with_name(name).write_text(draw())
