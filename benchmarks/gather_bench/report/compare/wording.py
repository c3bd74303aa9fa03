"""A comparison in words, for the terminal and the page alike."""

from collections.abc import Iterator

from gather_bench.bench.wording import count, listing
from gather_bench.report.compare.changes import Change, Comparison
from gather_bench.report.views import where


def change_text(change: Change) -> str:
    """Says "+21 %" for what takes 1.21 times as long, relative to the references."""
    return "-" if change.factor is None else f"{100 * (change.factor - 1):+.0f} %"


def margin_text(change: Change) -> str:
    """Says from which change on it would be beyond noise."""
    return "-" if change.margin is None else f"{100 * (change.margin - 1):.0f} %"


def label(change: Change) -> str:
    """Names the way; also the old one where `auto` chose another."""
    now, then = change.new.label, change.old.label
    return now if now == then else f"{now}, was {then}"


def conclusion(comparison: Comparison) -> str:
    """Says in one line what is beyond noise."""
    judged = [change for change in comparison.changes if change.verdict != "not judged"]
    if not comparison.changes:
        return "The two reports have no measured row in common."
    if not judged:
        return "Nothing is judged: that takes peers, 5 rounds or more, and payloads of the same size in both reports."
    changed = comparison.beyond_noise
    if not changed:
        return f"Nothing has changed beyond noise, in {count(len(judged), 'row')}."
    slower = sum(change.verdict == "slower" for change in changed)
    return f"Beyond noise, of {count(len(judged), 'row')}: {slower} slower, {len(changed) - slower} faster."


def _margins(comparison: Comparison) -> list[float]:
    """The factors that the rows had to reach, the least first."""
    return sorted(change.margin for change in comparison.changes if change.margin is not None)


def _range(comparison: Comparison) -> str:
    """Says how sharp the comparison was."""
    margins = _margins(comparison)
    if not margins:
        return ""
    least, most = (f"{100 * (margin - 1):.0f} %" for margin in (margins[0], margins[-1]))
    return f", here {least}" if least == most else f", here {least} to {most}"


def _sizes(change: Change) -> str:
    return (
        f"payload {where(change.new.payload, change.new.world_size)}, had {change.old.payload_nbytes:,} bytes, has "
        f"{change.new.payload_nbytes:,}: it is not judged"
    )


def remarks(comparison: Comparison) -> Iterator[str]:
    """Says what must be known to believe it."""
    if comparison.references:
        yield f"change: of the time relative to {listing(comparison.references)} in the same rounds"
        yield f"noise: what the change must reach to be shown{_range(comparison)}"
    if _margins(comparison) and not comparison.is_by_launches:
        yield "noise is guessed: --launches 8 in both runs, of local workers, measures it, and shows smaller changes"
    for each in comparison.differences:
        yield f"the runs differ in {each.name}: {each.old} then, {each.new} now"
    yield from dict.fromkeys(_sizes(change) for change in comparison.changes if change.has_another_payload)
    for row in comparison.lost:
        yield f"not measured any more: {row.label}, {row.payload}, {count(row.world_size, 'rank')}: {row.reason}"
