"""Round 0: the ranks compare what they were given, through the store, before the first byte moves.

Why before: a Gloo message longer than the receive that waits for it aborts the receiving process uncatchably, so sizes
must be known to agree. Every stage is one `Ballot`: each rank publishes a fact, the last to arrive decides for all.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import sleep
from typing import Any

from xxhash import xxh3_64_intdigest

from gather_core.deadline import Deadline
from gather_core.errors import SetupError, format_ranks
from gather_core.transport import Store

Fact = dict[str, Any]
"""What one rank publishes, as JSON; {"failure": text} from a rank that cannot take part."""
Decision = dict[str, Any]
"""{"failures": {rank: text}} or whatever else the deciding function returned."""

_NOT_COMPARED = frozenset({"available", "host", "versions"})


@dataclass(frozen=True)
class Ballot:
    """One stage of round 0 on a store that belongs to one Gatherer."""

    store: Store
    stage: str
    rank: int
    world_size: int

    def vote(self, fact: Fact, decide: Callable[[Sequence[Fact]], Decision], deadline: Deadline) -> Decision:
        """(all ranks) Publishes this rank's fact and returns the common decision.

        `decide` runs on the last rank to arrive, and not at all if a rank reports a failure.

        Raises:
            SetupError: A rank failed, or did not arrive in time; the same on every rank that arrived.
        """
        self.store.set(self._key(f"fact/{self.rank}"), json.dumps(fact))
        try:
            if self.store.add(self._key("arrived"), 1) == self.world_size:
                self._publish(self._decide(decide))
            self._wait(deadline)
        except BaseException as exc:
            self.fail(f"{type(exc).__name__} while waiting for the others")
            raise
        decision: Decision = json.loads(self.store.get(self._key("decision")))
        self._clean_up()
        self._raise_failures(decision)
        return decision

    def fail(self, text: str) -> None:
        """Decides for all ranks, unless they have decided already, that this one failed; waits for nobody."""
        self._publish({"failures": {self.rank: text}})

    def check(self) -> None:
        """Raises what `vote` would raise if some rank has failed already; for use while this rank prepares its fact."""
        if self.store.check([self._key("decision")]):
            self._raise_failures(json.loads(self.store.get(self._key("decision"))))

    @staticmethod
    def _raise_failures(decision: Decision) -> None:
        if "failures" in decision:
            raise SetupError({int(rank): text for rank, text in decision["failures"].items()})

    def _key(self, name: str) -> str:
        return f"{self.stage}/{name}"

    def _publish(self, decision: Decision) -> None:
        self.store.compare_set(self._key("decision"), "", json.dumps(decision))

    def _decide(self, decide: Callable[[Sequence[Fact]], Decision]) -> Decision:
        facts = [json.loads(self.store.get(self._key(f"fact/{rank}"))) for rank in range(self.world_size)]
        failures = {rank: fact["failure"] for rank, fact in enumerate(facts) if "failure" in fact}
        return {"failures": failures} if failures else decide(facts)

    def _wait(self, deadline: Deadline) -> None:
        pause_s = 0.0005
        while not self.store.check([self._key("decision")]):
            if deadline.passed():
                self._publish({"failures": self._missing(deadline.timeout_s)})
                return
            sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.1)

    def _missing(self, timeout_s: float) -> dict[int, str]:
        text = f"never came: nothing heard within {timeout_s:g} s"
        return {rank: text for rank in range(self.world_size) if not self.store.check([self._key(f"fact/{rank}")])}

    def _clean_up(self) -> None:
        """The last rank to have read the decision deletes the stage's keys."""
        if self.store.add(self._key("left"), 1) < self.world_size:
            return
        for name in ("arrived", "decision", "left", *(f"fact/{rank}" for rank in range(self.world_size))):
            self.store.delete_key(self._key(name))


def compare_facts(facts: Sequence[Fact]) -> Decision:
    """Decides stage 1: ranks at odds with the majority are failures; else a nonce, the hosts, `auto`'s choices."""
    failures: dict[int, list[str]] = {}
    for key in facts[0]:
        if key not in _NOT_COMPARED:
            for rank, text in _minority(key, [fact.get(key) for fact in facts]).items():
                failures.setdefault(rank, []).append(text)
    if failures:
        return {"failures": {rank: "; ".join(texts) for rank, texts in failures.items()}}
    on_all = [name for name in facts[0]["available"] if all(name in fact["available"] for fact in facts)]
    names = list(dict.fromkeys(fact["host"] for fact in facts))
    hosts = [names.index(fact["host"]) for fact in facts]
    return {"nonce": os.urandom(8).hex(), "available": on_all, "hosts": hosts}


def _minority(key: str, values: Sequence[Any]) -> dict[int, str]:
    """Names the ranks whose value is not the most common one (among equals: the one of the lowest rank)."""
    ranks_by_value: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks_by_value.setdefault(json.dumps(value), []).append(rank)
    common = max(ranks_by_value, key=lambda value: len(ranks_by_value[value]))
    rest = format_ranks(ranks_by_value[common])
    verb = "has" if len(ranks_by_value[common]) == 1 else "have"
    return {
        rank: f"{key} is {value}, but {rest} {verb} {common}"
        for value, ranks in ranks_by_value.items()
        if value != common
        for rank in ranks
    }


def group_id(ranks: Sequence[int], number: int, nonce: str) -> int:
    """64 bits that tell this Gatherer's slots from those of any other, also of an earlier run."""
    return xxh3_64_intdigest(json.dumps([list(ranks), number, nonce]).encode())


def always_fine(facts: Sequence[Fact]) -> Decision:
    """Decides a stage in which only failures matter."""
    del facts
    return {}
