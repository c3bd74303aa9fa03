"""What `auto` chooses: the candidates, what each rank says of them, and the choice as a pure function of that.

No rank ever decides alone: each publishes an offer per candidate in round 0, and all follow what comes of these offers
and of the map of hosts. A candidate that then does not open everywhere is followed by the next one, everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gather_core.codec import Trust
from gather_core.errors import UnknownPluginError, format_ranks, shorten, summarize
from gather_core.registry import transport_classes
from gather_core.settings import FORBID_CODE, code_is_forbidden
from gather_core.transport import Capabilities, GroupContext, Transport

Where = Literal["one rank", "one host", "several hosts", "anywhere"]
Offer = dict[str, Any]
"""Of one rank, as JSON: {"where": the places that it is for, "reason": why this rank cannot use it, or None}."""
Option = dict[str, str]
"""A candidate that fits where the ranks are, as JSON: {"spec", "why": it was chosen, "reason": it cannot be, or ""}."""

_REASON_NBYTES = 256
_REASONS_NBYTES = 1024


@dataclass(frozen=True)
class Candidate:
    """What `auto` may choose."""

    spec: str
    where: Where
    """Where it is worth choosing; where it can run at all, its capabilities say too."""
    needs_its_group: bool = False
    """Only for groups that its own `join` has made: of others it is not even said that it cannot be used."""


AUTO_ORDER = (
    Candidate("single", "one rank"),
    Candidate("shm", "one host"),
    Candidate("mpi", "anywhere", needs_its_group=True),
    Candidate("shm+gloo", "several hosts"),
    Candidate("gloo", "anywhere"),
)
"""Best first."""


def offers(context: GroupContext) -> dict[str, Offer]:
    """Returns what this rank says of each candidate for a group of this size, best first; opens nothing."""
    alone = context.world_size == 1
    fitting = [one for one in AUTO_ORDER if (one.where == "one rank") == alone]
    offered = [(one, _offer(one, context)) for one in fitting]
    return {one.spec: offer for one, offer in offered if offer["reason"] is None or not one.needs_its_group}


def _offer(candidate: Candidate, context: GroupContext) -> Offer:
    where = candidate.where
    try:
        classes = transport_classes(candidate.spec)
        reason = _reason_against(classes, context)
        if len(classes) == 1 and classes[0].capabilities.locality == "host" and candidate.where == "anywhere":
            where = "one host"
    except UnknownPluginError:
        reason = "not installed"
    except Exception as exc:
        reason = summarize(exc)
    return {"where": where, "reason": None if reason is None else shorten(reason, _REASON_NBYTES)}


def _reason_against(classes: Sequence[type[Transport]], context: GroupContext) -> str | None:
    """Why this rank cannot use what these classes make up; the hosts are not known yet."""
    capabilities: list[Any] = [cls.capabilities for cls in classes]  # of a class that has them per object: a property
    if code_is_forbidden() and any(isinstance(c, Capabilities) and c.trust is not Trust.DATA for c in capabilities):
        return f"it can execute code while it receives, which {FORBID_CODE} forbids"
    if len(classes) == 1 and context.world_size > 1 and classes[0].capabilities.locality == "process":
        return "its ranks must be in one process"
    return unavailable(classes, context)


def unavailable(classes: Sequence[type[Transport]], context: GroupContext) -> str | None:
    """Returns why a transport, or what it joins, cannot run here; see `Transport.unavailable`."""
    for cls in classes:
        if reason := cls.unavailable(context):
            return reason if len(classes) == 1 else f"{cls.name}: {reason}"
    return None


def choose(offers_of_ranks: Sequence[Mapping[str, Offer]], hosts: Sequence[int]) -> list[Option]:
    """Returns the candidates that are for where the ranks are, best first; those with a reason are passed over."""
    options = []
    for spec in offers_of_ranks[0]:
        found = [offers[spec] for offers in offers_of_ranks if spec in offers]
        places: set[Where] = {offer["where"] for offer in found}
        if all(_fits(where, hosts) for where in places):
            narrowest: Where = min(places - {"anywhere"}, default="anywhere")
            options.append({"spec": spec, "why": _why(narrowest, hosts), "reason": _reasons(spec, offers_of_ranks)})
    return options


def _fits(where: Where, hosts: Sequence[int]) -> bool:
    num_hosts = len(set(hosts))
    return {
        "one rank": len(hosts) == 1,
        "one host": num_hosts == 1,
        "several hosts": num_hosts > 1,
        "anywhere": True,
    }[where]


def _why(where: Where, hosts: Sequence[int]) -> str:
    return {
        "one rank": "as there is one rank",
        "one host": f"as all {len(hosts)} ranks are on one host",
        "several hosts": f"as the {len(hosts)} ranks are on {len(set(hosts))} hosts",
        "anywhere": f"the first that all {len(hosts)} ranks can use",
    }[where]


def _reasons(spec: str, offers_of_ranks: Sequence[Mapping[str, Offer]]) -> str:
    ranks_by_reason: dict[str, list[int]] = {}
    for rank, offers_of_rank in enumerate(offers_of_ranks):
        reason = offers_of_rank[spec]["reason"] if spec in offers_of_rank else "not offered"
        if reason is not None:
            ranks_by_reason.setdefault(reason, []).append(rank)
    said = (f"{format_ranks(ranks)}: {reason}" for reason, ranks in ranks_by_reason.items())
    return shorten(", ".join(said), _REASONS_NBYTES)


def described(option: Option, passed_over: Sequence[str]) -> str:
    """Says what was chosen, and why not what would have been better."""
    return "; ".join([f"auto: {option['spec']}, {option['why']}", *passed_over])
