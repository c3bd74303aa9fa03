"""The contract of a codec as a test class that its author inherits."""

from gather_core.testing.codec_calls import CallClauses
from gather_core.testing.codec_damage import DamageClauses
from gather_core.testing.codec_declarations import DeclarationClauses
from gather_core.testing.codec_leaks import LeakClauses
from gather_core.testing.codec_processes import ProcessClauses


class CodecContract(CallClauses, LeakClauses, DamageClauses, DeclarationClauses, ProcessClauses):
    """What every codec keeps, as tests; the test class of a codec inherits them.

    ```python
    class TestMyCodec(CodecContract):
        def make_codec(self) -> Codec:
            return MyCodec()
    ```

    Each test checks one clause of the docstrings of `gather_core.codec.Codec`; its message says what is wrong with the
    codec and what to do. Override `objects()` where the codec keeps other objects than plain data, `refused()` to
    check that it refuses what it would change, `compressible()` where it compresses something else than text, and
    `same()` for objects that cannot be compared by what is in them, such as functions. Tests that do not apply are
    skipped: damaged bytes and planted code are only for codecs that declare `Trust.DATA`.
    """
