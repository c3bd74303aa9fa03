"""Every number of plan.toml has a case, or a test that carries it, or a reason why there is neither."""

from pathlib import Path

from faults.case import EVERY
from faults.cases import CASES
from faults.host_cases import HOST_CASES
from plan_marks import carried, problems, table

_PLAN = Path(__file__).with_name("plan.toml")


def test_every_fault_of_the_plan_is_shown() -> None:
    planned = table(_PLAN, "planned")
    shown = carried("fault")
    for number in {case.number for case in CASES} | {case.number for case in HOST_CASES}:
        shown.setdefault(number, []).append("a case")
    assert list(planned) == list(range(1, 54))
    assert problems(planned, table(_PLAN, "excused"), shown) == []


def test_the_first_twenty_are_cases_over_every_transport_with_processes_or_for_all() -> None:
    for number in range(1, 21):
        transports = {name for case in CASES if case.number == number for name in case.transports}
        missing = set(EVERY) - transports
        assert missing <= {"threads", "all_gather_object"}, f"{number} does not run over {missing}"
