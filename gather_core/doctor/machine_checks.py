"""What the machine's facts of one rank mean: each check is a pure function from facts to findings."""

from collections.abc import Iterator

from gather_core.doctor.facts import Facts
from gather_core.doctor.findings import Finding, nbytes_text

_DESCRIPTORS_PER_NEAR_PEER = 6
"""What a rank keeps open for each other rank of its host, once large objects have travelled through shared memory:
docs/shm.md, and one for torch's own group. Seen: 24 with 2 ranks, 36 with 4."""
_DESCRIPTORS_PER_FAR_PEER = 2
"""For each rank of another host: a connection of torch's own group, and one of Gloo's. Seen: 17 with 2, 21 with 4."""
_OWN_DESCRIPTORS = 32
"""What a rank has open without peers: pipes, the store, devices. Seen: 18 without a GPU."""
_USUAL_DESCRIPTORS = 1024
"""The usual limit, which is meant for programs without peers, data files and loaders."""
_SLOTS_PER_RANK = 2
_LITTLE_MEMORY_NBYTES = 512 << 20
_SMALL_SHM_NBYTES = 64 << 20
"""What Docker gives to a container that asks for no more."""
_FOLDER = "folder="


def check_memory(facts: Facts) -> Iterator[Finding]:
    """Whether what host and control groups leave is enough for the slots of the ranks of this host."""
    left = facts.memory.available_nbytes
    if left is None:
        yield Finding("ok", "memory", "this system does not tell how much is left")
        return
    launch = facts.launch
    needed = (launch.local_ranks or 1) * _SLOTS_PER_RANK * launch.world_size * facts.settings.slot_nbytes
    text = f"{nbytes_text(left)} left by host and control groups"
    mend = "raise the memory of the container or job, or end what else takes it"
    if left < needed:
        mend += ", or lower slot_nbytes"
        yield Finding("fails", "memory", f"{text}; the slots of this host's ranks take {nbytes_text(needed)}", mend)
    elif left < max(2 * needed, _LITTLE_MEMORY_NBYTES):
        yield Finding("slow", "memory", f"{text}: large objects will not fit, or be swapped", mend)
    else:
        yield Finding("ok", "memory", text)


def check_shared_memory(facts: Facts) -> Iterator[Finding]:
    """Whether /dev/shm is large enough for those that use it: `shm` only does where its option says so."""
    size, free = facts.memory.shm_nbytes, facts.memory.shm_free_nbytes
    used_by_settings = _FOLDER in facts.settings.transport and "/dev/shm" in facts.settings.transport
    mend = "docker run --shm-size=8g (or --ipc=host); in Kubernetes, an emptyDir of medium Memory at /dev/shm"
    if size is None or free is None:
        if used_by_settings:
            yield Finding("fails", "/dev/shm", f"there is none, but transport is {facts.settings.transport}", mend)
        return
    needed = (facts.launch.local_ranks or 1) * _SLOTS_PER_RANK * facts.settings.slot_nbytes
    text = f"{nbytes_text(free)} of {nbytes_text(size)} free"
    if used_by_settings and free < needed:
        what = f"{text}, but the slots of transport {facts.settings.transport} take {nbytes_text(needed)}"
        yield Finding("fails", "/dev/shm", what, f"leave out {_FOLDER.rstrip('=')}, or {mend}")
    elif size <= _SMALL_SHM_NBYTES:
        what = f"{text}: too little for workers of torch's DataLoader, for NCCL and for MPICH"
        yield Finding("slow", "/dev/shm", f"{what}; the transport shm does not need it", mend)
    else:
        yield Finding("ok", "/dev/shm", text)


def check_open_files(facts: Facts) -> Iterator[Finding]:
    """Whether the limit on descriptors is enough for so many ranks."""
    limit, at_most = facts.limits.open_files, facts.limits.open_files_at_most
    num_ranks = facts.launch.world_size
    num_near = (facts.launch.local_ranks or num_ranks) - 1
    num_far = num_ranks - 1 - num_near
    needed = _OWN_DESCRIPTORS + _DESCRIPTORS_PER_NEAR_PEER * num_near + _DESCRIPTORS_PER_FAR_PEER * num_far
    if limit is None or limit >= max(2 * needed, _USUAL_DESCRIPTORS):
        yield Finding("ok", "open files", f"limit {'none' if limit is None else limit}, enough for {_ranks(num_ranks)}")
        return
    wanted = max(2 * needed, _USUAL_DESCRIPTORS)
    mend = f"ulimit -n {wanted} before the job starts"
    if at_most is not None and at_most < wanted:
        mend = f"raise the hard limit of {at_most} to {wanted}: docker run --ulimit nofile={wanted}, or limits.conf"
    if limit < needed:
        what = f"the limit is {limit}, and each process of a job of {_ranks(num_ranks)} needs about {needed}"
        yield Finding("fails", "open files", what, mend)
    else:
        what = f"the limit is {limit}, of which a job of {_ranks(num_ranks)} takes about {needed}: little is left to it"
        yield Finding("slow", "open files", what, mend)


def check_file_size(facts: Facts) -> Iterator[Finding]:
    """Whether a limit on the size of files keeps large objects out of shared memory."""
    limit = facts.limits.file_nbytes
    if limit is None:
        yield Finding("ok", "file size", "no limit")
        return
    what = f"the limit is {nbytes_text(limit)}: objects larger than a slot cannot travel through shared memory"
    yield Finding("fails", "file size", what, "ulimit -f unlimited before the job starts, or transport='gloo'")


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"
