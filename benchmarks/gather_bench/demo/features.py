"""Texts as hashed n-grams: what the model sees of them."""

import re
import zlib

NUM_BUCKETS = 1 << 12
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NGRAM = 3


def features(text: str) -> list[int]:
    """Returns the buckets, below `NUM_BUCKETS`, of a text's words and of their character trigrams; never empty."""
    grams: list[str] = []
    for word in _WORD.findall(text):
        padded = f"<{word.lower()}>"
        grams.append(padded)
        grams += [padded[start : start + _NGRAM] for start in range(len(padded) - _NGRAM + 1)]
    return [zlib.crc32(gram.encode()) % NUM_BUCKETS for gram in grams] or [0]
