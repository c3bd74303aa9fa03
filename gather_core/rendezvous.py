"""From settings to an open transport: round 0 as one rank goes through it."""

import logging
import platform
from dataclasses import asdict, dataclass, replace

from gather_core.auto_choice import AUTO_ORDER, offers, unavailable
from gather_core.background import run_bounded
from gather_core.codec import Codec, Trust
from gather_core.deadline import Deadline, seconds
from gather_core.errors import (
    GatherError,
    SettingsError,
    SetupError,
    TransportError,
    UntrustedCodecError,
    summarize,
)
from gather_core.handshake import SETUP, Ballot, Decision, Fact, compare_facts, failure_fact, group_id
from gather_core.host_identity import HostProbe
from gather_core.joining import arrive_within
from gather_core.keys import load_key
from gather_core.local_store import ScopedStore
from gather_core.notes import Notes
from gather_core.opening import open_everywhere, open_first, opening
from gather_core.process_group import global_rank, is_initialized
from gather_core.registry import AUTO, get_codec, get_transport, transport_classes
from gather_core.seal import Seal
from gather_core.settings import FORBID_CODE, GatherSettings, code_is_forbidden
from gather_core.slot import WIRE_VERSION, covered_below_nbytes
from gather_core.transport import DEFAULT_TIMEOUT_S, GroupContext, Transport
from gather_core.verdict import Terms

_log = logging.getLogger("gather_core")

_TIDY_WITHIN_S = 1.0


@dataclass(frozen=True)
class Connection:
    """What a Gatherer works with, once all ranks have agreed and opened."""

    context: GroupContext
    codec: Codec
    transport: Transport
    notes: Notes
    terms: Terms
    timeout_s: float
    reason: str
    """Why this transport."""


@dataclass(frozen=True)
class _Plan:
    """What this rank would do, if all others agree."""

    codec: Codec
    transport: Transport | None
    """None: `auto` chooses."""
    seal: Seal | None
    fact: Fact


def connect(settings: GatherSettings, group: object) -> Connection:
    """(all ranks of the group) Joins, compares, opens and confirms.

    Raises:
        ValueError: This rank is not in `group`; on this rank only.
        TypeError: `group` is no group; on this rank, while the others of the default group get a SetupError.
        SetupError: A rank failed, did not come, or disagrees; on every rank, with the same text. On a failing rank
            the original is `__cause__`.
    """
    probe = HostProbe()
    try:
        return _connect(settings, group, probe)
    finally:
        probe.close()


def _connect(settings: GatherSettings, group: object, probe: HostProbe) -> Connection:
    try:
        context, number, host = _arrive_and_look(settings.transport, group, probe, _timeout_s(settings, None))
    except (TypeError, SettingsError) as exc:
        problem = _problem(settings)
        if isinstance(exc, TypeError):
            _report_bad_group(problem or exc)
        if problem is None:
            raise
        raise SetupError({global_rank(): summarize(problem)}) from problem
    except (TimeoutError, RuntimeError) as exc:
        raise SetupError({global_rank(): f"the job's store does not answer: {summarize(exc)}"}) from exc
    deadline = Deadline(_timeout_s(settings, context))
    plan, failure = _make_plan(settings, context, host)
    try:
        return _agree_and_open(plan, failure, settings, context, number, deadline)
    except SetupError:
        raise
    except BaseException as exc:  # such as a Ctrl-C between the stages
        _tell_the_others(plan, context, exc)
        raise


def _tell_the_others(plan: _Plan | None, context: GroupContext, exc: BaseException) -> None:
    """Decides what the others wait for, or will: that this rank has failed."""
    names = [plan.transport.name] if plan and plan.transport else [candidate.spec for candidate in AUTO_ORDER]
    for name in names:
        opening(name, context).fail(summarize(exc))


def _agree_and_open(
    plan: _Plan | None,
    failure: Exception | None,
    settings: GatherSettings,
    context: GroupContext,
    number: int,
    deadline: Deadline,
) -> Connection:
    """(all ranks) Compares what the ranks were given, opens what they agree on, and confirms."""
    ballot = Ballot(context.store, SETUP, context.rank, context.world_size)
    try:
        decision = ballot.vote(plan.fact if plan else failure_fact(failure), compare_facts, deadline)
        if plan is None:
            raise SetupError({context.rank: "failed after the others had gone on"})
    except SetupError as exc:
        raise exc from failure or exc.__cause__
    # From here on the ranks are at one point, and so end at one moment, however far apart they came.
    opening_deadline = Deadline(decision["timeout_s"])
    context = replace(context, hosts=tuple(decision["hosts"]))
    notes = Notes(context.store, context.bell, context.scope, context.rank, context.ranks)
    try:
        transport, reason = _open(plan, settings, context, decision, opening_deadline)
    except BaseException:
        notes.close()
        raise
    transport.check_interrupt = notes.check
    terms = Terms(
        group_id=group_id(context.ranks, number, decision["nonce"]),
        world_size=context.world_size,
        slot_nbytes=settings.slot_nbytes_for(context.world_size),
        limits=settings.limits,
        round_1_nbytes=transport.round_1_nbytes,
        overflow_is_error=settings.overflow == "error",
        covered_below_nbytes=covered_below_nbytes(
            transport.capabilities.crosses_wire,
            None if settings.payload_checksum == "auto" else settings.payload_checksum,
        ),
        seal=plan.seal,
    )
    context = replace(context, process_group=None)  # so that a Gatherer does not keep its group alive
    return Connection(context, plan.codec, transport, notes, terms, deadline.timeout_s, reason)


