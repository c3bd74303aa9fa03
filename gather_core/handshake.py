"""Round 0: the ranks compare what they were given, through the store, before the first byte moves.

Why before: a Gloo message longer than the receive that waits for it aborts the receiving process uncatchably, so sizes
must be known to agree. Every stage is one `Ballot`: each rank publishes a fact, the last to arrive decides for all.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from xxhash import xxh3_64_intdigest

from gather_core.auto_choice import choose
from gather_core.background import Background, run_bounded
from gather_core.deadline import POLL_S, Deadline
from gather_core.errors import SUMMARY_NBYTES, SetupError, format_ranks, printable, shorten, summarize
from gather_core.transport import Store

SETUP = "setup"
"""The stage in which the ranks compare what they were given."""

Fact = dict[str, Any]
"""What one rank publishes, as JSON; {"failure": text} from a rank that cannot take part."""
Decision = dict[str, Any]
"""{"failures": {rank: text}} or whatever else the deciding function returned."""

_log = logging.getLogger("gather_core")

_FACT_NBYTES = 1 << 20
_DECISION_NBYTES = 4 << 20
"""Bounds on what goes into the store: a value above 8 MiB closes the connection to a TCPStore."""
_VALUE_NBYTES = 1024
"""Longest value of a setting in a message."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.05
"""Between two looks for a decision: so far apart do the ranks go on."""
_GRACE_S = 1.0
"""How long the store, and a rank that is about to decide, get after a deadline, in seconds."""
_SILENT_STORE = (
    "the job's store does not answer: not within {timeout_s:g} s; the process that hosts it may be stopped, overloaded "
    "or out of reach"
)
_NOT_COMPARED = frozenset({"auto", "host", "timeout_s", "versions"})


