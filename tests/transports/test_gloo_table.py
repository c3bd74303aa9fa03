"""The command that measures Gloo's ways measures each of them, and shows what the transport chooses."""

import pytest

from gather_bench.gloo_table import FORCED, HEADER, Row, measure
from gather_bench.loopback import LOOPBACK_INTERFACE
from gather_transports.gloo import GlooTransport
from gather_transports.gloo_choice import Choice


@pytest.mark.parametrize("way", FORCED)
@pytest.mark.parametrize("slot_nbytes", [512, 1 << 20, 64 << 20])
def test_its_options_leave_one_way_only(way: str, slot_nbytes: int) -> None:
    GlooTransport(**FORCED[way])
    assert Choice(8, 1, **FORCED[way]).round_1(slot_nbytes)[0] == way


def test_a_row_says_what_is_chosen_and_what_would_have_been_faster() -> None:
    seconds = {"hub": 300e-6, "all_to_all": 200e-6, "direct": 400e-6}
    assert str(Row(2, 16 << 10, seconds, "hub")).split() == (
        ["2", "16", "KiB", "300", "200", "400", "hub,", "1.50", "times", "as", "long", "as", "all_to_all"]
    )
    assert str(Row(2, 512, seconds, "all_to_all")).split() == ["2", "512", "B", "300", "200", "400", "all_to_all"]
    assert HEADER.split() == ["ranks", "slot", *FORCED, "chosen"]


def test_it_measures_every_way_beside_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", LOOPBACK_INTERFACE)  # set, so that what the command sets is taken back
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small, large = measure(2, [512, 8 << 20], rounds=1)
    assert (small.world_size, small.slot_nbytes, small.chosen, large.chosen) == (2, 512, "hub", "direct")
    for row in (small, large):
        assert set(row.seconds) == set(FORCED)
        assert all(seconds > 0 for seconds in row.seconds.values())
