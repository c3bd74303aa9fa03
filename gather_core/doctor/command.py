"""The command `gather doctor`."""

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gather_core.doctor.findings import Finding
    from gather_core.doctor.meeting import Meeting


def doctor(
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=0.1, help="Seconds for each step in which ranks meet.")
    ] = 30.0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 for what is slow too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check this machine and job: what will be slow or fail, and how to mend it.

    Under torchrun or mpiexec all ranks take part, and rank 0 prints:

    torchrun --nproc-per-node 2 -m gather_core doctor

    The exit status is 0 where nothing will fail, 1 where something will (with --strict: or will be slow), and 2 for
    wrong usage. The JSON is an object with world_size; gatherer (its description, or null); complete (whether all
    ranks came together); status; worst ("ok", "slow" or "fails"); findings, a list with level, subject, what, mend and
    ranks; and facts, by rank.
    """
    from gather_core.doctor.findings import exit_status, merge
    from gather_core.doctor.judgement import judge
    from gather_core.doctor.look import look
    from gather_core.doctor.meeting import meeting

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # with stacks; what fails is a finding
    with meeting(look(), timeout_s) as met:
        findings = merge([*met.findings, *judge(met.known)])
        status = exit_status(findings, strict=strict)
        if met.rank == 0:
            _print(met, findings, status, as_json=as_json)
        elif not met.is_complete:  # rank 0 may know nothing of this
            typer.echo(f"rank {met.rank}: {met.findings[0].what}", err=True)
    raise typer.Exit(status)


def _print(met: "Meeting", findings: "Sequence[Finding]", status: int, *, as_json: bool) -> None:
    from rich.console import Console

    from gather_core.doctor import report

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have all characters of a reason
    if as_json:
        typer.echo(report.as_json(met, findings, status))
    else:
        report.print_table(Console(), met, findings)
    sys.stdout.flush()  # before other ranks exit, upon which a launcher may end this one
