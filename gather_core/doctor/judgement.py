"""All checks, applied to the facts of the ranks that are known."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from gather_core.doctor.facts import Facts
from gather_core.doctor.findings import Finding
from gather_core.doctor.job_checks import (
    Job,
    check_cores,
    check_gpus_agree,
    check_hosts,
    check_limits_agree,
    check_plugins_agree,
    check_variables_agree,
    check_versions_agree,
)
from gather_core.doctor.machine_checks import check_file_size, check_memory, check_open_files, check_shared_memory
from gather_core.doctor.network_checks import check_network
from gather_core.doctor.software_checks import (
    check_gpus,
    check_mpi,
    check_plugins,
    check_settings,
    check_torch,
    check_versions,
)

CHECKS_OF_RANK: Sequence[Callable[[Facts], Iterator[Finding]]] = (
    check_versions,
    check_torch,
    check_gpus,
    check_mpi,
    check_settings,
    check_plugins,
    check_memory,
    check_shared_memory,
    check_open_files,
    check_file_size,
)
CHECKS_OF_JOB: Sequence[Callable[[Job], Iterator[Finding]]] = (
    check_hosts,
    check_cores,
    check_network,
    check_versions_agree,
    check_variables_agree,
    check_limits_agree,
    check_gpus_agree,
    check_plugins_agree,
)


def judge(job: Job) -> list[Finding]:
    """Returns what is to be said of these ranks, in the order of the checks; not merged."""
    of_ranks = [
        replace(finding, ranks=(rank,))
        for check in CHECKS_OF_RANK
        for rank, facts in job.items()
        for finding in check(facts)
    ]
    return [*of_ranks, *(finding for check in CHECKS_OF_JOB for finding in check(job))]