def _problem(settings: GatherSettings) -> Exception | None:
    """What is wrong with the settings; it may be why no group was found: a file that names the transport is missing."""
    try:
        settings.check()
    except Exception as exc:
        return exc
    return None


def _report_bad_group(exc: Exception) -> None:
    """Tells the ranks of the default group, which are most likely the ones that would wait for this rank."""
    if not is_initialized():
        return
    try:
        world, number = arrive_within(AUTO, None, _TIDY_WITHIN_S)
    except (TimeoutError, RuntimeError) as silent:
        _log.warning("the other ranks were not told that this one got no group: %s", summarize(silent))
        return
    ballot = Ballot(ScopedStore(str(number), world.store), SETUP, world.rank, world.world_size)
    ballot.fail(summarize(exc))


def _arrive_and_look(
    transport: object, group: object, probe: HostProbe, timeout_s: float
) -> tuple[GroupContext, int, str]:
    """Returns this rank's place in the group, with what is this Gatherer's own; its number; and this rank's host."""
    deadline = Deadline(timeout_s)
    shared, number = arrive_within(transport, group, timeout_s)
    store = ScopedStore(str(number), shared.store)
    context = replace(shared, store=store, scope=f"{shared.name}/{number}")
    if context.world_size == 1:
        return context, number, "alone"
    return context, number, run_bounded(lambda: probe.look(context), deadline.remaining_s())


def _timeout_s(settings: GatherSettings, context: GroupContext | None) -> float:
    default_s = context.timeout_s if context else DEFAULT_TIMEOUT_S
    if settings.timeout_s is None:
        return default_s
    try:
        return seconds(settings.timeout_s)
    except GatherError:  # reported in round 0
        return default_s


def _make_plan(settings: GatherSettings, context: GroupContext, host: str) -> tuple[_Plan | None, Exception | None]:
    """Builds codec and transport; what fails is returned, for round 0 to report."""
    try:
        settings.check()
        codec = settings.codec if isinstance(settings.codec, Codec) else get_codec(settings.codec)
        transport = _make_transport(settings.transport, context)
        _check_trust(codec, transport)
        seal = None if settings.key is None else Seal(load_key(settings.key))
        return _Plan(codec, transport, seal, _fact(settings, context, codec, transport) | {"host": host}), None
    except Exception as exc:
        return None, exc


def _check_trust(codec: Codec, transport: Transport | None) -> None:
    """Refuses what can execute code that a peer chose, where the variable says so; no setting lifts that.

    Raises:
        UntrustedCodecError: `GATHER_FORBID_CODE` is set, to anything but 0.
    """
    if not code_is_forbidden():
        return
    if codec.trust is not Trust.DATA:
        raise UntrustedCodecError(
            f"codec {codec.spec!r} can execute code while it decodes, which {FORBID_CODE} forbids; use one that "
            "builds data only, such as 'msgpack'"
        )
    if transport is not None and transport.capabilities.trust is not Trust.DATA:
        raise UntrustedCodecError(
            f"transport {transport.spec!r} can execute code while it receives, which {FORBID_CODE} forbids; use one "
            "that carries bytes as they are, such as 'gloo'"
        )


def _make_transport(transport: str | Transport, context: GroupContext) -> Transport | None:
    if transport == AUTO:
        return None
    made = get_transport(transport) if isinstance(transport, str) else transport
    if made.taken:
        raise SettingsError("this transport belongs to another Gatherer already: give each one of its own")
    parts = transport_classes(transport)[1:] if isinstance(transport, str) else ()
    if reason := made.unavailable(context) or unavailable(parts, context):
        raise TransportError(f"transport {made.spec!r} is not available here: {reason}")
    return made


def _fact(settings: GatherSettings, context: GroupContext, codec: Codec, transport: Transport | None) -> Fact:
    return {
        "wire": WIRE_VERSION,
        "codec": codec.fingerprint(),
        "transport": transport.fingerprint() if transport else AUTO,
        "slot_nbytes": settings.slot_nbytes_for(context.world_size),
        "overflow": settings.overflow,
        "limits": asdict(settings.limits),
        "payload_checksum": settings.payload_checksum,
        "key": "none" if settings.key is None else "given",
        "ranks": list(context.ranks),
        "timeout_s": _timeout_s(settings, context),
        "auto": {} if transport else offers(context),
        "versions": platform.python_version(),
    }


def _open(
    plan: _Plan, settings: GatherSettings, context: GroupContext, decision: Decision, deadline: Deadline
) -> tuple[Transport, str]:
    """Opens the chosen transport on all ranks, or, for `auto`, the first that opens on all of them."""
    if plan.transport is not None:
        open_everywhere(plan.transport, plan.transport.name, settings, context, deadline)
        return plan.transport, "chosen by the job"
    return open_first(decision["auto"], settings, context, deadline)
