"""Slots, and buffers of the seed's wire, that releases have written: they are read for ever, and written the same.

How to write the file of a new wire version: `tests/golden/write.py`; what is promised: `docs/versions.md`.
"""

import pickle

import pytest

from gather_core import ProtocolError
from gather_core import slot as wire
from gather_core.compat import seed_wire
from gather_core.exactness import difference
from golden import files, seed, slots
from golden.slots import SLOTS

TODAY = wire.WIRE_VERSION
SEED = files.read("seed", 1)["vectors"]
CASES = [(version, name) for version in files.versions_of("slot") for name in files.read("slot", version)["vectors"]]


def slot_of(version: int, name: str) -> tuple[bytes, bytes]:
    """Header and payload."""
    vector = files.read("slot", version)["vectors"][name]
    return files.from_text(vector["header"]), files.from_text(vector["payload"])


@pytest.mark.plan(67)
@pytest.mark.parametrize(("version", "name"), CASES)
def test_a_slot_that_a_release_wrote_is_what_the_description_of_the_wire_says(version: int, name: str) -> None:
    assert slots.READERS[version](*slot_of(version, name)) == SLOTS[name]


@pytest.mark.parametrize("name", SLOTS)
def test_a_slot_of_the_wire_version_of_today_is_read_exactly(name: str) -> None:
    header, payload = slot_of(TODAY, name)
    assert slots.read_today(header, payload, frames_checked=SLOTS[name].frames_checked) == SLOTS[name]


def check_still_written(name: str) -> None:
    if slots.write(SLOTS[name]) != slot_of(TODAY, name):
        pytest.fail(
            f"slot {name!r} is written otherwise than by releases of wire version {TODAY}, which will not understand "
            f"it: where that is meant, make WIRE_VERSION {TODAY + 1}, give golden/slots.py a reader of it, run "
            f"tests/golden/write.py, and leave {files.path_of('slot', TODAY).name} as it is"
        )


@pytest.mark.parametrize("name", SLOTS)
def test_a_slot_is_written_as_releases_of_this_wire_version_wrote_it(name: str) -> None:
    check_still_written(name)


@pytest.mark.parametrize(
    ("what", "otherwise"),
    [
        ("WIRE_VERSION", 2),
        ("MAGIC", b"GTHR"),
        ("_PADDING", [b"\1" * count for count in range(64)]),
        ("xxh3_64_intdigest", lambda *_: 5),
    ],
)
def test_a_change_of_the_wire_is_noticed_and_the_message_says_what_to_do(
    what: str, otherwise: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, what, otherwise)
    with pytest.raises(pytest.fail.Exception, match=r"make WIRE_VERSION 2, .* leave slot-1\.json as it is"):
        check_still_written("data")


def test_a_slot_of_another_wire_version_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    header, payload = slot_of(1, "data")
    monkeypatch.setattr(wire, "WIRE_VERSION", 2)
    with pytest.raises(ProtocolError, match="wire version 1 instead of 2: the ranks run different releases"):
        slots.read_today(header, payload, frames_checked=True)


def test_every_slot_is_in_the_file_of_the_wire_version_of_today_and_no_version_is_missing() -> None:
    assert files.versions_of("slot") == list(range(1, TODAY + 1)) == list(slots.READERS), "run tests/golden/write.py"
    assert files.read("slot", TODAY)["vectors"].keys() == SLOTS.keys()


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("name", SLOTS)
def test_the_reader_of_golden_slots_notices_every_byte_that_changed(name: str) -> None:
    header, payload = slot_of(TODAY, name)
    damaged = [(_flip(header, at), payload) for at in range(len(header))]
    damaged += [(header, _flip(payload, at)) for at in range(min(len(payload), 400))]
    for changed in damaged:
        try:
            read = slots.READERS[TODAY](*changed)
        except ValueError:
            continue
        assert read != SLOTS[name]


@pytest.mark.parametrize("name", SEED)
def test_a_buffer_of_the_originals_is_read_exactly_by_every_rank(name: str) -> None:
    max_size, parts = SEED[name]["max_size"], list(map(files.from_text, SEED[name]["parts"]))
    buffer = memoryview(b"".join(parts))
    for rank, part in enumerate(parts):
        _obj, nbytes = seed.read_part(part)
        place = seed_wire._Place(None, rank, len(parts))
        objects = seed_wire._decode(buffer, memoryview(part[:nbytes]), place, max_size)
        assert difference(objects, list(seed.JOBS[name])) is None


@pytest.mark.parametrize("name", SEED)
def test_what_is_written_on_the_seeds_wire_is_what_the_originals_read(name: str) -> None:
    for obj in seed.JOBS[name]:
        part = bytes(seed_wire._encode(obj, seed.MAX_SIZE))
        read, nbytes = seed.read_part(part)
        assert difference(read, obj) is None
        assert len(part) == nbytes
        if pickle.DEFAULT_PROTOCOL == seed.PROTOCOL:
            assert part == seed.part(obj)


def test_the_buffers_of_the_originals_are_those_of_all_jobs() -> None:
    assert seed.vectors().keys() == SEED.keys() == seed.JOBS.keys()
