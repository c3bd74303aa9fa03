"""Five bugs of decoders, to see that the fuzzer finds each."""

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from fuzz.engine import Finding
from fuzz.targets import CodecTarget, RoundTarget, Target
from gather_codecs import message_types, zstandard_frames
from gather_codecs.raw import RawCodec
from gather_core import slot, verdict
from gather_core.codec import DecodeOptions
from gather_core.errors import DecodeError
from gather_core.registry import get_codec


class LeakyRawCodec(RawCodec):
    """Lets an exception of the standard library through that it does not expect."""

    def decode(self, frames: Sequence[memoryview], options: DecodeOptions = DecodeOptions()) -> object:  # noqa: B008
        try:
            return super().decode(frames, options)
        except DecodeError as exc:
            raise exc.__cause__ if isinstance(exc.__cause__, KeyError) else exc  # noqa: B904


@dataclass(frozen=True)
class PlantedBug:
    """A bug, the decoder that has it, and what a finding says of it."""

    name: str
    target: Target
    patches: tuple[Any, ...]
    says: str

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The bug is there."""
        with ExitStack() as stack:
            for patch in self.patches:
                stack.enter_context(patch)
            yield

    def is_found_in(self, findings: Sequence[Finding]) -> bool:
        """Whether one of them is this bug."""
        return any(re.search(self.says, finding.problem) for finding in findings)


def planted_bugs() -> list[PlantedBug]:
    """Bugs of five kinds."""
    unchecked = [mock.patch.object(module, "check_lengths", return_value=None) for module in (slot, verdict)]
    loose = {**message_types._PATH_TYPES, "PurePosixPath": io.StringIO}
    return [
        PlantedBug("a number of frames is believed", RoundTarget(), tuple(unchecked), "raised error: unpack_from"),
        PlantedBug("an exception goes through", CodecTarget(LeakyRawCodec()), (), "raised KeyError"),
        PlantedBug(
            "a type more is built",
            CodecTarget(get_codec("msgpack")),
            (mock.patch.object(message_types, "_PATH_TYPES", loose),),
            "StringIO.* was built",
        ),
        PlantedBug(
            "a declared size is believed",
            CodecTarget(get_codec("raw+zstd")),
            (mock.patch.object(zstandard_frames, "_check_sizes", return_value=None),),
            "bytes of memory",
        ),
        PlantedBug(
            "keys of one hash are put together", CodecTarget(get_codec("msgpack")), tuple(_uncrowded()), "CPU time"
        ),
    ]


def _uncrowded() -> list[Any]:
    """What sees that keys share a hash sees nothing, wherever the codec's modules keep it."""
    modules = [module for name, module in sys.modules.items() if name.startswith("gather_codecs.")]
    kept = [module for module in modules if hasattr(module, "is_crowded")]
    return [mock.patch.object(module, "is_crowded", return_value=False) for module in kept]
