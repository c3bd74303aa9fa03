"""Opening a transport on all ranks: all confirm, and where one cannot, all close again."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from gather_core.auto_choice import Option, described
from gather_core.background import run_bounded
from gather_core.deadline import Deadline
from gather_core.errors import PeerLostError, SetupError, TransportTimeoutError, summarize
from gather_core.handshake import Ballot, always_fine, failure_fact
from gather_core.registry import get_transport
from gather_core.scratch_store import ScratchStore
from gather_core.settings import GatherSettings
from gather_core.transport import GroupContext, PeerState, Transport

_log = logging.getLogger("gather_core")
_TIDY_WITHIN_S = 1.0
_VOTE_SHARE = 0.2
_SHORTEST_VOTE_S, _LONGEST_VOTE_S = 0.3, 1.0
"""What is left of the time for the votes, but for half of it: whoever still opens knows who is missing, and says so
before those that wait for votes can only name all who have not voted."""


def open_first(
    options: Sequence[Option], settings: GatherSettings, context: GroupContext, deadline: Deadline
) -> tuple[Transport, str]:
    """(all ranks) Opens the first option that opens on all ranks; returns it, and why it is that one."""
    passed_over: list[str] = []
    failure: SetupError | None = None
    for option in options:
        spec = option["spec"]
        if option["reason"]:
            passed_over.append(f"{spec}: {option['reason']}")
            continue
        transport = get_transport(spec)
        try:
            open_everywhere(transport, spec, settings, context, deadline)
        except SetupError as exc:
            failure = exc
            passed_over.append(f"{spec} did not open: {exc}")
            _log.warning("auto: %s", passed_over[-1])
        else:
            return transport, described(option, passed_over)
    if failure is not None:
        raise failure
    text = "; ".join(["auto found no transport that all ranks can use", *passed_over])
    raise SetupError(dict.fromkeys(range(context.world_size), text))


def opening(name: str, context: GroupContext) -> Ballot:
    """The stage in which the ranks confirm that they have opened the transport of that name."""
    return Ballot(context.store, f"open/{name}", context.rank, context.world_size)


def open_everywhere(
    transport: Transport, name: str, settings: GatherSettings, context: GroupContext, deadline: Deadline
) -> None:
    """(all ranks) Opens and confirms, as the stage `name`; on a failure of any all close again and raise the same."""
    ballot = opening(name, context)
    store = ScratchStore(f"transport/{name}", context.store)
    transport.taken = True
    transport.check_interrupt = ballot.check
    failure: Exception | None = None
    try:
        try:
            slot_nbytes = settings.slot_nbytes_for(context.world_size)
            # A rank may still be closing what did not open everywhere when another opens what comes next.
            own = replace(context, store=store, scope=f"{context.scope}/{name}")
            transport.open(own, slot_nbytes, timeout_s=_opening_s(deadline))
        except BaseException as exc:
            ballot.fail(summarize(exc), _at_fault(exc))
            if not isinstance(exc, Exception):
                raise
            failure = exc
        if failure is None:
            ballot.vote({}, always_fine, deadline, lambda: _fail_for_dead(ballot, transport))
        else:
            ballot.vote(failure_fact(failure), always_fine, deadline)
    except BaseException as exc:
        transport.close()
        if isinstance(exc, SetupError) and failure is not exc:
            raise exc from failure or exc.__cause__
        raise
    finally:
        try:
            run_bounded(store.tidy_up, _TIDY_WITHIN_S)
        except (TimeoutError, RuntimeError) as exc:
            _log.debug("keys are left in the job's store: %s", exc)


def _opening_s(deadline: Deadline) -> float:
    """Seconds for opening: what is left, without what the votes need."""
    remaining_s = deadline.remaining_s()
    votes_s = min(max(_VOTE_SHARE * remaining_s, _SHORTEST_VOTE_S), _LONGEST_VOTE_S)
    return remaining_s - min(votes_s, remaining_s / 2)


def _at_fault(exc: BaseException) -> Sequence[int]:
    """The ranks that a failed opening names; none where it is this one's own failure."""
    if isinstance(exc, TransportTimeoutError):
        return exc.missing
    return exc.ranks if isinstance(exc, PeerLostError) else ()


def _fail_for_dead(ballot: Ballot, transport: Transport) -> None:
    """Names ranks that have died since they were met, while others wait for their vote."""
    dead = [rank for rank, state in enumerate(transport.peers()) if state is PeerState.DEAD]
    if dead:
        ballot.fail("its process has ended", dead)
