"""All facts of this rank, read in one place, before it meets any other."""

from gather_core.doctor.facts import Facts
from gather_core.doctor.launch import look_at_launch
from gather_core.doctor.machine import (
    look_at_cores,
    look_at_host,
    look_at_limits,
    look_at_memory,
    look_at_network,
)
from gather_core.doctor.software import (
    look_at_mpi,
    look_at_plugins,
    look_at_settings,
    look_at_variables,
    look_at_versions,
)
from gather_core.doctor.torch_job import look_at_torch


def look() -> Facts:
    """Reads everything; takes a few seconds, as it imports torch and every plug-in, and changes nothing."""
    return Facts(
        versions=look_at_versions(),
        torch=look_at_torch(),
        network=look_at_network(),
        memory=look_at_memory(),
        limits=look_at_limits(),
        cores=look_at_cores(),
        host=look_at_host(),
        launch=look_at_launch(),
        mpi=look_at_mpi(),
        settings=look_at_settings(),
        plugins=look_at_plugins(),
        variables=look_at_variables(),
    )
