"""Distributions for tests: what pip leaves behind in a folder, without pip."""

from collections.abc import Mapping, Sequence
from pathlib import Path

OUTSIDE = Path(__file__).resolve().parent / "outside"


def install(
    folder: Path,
    name: str,
    entry_points: Mapping[str, Sequence[str]],
    *,
    modules: Mapping[str, str] | None = None,
    version: str = "1.0",
    requires: Sequence[str] = (),
) -> Path:
    """Writes a distribution into a folder for `sys.path`, which it returns.

    Args:
        folder: Where to; made where it is missing, and may hold other distributions.
        name: The distribution's.
        entry_points: Group -> lines such as `mine = my_module:MyCodec`; codecs, transports and commands for short.
        modules: Module name -> source.
        version: The distribution's.
        requires: Its requirements, as in its metadata.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    for module, source in (modules or {}).items():
        (folder / f"{module}.py").write_text(source)
    lines = [f"Requires-Dist: {requirement}" for requirement in requires]
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]
    (info / "METADATA").write_text("\n".join(metadata) + "\n")
    groups = [f"[gather_core.{group}]\n" + "\n".join(points) for group, points in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(groups) + "\n")
    (info / "RECORD").write_text("".join(f"{module}.py,,\n" for module in modules or {}))
    return folder


def install_outside(folder: Path) -> Path:
    """Writes `gather-outside 0.3`, a codec and a transport of tests/outside."""
    return install(
        folder,
        "gather-outside",
        {
            "codecs": ["reversed_json = outside_codec:ReversedJsonCodec"],
            "transports": ["star = outside_transport:StarTransport"],
        },
        modules={path.stem: path.read_text() for path in OUTSIDE.glob("*.py")},
        version="0.3",
    )