@dataclass(eq=False)
class Ballot:
    """One stage of round 0 on a store that belongs to one Gatherer.

    Whatever asks the store does so on a thread, as a store whose host does not answer blocks for minutes: no call here
    takes much longer than its deadline, and all can be interrupted.
    """

    store: Store
    stage: str
    rank: int
    world_size: int
    _look: "Background[Decision] | None" = field(default=None, init=False, repr=False)
    """What `check` has asked and not been answered yet."""

    def vote(
        self,
        fact: Fact,
        decide: Callable[[Sequence[Fact]], Decision],
        deadline: Deadline,
        look_around: Callable[[], None] | None = None,
    ) -> Decision:
        """(all ranks) Publishes this rank's fact and returns the common decision.

        `decide` runs on the last rank to arrive, and not at all if a rank reports a failure. `look_around` is called
        every 0.25 s meanwhile, and may `fail` for ranks that it finds dead.

        Raises:
            SetupError: A rank failed, or did not arrive in time; the same on every rank that arrived. Or the store
                failed or does not answer; on this rank. What went wrong on this rank is `__cause__`.
        """
        text, cause = _as_json(fact)
        overdue = threading.Event()
        call = Background(lambda stop: self._vote(text, decide, deadline, stop, overdue), "gather-core-ballot")
        try:
            answered = call.start().wait(deadline.remaining_s() + _GRACE_S / 2, look_around) or (
                overdue.is_set() and call.wait(2 * _GRACE_S)
            )
        except BaseException as exc:
            self.fail(f"{type(exc).__name__} while waiting for the others")
            raise
        finally:
            call.stop()
        if not answered:
            raise SetupError({self.rank: _SILENT_STORE.format(timeout_s=deadline.timeout_s)})
        try:
            decision, failure = call.result()
        except Exception as exc:
            raise self._store_failed(exc) from exc
        _raise_failures(decision, cause or failure)
        return decision

    def fail(self, text: str, ranks: Sequence[int] = ()) -> None:
        """Decides for all ranks, unless they have decided already, that this one failed, or those that are named.

        Waits for nobody, and raises nothing: where the store cannot be told within a second, the others will miss this
        rank.
        """
        failures = dict.fromkeys(ranks or (self.rank,), text)
        try:
            run_bounded(lambda: self._publish({"failures": failures}), _GRACE_S, "gather-core-ballot")
        except Exception as exc:
            _log.warning("rank %d could not tell the others that it failed: %s", self.rank, summarize(exc))

    def check(self) -> None:
        """Raises what `vote` would raise if some rank has failed already; for use while this rank prepares its fact.

        Returns within 0.25 s; an answer of the store that comes later is for the next call.
        """
        look = self._look = self._look or self._start_look()
        if not look.wait(POLL_S):
            return
        self._look = None
        try:
            decision = look.result()
        except Exception as exc:
            raise self._store_failed(exc) from exc
        _raise_failures(decision, None)

    def _start_look(self) -> "Background[Decision]":
        return Background(lambda _: self._decision_so_far(), "gather-core-ballot").start()

    def _store_failed(self, exc: Exception) -> SetupError:
        return SetupError({self.rank: f"the job's store failed: {summarize(exc)}"})

    def _key(self, name: str) -> str:
        return f"{self.stage}/{name}"

    # What follows runs on a thread and may block for as long as the store does.

    def _vote(
        self,
        fact: str,
        decide: Callable[[Sequence[Fact]], Decision],
        deadline: Deadline,
        stop: threading.Event,
        overdue: threading.Event,
    ) -> tuple[Decision, Exception | None]:
        """Returns the decision, and why this rank could not make it where it was to."""
        failure = None
        self.store.set(self._key(f"fact/{self.rank}"), fact)
        if stop.is_set():  # the store was silent until now
            self._give_up()
        if self.store.add(self._key("arrived"), 1) == self.world_size:
            self.store.set(self._key("decider"), str(self.rank))
            failure = self._decide(decide)
        self._wait(deadline, stop, overdue)
        decision = self._decision_so_far()
        self._clean_up()
        return decision, failure

    def _decide(self, decide: Callable[[Sequence[Fact]], Decision]) -> Exception | None:
        facts = [json.loads(self.store.get(self._key(f"fact/{rank}"))) for rank in range(self.world_size)]
        failures = {rank: fact["failure"] for rank, fact in enumerate(facts) if "failure" in fact}
        try:
            decision = {"failures": failures} if failures else decide(facts)
        except Exception as exc:
            self._publish({"failures": {self.rank: f"{summarize(exc)}, while comparing what the ranks were given"}})
            return exc
        self._publish(decision)
        return None

    def _publish(self, decision: Decision) -> None:
        self.store.compare_set(self._key("decision"), "", _bounded(decision))

    def _decision_so_far(self) -> Decision:
        if not self.store.check([self._key("decision")]):
            return {}
        decision: Decision = json.loads(self.store.get(self._key("decision")))
        return decision

    def _wait(self, deadline: Deadline, stop: threading.Event, overdue: threading.Event) -> None:
        """Returns when there is a decision, if need be one that this rank takes at its deadline."""
        if self._decided(stop, deadline.passed):
            return
        overdue.set()
        missing = self._missing(deadline.timeout_s)
        if not missing:
            grace = Deadline(_GRACE_S)
            if self._decided(stop, grace.passed):
                return
        self._publish({"failures": missing or self._undecided(deadline.timeout_s)})

    def _decided(self, stop: threading.Event, passed: Callable[[], bool]) -> bool:
        """Waits for the decision; False if time has passed without one."""
        pause_s = _FIRST_PAUSE_S
        while not self.store.check([self._key("decision")]):
            if passed():
                return False
            if stop.wait(pause_s):
                self._give_up()
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        return True

    def _give_up(self) -> None:
        self._publish({"failures": {self.rank: "gave up before the ranks had decided"}})

    def _missing(self, timeout_s: float) -> dict[int, str]:
        text = f"never came: nothing heard within {timeout_s:g} s"
        return {rank: text for rank in range(self.world_size) if not self.store.check([self._key(f"fact/{rank}")])}

    def _undecided(self, timeout_s: float) -> dict[int, str]:
        """Names the rank that was to decide, as the last to come; all ranks where that is not known."""
        if self.store.check([self._key("decider")]):
            text = f"came last, and so was to decide for all, but had not within {timeout_s:g} s: raise timeout_s"
            return {int(self.store.get(self._key("decider"))): text}
        text = f"all ranks came, but the last had not yet decided for all within {timeout_s:g} s: raise timeout_s"
        return dict.fromkeys(range(self.world_size), text)

    def _clean_up(self) -> None:
        """The last rank to have read the decision deletes the stage's keys."""
        if self.store.add(self._key("left"), 1) < self.world_size:
            return
        facts = (f"fact/{rank}" for rank in range(self.world_size))
        for name in ("arrived", "decider", "decision", "left", *facts):
            self.store.delete_key(self._key(name))


