"""Clauses of the codec contract: name, spec, trust, wire version and fingerprint, and the options that it is given."""

import re
import sys
from typing import Any

import pytest

from gather_core.codec import DecodeOptions, Trust
from gather_core.errors import UnknownPluginError, summarize
from gather_core.exactness import is_tensor, parts
from gather_core.registry import get_codec
from gather_core.spec import NAME
from gather_core.testing.codec_case import CodecCase, Sample


class DeclarationClauses(CodecCase):
    """What a codec says about itself, and what it is told."""

    def test_the_name_is_one_that_a_spec_can_hold(self) -> None:
        """`name` is the registry key, lower case."""
        name = getattr(self.make_codec(), "name", None)
        assert isinstance(name, str), f"name is {name!r}; it must be a str, the registry key"
        assert NAME.fullmatch(name), f"name {name!r} must be of a-z, 0-9 and _ and start with a letter"

    def test_trust_is_declared(self) -> None:
        """`trust` says what decoding can do."""
        trust = self.make_codec().trust
        assert isinstance(trust, Trust), f"trust is {trust!r}; it must be Trust.DATA or Trust.CODE"

    def test_equal_codecs_have_the_same_fingerprint(self) -> None:
        """A str, the same for every codec that reads these frames, in every process and after use."""
        first, second = self.make_codec(), self.make_codec()
        before = first.fingerprint()
        assert isinstance(before, str), f"fingerprint() returned {before!r}; it must be a str"
        assert before == second.fingerprint(), (
            f"two equal codecs have the fingerprints {before!r} and {second.fingerprint()!r}; make it of the name and "
            "the options only, or no two ranks will match"
        )
        for sample in self._samples():
            now = sample.codec.fingerprint()
            assert now == before, f"the fingerprint {before!r} became {now!r} with use; make it of the options only"

    def test_a_wire_version_is_a_number_that_the_fingerprint_tells(self) -> None:
        """`wire_version` counts from 1, which goes without saying: there is no older release to be told apart."""
        codec = self.make_codec()
        version, fingerprint = codec.wire_version, codec.fingerprint()
        counts = type(version) is int and version >= 1
        assert counts, f"wire_version is {version!r}; it must be an int of at least 1"
        assert version == 1 or re.search(rf"\bwire {version}\b", str(fingerprint)), (
            f"wire_version is {version}, but the fingerprint {fingerprint!r} does not hold 'wire {version}'; put it "
            "there, or ranks of the release before learn of it at their first object"
        )

    def test_a_copy_made_from_the_spec_reads_the_frames(self) -> None:
        """`spec` names the codec and every option that differs from the default."""
        codec = self.make_codec()
        try:
            copy = get_codec(codec.spec)
        except UnknownPluginError:
            pytest.skip("the codec is not registered")
        except Exception as exc:
            pytest.fail(f"no codec can be built from spec {codec.spec!r}: {summarize(exc)}; write it with format_spec")
        if type(copy) is not type(codec):
            pytest.fail(f"{codec.spec!r} names another codec, {type(copy).__qualname__}; choose a name that is free")
        problem = f"the copy made from spec {codec.spec!r} differs"
        assert copy.fingerprint() == codec.fingerprint(), (
            f"{problem} ({copy.fingerprint()!r}); put all options into spec"
        )
        for sample in self._samples():
            theirs = Sample(copy, sample.obj, sample.frames, sample.decoded)
            decoded = theirs.decode(sample.frames, "frames of a codec with this spec", "put all options into spec")
            self._check_same(decoded, sample, f"differs: {problem}", "put all options into spec")

    def test_tensors_land_where_the_receiver_wants_them(self) -> None:
        """`options.tensor_device` decides, also when it is a function."""
        samples = [sample for sample in self._samples() if any(map(_is_dense, parts(sample.decoded)))]
        if not samples:
            pytest.skip("objects() holds no tensors")
        torch: Any = sys.modules["torch"]
        for sample in samples:
            options = DecodeOptions(tensor_device=lambda tensor: tensor.to("meta"))  # type: ignore[attr-defined]
            decoded = sample.decode(sample.frames, "frames for another device", options=options)
            left = [part.device for part in parts(decoded) if _is_dense(part)]  # type: ignore[attr-defined]
            assert left == [torch.device("meta")] * len(left), (
                f"{sample}: a tensor arrived on {left[0]} and not where options.tensor_device says; ask it for each"
            )


def _is_dense(part: object) -> bool:
    return is_tensor(part) and part.layout is sys.modules["torch"].strided  # type: ignore[attr-defined]
