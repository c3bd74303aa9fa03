"""Clause of the codec contract: frames mean the same in every process."""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gather_core.codec import Codec
from gather_core.errors import summarize
from gather_core.exactness import is_tensor, parts
from gather_core.testing.codec_case import CodecCase, Sample

_NUM_OBJECTS = 16
_NBYTES = 1 << 16
"""Objects of more bytes stay here."""
_TIMEOUT_S = 120
_READ = """
import os, pickle, sys
from gather_core.testing import codec_processes
results = os.dup(1)
os.dup2(2, 1)  # so that nothing is in between which a module prints while it is imported
with open(results, "wb") as file:
    pickle.dump(codec_processes.decode_all(sys.stdin.buffer.read()), file)
"""


class ProcessClauses(CodecCase):
    """What holds between processes.

    The last base of the contract, which pytest runs first: a codec of a test module is sent with all that its class
    holds, and must not hold the objects yet.
    """

    def test_frames_can_be_decoded_by_another_process(self) -> None:
        """What decode needs is in the frames: nothing that this process remembers, no hash and no address."""
        sent = self._codec_to_send()
        samples = self._samples_to_send()
        frames = [[bytes(frame) for frame in sample.frames] for sample in samples]
        for sample, (problem, result) in zip(samples, _in_another_process(sent, frames), strict=True):
            remedy = "write all that decode needs into the frames, and nothing that only this process understands"
            assert not problem, f"{sample}: decode in another process raised {problem}; {remedy}"
            self._check_same(pickle.loads(result), sample, "differs in another process", remedy)

    def _codec_to_send(self) -> bytes:
        """A codec that has not been used yet, or what makes one; skips where neither can be sent."""
        cloudpickle: Any = pytest.importorskip("cloudpickle")
        reasons = []
        with self._own_modules_by_value(cloudpickle):
            for what in (_Made(self.make_codec()), self.make_codec):
                try:
                    return bytes(cloudpickle.dumps(what))
                except Exception as exc:
                    reasons.append(summarize(exc))
        pytest.skip(f"the codec cannot be sent to another process: {'; '.join(reasons)}")

    @contextlib.contextmanager
    def _own_modules_by_value(self, cloudpickle: Any) -> Iterator[None]:
        """Has what the test's own modules define sent by value: the other process may be unable to import them."""
        already = cloudpickle.list_registry_pickle_by_value()
        names = {kind.__module__ for kind in type(self).__mro__ if not kind.__module__.startswith("gather_core.")}
        modules = [sys.modules[name] for name in names - already - {"builtins", "abc"}]
        with contextlib.ExitStack() as stack:
            for module in modules:
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
            yield

    def _samples_to_send(self) -> list[Sample]:
        """Some small ones that pickle brings back; those with tensors, which take seconds to import, if all have."""
        found = [sample for sample in self._samples() if self._can_be_sent_back(sample)]
        light = [sample for sample in found if not any(map(is_tensor, parts(sample.decoded)))]
        if not found:
            pytest.skip("pickle brings none of the decoded objects back from another process")
        return (light or found)[:_NUM_OBJECTS]

    def _can_be_sent_back(self, sample: Sample) -> bool:
        if sum(map(len, sample.frames)) > _NBYTES:
            return False
        try:
            return self.same(pickle.loads(pickle.dumps(sample.decoded)), sample.decoded)
        except Exception:
            return False


class _Made:
    """What returns a codec that is there already."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def __call__(self) -> Codec:
        return self._codec


def decode_all(task: bytes) -> list[tuple[str, bytes]] | str:
    """(the other process) For each object what decode raised and what it returned; a str where there is no codec."""
    make_codec, encoded = pickle.loads(task)
    try:
        codec = pickle.loads(make_codec)()
    except Exception as exc:
        return summarize(exc)
    return [_decode(codec, frames) for frames in encoded]


def _decode(codec: Codec, frames: Sequence[bytes]) -> tuple[str, bytes]:
    try:
        return "", pickle.dumps(codec.decode([memoryview(frame) for frame in frames]))
    except Exception as exc:
        return summarize(exc), b""


def _in_another_process(make_codec: bytes, encoded: Sequence[Sequence[bytes]]) -> list[tuple[str, bytes]]:
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _READ],
        input=pickle.dumps((make_codec, encoded)),
        capture_output=True,
        env=environment,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"decode ended another process with {done.returncode}: {done.stderr.decode(errors='replace')}")
    results: list[tuple[str, bytes]] | str = pickle.loads(done.stdout)
    if isinstance(results, str):
        pytest.skip(f"another process cannot build the codec: {results}")
    return results