def _raise_failures(decision: Decision, cause: BaseException | None) -> None:
    if "failures" in decision:
        raise SetupError({int(rank): printable(text) for rank, text in decision["failures"].items()}) from cause


def _as_json(fact: Fact) -> tuple[str, Exception | None]:
    """Returns a fact as text that the store takes; a failure, and why, where it cannot be one."""
    try:
        text = json.dumps(fact)
        if len(text) > _FACT_NBYTES:
            raise ValueError(f"{len(text)} bytes as JSON, where {_FACT_NBYTES} are allowed")
    except Exception as exc:
        failure = f"settings or fingerprints that cannot be compared as JSON: {summarize(exc)}"
        return json.dumps({"failure": failure}), exc
    return text, None


def _bounded(decision: Decision) -> str:
    """Returns a decision as text that the store takes; failures of many ranks are shortened until they fit."""
    text = json.dumps(decision)
    nbytes = SUMMARY_NBYTES
    while len(text) > _DECISION_NBYTES and "failures" in decision and nbytes:
        failures = {rank: shorten(failure, nbytes) for rank, failure in decision["failures"].items()}
        text = json.dumps({"failures": failures})
        nbytes //= 2
    return text


def compare_facts(facts: Sequence[Fact]) -> Decision:
    """Decides stage 1: ranks at odds with the majority are failures; else nonce, hosts, choices for `auto`, timeout."""
    failures: dict[int, list[str]] = {}
    for key in facts[0]:
        if key not in _NOT_COMPARED:
            for rank, text in _minority(key, [fact.get(key) for fact in facts]).items():
                failures.setdefault(rank, []).append(text)
    if failures:
        return {"failures": {rank: "; ".join(texts) for rank, texts in failures.items()}}
    names = list(dict.fromkeys(fact["host"] for fact in facts))
    hosts = [names.index(fact["host"]) for fact in facts]
    return {
        "nonce": os.urandom(8).hex(),
        "auto": choose([fact["auto"] for fact in facts], hosts),
        "hosts": hosts,
        "timeout_s": min(fact["timeout_s"] for fact in facts),
    }


def _minority(key: str, values: Sequence[Any]) -> dict[int, str]:
    """Names the ranks whose value is not the most common one (among equals: the one of the lowest rank)."""
    ranks_by_value: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks_by_value.setdefault(json.dumps(value), []).append(rank)
    common = max(ranks_by_value, key=lambda value: len(ranks_by_value[value]))
    rest = format_ranks(ranks_by_value[common])
    verb = "has" if len(ranks_by_value[common]) == 1 else "have"
    return {
        rank: f"{key} is {shorten(value, _VALUE_NBYTES)}, but {rest} {verb} {shorten(common, _VALUE_NBYTES)}"
        for value, ranks in ranks_by_value.items()
        if value != common
        for rank in ranks
    }


def group_id(ranks: Sequence[int], number: int, nonce: str) -> int:
    """64 bits that tell this Gatherer's slots from those of any other, also of an earlier run."""
    return xxh3_64_intdigest(json.dumps([list(ranks), number, nonce]).encode())


def failure_fact(failure: Exception | None) -> Fact:
    """What a rank that cannot take part publishes."""
    return {"failure": summarize(failure or SetupError({}))}


def always_fine(facts: Sequence[Fact]) -> Decision:
    """Decides a stage in which only failures matter."""
    del facts
    return {}
