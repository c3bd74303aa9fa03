"""Findings: how they are merged, what the exit status is, and how they are printed."""

import json
from io import StringIO

import pytest
from rich.console import Console

from gather_core.doctor.facts import Facts
from gather_core.doctor.findings import Finding, exit_status, merge, nbytes_text, worst
from gather_core.doctor.meeting import Meeting
from gather_core.doctor.report import as_json, print_table
from healthy_facts import HEALTHY, facts

OK, SLOW, FAILS = (Finding(level, "thing", f"is {level}", "mend it") for level in ("ok", "slow", "fails"))


@pytest.mark.parametrize(
    ("findings", "level", "status", "strict_status"),
    [([], "ok", 0, 0), ([OK], "ok", 0, 0), ([OK, SLOW], "slow", 0, 1), ([SLOW, FAILS, OK], "fails", 1, 1)],
)
def test_the_exit_status_is_that_of_the_worst(
    findings: list[Finding], level: str, status: int, strict_status: int
) -> None:
    assert worst(findings) == level
    assert exit_status(findings, strict=False) == status
    assert exit_status(findings, strict=True) == strict_status


def test_what_ranks_have_found_alike_is_one_finding_and_the_worst_come_first() -> None:
    found = [
        Finding("ok", "memory", "8 GiB", ranks=(0,)),
        Finding("slow", "cores", "few", "fewer ranks", (0,)),
        Finding("ok", "memory", "9 GiB", ranks=(1,)),
        Finding("slow", "cores", "few", "fewer ranks", (2,)),
        Finding("fails", "cores", "none", "some", (1,)),
    ]
    assert merge(found) == [
        Finding("fails", "cores", "none", "some", (1,)),
        Finding("slow", "cores", "few", "fewer ranks", (0, 2)),
        Finding("ok", "memory", "8 GiB (on rank 0, other values on others)", ranks=(0, 1)),
    ]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (1023 << 20, "1023 MiB"), (24 << 30, "24 GiB")],
)
def test_sizes_are_told_in_the_unit_that_fits(nbytes: int, text: str) -> None:
    assert nbytes_text(nbytes) == text


def test_facts_come_back_from_json_as_they_were() -> None:
    changed = facts(limits={"file_nbytes": 5}, cores={"quota": 1.5}, launch={"local_ranks": None})
    assert Facts.from_json(changed.as_json()) == changed
    with pytest.raises(ValueError, match="torch"):
        Facts.from_json(json.dumps({"versions": {}}))


def table(met: Meeting, *findings: Finding, width: int = 200) -> str:
    out = StringIO()
    print_table(Console(file=out, width=width), met, findings)
    return out.getvalue()


def test_the_table_says_what_it_is_how_to_mend_it_and_of_whom() -> None:
    met = Meeting(0, 4, {0: HEALTHY}, ())
    finding = Finding("fails", "network", "no [such] interface", "set another", (1, 2))
    lines = [line.split() for line in table(met, finding, Finding("ok", "hosts", "one")).splitlines() if line.strip()]
    assert ["fails", "network", "1-2", "no", "[such]", "interface"] in lines
    assert ["mend:", "set", "another"] in lines
    assert ["ok", "hosts", "all", "one"] in lines
    assert lines[-1] == ["Something", "will", "fail."]


def test_one_rank_has_no_column_of_ranks() -> None:
    text = table(Meeting(0, 1, {0: HEALTHY}, ()), Finding("slow", "network", "slow", "mend", (0,)))
    assert "ranks" not in text
    assert "Nothing fails" in text


def test_the_json_holds_findings_and_facts() -> None:
    met = Meeting(0, 2, {1: HEALTHY}, (), "rank 0 of 2", is_complete=False)
    values = json.loads(as_json(met, [SLOW], 0))
    assert values["findings"] == [
        {"level": "slow", "subject": "thing", "what": "is slow", "mend": "mend it", "ranks": []}
    ]
    assert (values["world_size"], values["gatherer"], values["complete"]) == (2, "rank 0 of 2", False)
    assert (values["status"], values["worst"]) == (0, "slow")
    assert Facts.from_json(json.dumps(values["facts"]["1"])) == HEALTHY
