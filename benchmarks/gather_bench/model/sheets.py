"""What the model has to say, as tables and sentences; how they look is up to terminal, page and Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from gather_bench.bench.only_codecs.quantities import nbytes_text, seconds_text, three_digits
from gather_bench.bench.wording import count, listing
from gather_bench.model.cluster import Cluster
from gather_bench.model.fit import FITTED_UP_TO, WITHIN, Fit, Residual, Verdict
from gather_bench.model.points import SEED, Way
from gather_bench.model.predict import Prediction
from gather_bench.model.study import Study

MODELLED = "modelled"
_FASTER = 2


@dataclass(frozen=True)
class Sheet:
    """A table with its title; the first `texts` columns hold text, the others numbers."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


def costs_sheet(fit: Fit) -> Sheet:
    """What each term costs, with its unit and reason."""
    rows = [
        (term.title, f"{three_digits(cost / term.scale)} {term.unit}", term.value.reason)
        for term, cost in fit.costs.items()
    ]
    return Sheet(f"{fit.codec}: what one of each costs, fitted", ("term", "cost", "why it is there"), rows, texts=3)


def residuals_sheet(fit: Fit) -> Sheet:
    """Every point that was measured, beside what the model says."""
    rows = [
        (
            str(each.point.way),
            "checked" if each.is_check else "fitted",
            nbytes_text(each.point.job.nbytes),
            f"{each.point.job.world_size}",
            seconds_text(each.point.seconds),
            seconds_text(each.modelled),
            percent(each.error),
        )
        for each in sorted(fit.residuals, key=_order)
    ]
    headers = ("way", "use", "per rank", "ranks", "measured", MODELLED, "error")
    return Sheet(f"{fit.codec}: measured and modelled", headers, rows, texts=2)


def _order(residual: Residual) -> tuple[str, int, int]:
    job = residual.point.job
    return str(residual.point.way), job.nbytes, job.world_size


def verdict_text(verdict: Verdict) -> str:
    """Says in a line whether the check holds."""
    bound = f"{WITHIN:.0%}".replace("%", " %")
    result = f"within {bound}" if verdict.holds else f"NOT within {bound}"
    return (
        f"{verdict.way}: {result}. Of {count(verdict.checked, 'point')} with more than {FITTED_UP_TO} ranks, "
        f"{verdict.within} are; the largest error is {percent(verdict.largest_error)}, "
        f"the median {percent(verdict.median_error).lstrip('+')}"
    )


def unchecked_text(fit: Fit) -> str | None:
    """Says so where nothing checks a fit."""
    if fit.verdicts():
        return None
    return f"{fit.codec}: not checked, as nothing was measured with more than {FITTED_UP_TO} ranks"


def prediction_sheets(study: Study) -> Iterator[Sheet]:
    """One for each codec and size; every number of seconds in them is modelled."""
    for (codec, nbytes), group in groupby(study.predictions, lambda each: (each.codec, each.nbytes)):
        predictions = list(group)
        ways = list(dict.fromkeys(way for each in predictions for way in each.seconds))
        yield Sheet(
            f"{codec}, {nbytes_text(nbytes)} per rank: {MODELLED}",
            ("ranks", "hosts", "each rank gets", *map(name_of_column, ways)),
            [_prediction_row(each, ways) for each in predictions],
            texts=0,
        )


def name_of_column(way: Way) -> str:
    """The transport alone, as the codec is the same in all columns, or the peer."""
    return SEED if way.codec == SEED else way.transport


def _prediction_row(prediction: Prediction, ways: Iterable[Way]) -> Sequence[str]:
    times = (seconds_text(prediction.seconds[way]) if way in prediction.seconds else "-" for way in ways)
    sizes = (f"{prediction.world_size:,}", f"{prediction.hosts:,}", nbytes_text(prediction.received_nbytes))
    return (*sizes, *times)


def conclusions(study: Study) -> Iterator[str]:
    """For each codec and size, what the most ranks take each way, and where the hierarchy halves it."""
    for (codec, nbytes), group in groupby(study.predictions, lambda each: (each.codec, each.nbytes)):
        predictions = list(group)
        flat, nested = Way(codec, "gloo"), Way(codec, "shm+gloo")
        last = predictions[-1]
        if flat not in last.seconds or nested not in last.seconds:
            continue
        parts = [f"{codec}, {nbytes_text(nbytes)} per rank: {_halved(predictions, flat, nested)}"]
        parts.append(f"at {last.world_size:,} ranks gloo takes {_times(last, flat, nested)} as long as shm+gloo")
        if (seed := Way(SEED, "gloo")) in last.seconds:
            parts.append(f"{SEED} {_times(last, seed, nested)}")
        yield f"{', '.join(parts)} ({MODELLED})"


def _halved(predictions: Sequence[Prediction], flat: Way, nested: Way) -> str:
    sizes = [each.world_size for each in predictions if each.seconds[flat] >= _FASTER * each.seconds[nested]]
    if len(sizes) == len(predictions):
        where = "everywhere"
    else:
        where = f"with {listing(f'{size:,}' for size in sizes)} ranks" if sizes else "nowhere"
    return f"shm+gloo takes at most half as long as gloo {where}"


def _times(prediction: Prediction, one: Way, other: Way) -> str:
    return f"{three_digits(prediction.seconds[one] / prediction.seconds[other])} times"


def assumptions_text(cluster: Cluster) -> str:
    """Where the predictions are thought to take place."""
    return (
        f"Assumed: {cluster.ranks_per_host} ranks per host with a core each, as fast as those measured; between hosts "
        f"{cluster.latency_us:g} us and {cluster.gbit_per_s:g} Gbit/s per host, unless measured there"
    )


def percent(share: float) -> str:
    """With its sign."""
    return f"{100 * share:+.0f} %"
