"""What installed distributions offer by entry point, and which distribution a class comes from.

Nothing is imported here but metadata.
"""

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import (
    EntryPoint,
    PackageMetadata,
    distributions,
    entry_points,
    packages_distributions,
    version,
)

from gather_core.errors import summarize

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:.*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"])?")
_scans: dict[str, tuple[Sequence[str], Mapping[str, Sequence[EntryPoint]]]] = {}
"""Per group, what was found when it was last looked for, and on which `sys.path`."""


@dataclass(frozen=True)
class Origin:
    """Where an object comes from."""

    target: str
    """`module:name`, as in an entry point."""
    distribution: str | None
    """None: no distribution, it was made in this process."""
    version: str | None = None

    @property
    def owner(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version or ''}".rstrip() if self.distribution else "this process"

    def __str__(self) -> str:
        return f"{self.owner} ({self.target})"


def offers(group: str) -> Mapping[str, Sequence[EntryPoint]]:
    """Looks for the entry points of a group: name -> those of that name, more than one where distributions clash."""
    try:
        points: Iterable[EntryPoint] = entry_points(group=group)
    except Exception:  # one damaged entry_points.txt hides those of all
        points = _readable_entry_points(group)
    found: dict[str, dict[tuple[int, str], EntryPoint]] = {}
    for point in points:
        found.setdefault(point.name, {}).setdefault((id(point.dist), point.value), point)
    by_name = {name: tuple(same.values()) for name, same in found.items()}
    _scans[group] = (tuple(sys.path), by_name)
    return by_name


def _readable_entry_points(group: str) -> Iterator[EntryPoint]:
    """Passes over distributions whose entry points cannot be read, with a warning."""
    seen = set()
    for distribution in distributions():
        name = _field(distribution.metadata, "Name")
        if name in seen:  # the first on the path is the one that is imported
            continue
        seen.add(name)
        try:
            yield from distribution.entry_points.select(group=group)
        except Exception as exc:
            warnings.warn(
                f"the entry points of {name} cannot be read, so its codecs, transports and commands are unknown: "
                f"{summarize(exc)}; reinstall it",
                RuntimeWarning,
                stacklevel=2,
            )


def offers_of_name(group: str, name: str) -> Sequence[EntryPoint]:
    """The entry points of a group that have this name.

    What was found once is kept while `sys.path` stays as it is; a name that was not found is looked for again, as it
    may have been installed since.
    """
    path, by_name = _scans.get(group, ((), {}))
    if name not in by_name or path != tuple(sys.path):
        by_name = offers(group)
    return by_name.get(name, ())


def origin_of_entry_point(point: EntryPoint) -> Origin:
    """The origin of what an entry point names."""
    if point.dist is None:
        return Origin(point.value, None)
    metadata = point.dist.metadata  # read once: it is parsed anew each time
    return Origin(point.value, _field(metadata, "Name") or "a nameless distribution", _field(metadata, "Version"))


def origin_of_class(cls: type) -> Origin:
    """The origin of a class, by the package that its module is in."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    distributions = packages_distributions().get(cls.__module__.partition(".")[0], [])
    if len(set(distributions)) != 1:  # 0: a script, a notebook or an editable install; more: a shared namespace
        return Origin(target, None)
    return Origin(target, distributions[0], version(distributions[0]))


def repair(point: EntryPoint, owner: str, exc: BaseException) -> str:
    """Says what to do about an entry point that cannot be loaded."""
    missing = exc.name if isinstance(exc, ModuleNotFoundError) and exc.name else None
    if missing is None:
        return f"upgrade or uninstall {owner}, or ask its authors"
    package = missing.partition(".")[0]
    if package == point.module.partition(".")[0]:
        return f"{owner} does not hold what it names: reinstall or upgrade it"
    for line in (point.dist.requires if point.dist else None) or ():
        requirement = _REQUIREMENT.match(line)
        if requirement and _normalize(requirement["name"]) == _normalize(package):
            extra = requirement["extra"]
            return f"install {owner.partition(' ')[0]}[{extra}]" if extra else f"install {requirement['name']}"
    return f"install what provides {package!r}, or uninstall {owner}"


def _field(metadata: PackageMetadata, name: str) -> str | None:
    return metadata[name] if name in metadata else None  # noqa: SIM401  # it has no `get` to type checkers


def _normalize(name: str) -> str:
    """Makes names of one distribution equal: case and the kind of dash do not matter."""
    return re.sub(r"[-_.]+", "-", name).lower()
