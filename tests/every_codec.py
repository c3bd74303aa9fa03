"""The specs that a test of every codec goes through; zstd compresses all that gets smaller."""

_ZSTD = "+zstd:min_nbytes=1"
_PICKLES = ("pickle", "cloudpickle", "auto")

PICKLES = (*_PICKLES, *(spec + _ZSTD for spec in _PICKLES))
MSGPACK = ("msgpack", f"msgpack{_ZSTD}")
RAW = ("raw", f"raw{_ZSTD}")
STRUCTURED = (*PICKLES, *MSGPACK)
"""Those that take any nesting of plain data, arrays and tensors."""
EVERY = (*STRUCTURED, *RAW)
