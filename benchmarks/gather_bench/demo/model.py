"""The model: two towers of hashed n-gram embeddings, and DPR's loss over in-batch negatives."""

import re
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_BUCKETS = 1 << 14
DIM = 64
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def features(text: str) -> list[int]:
    """Bucket numbers of a text's words and of their character trigrams; never empty."""
    found = []
    for word in _WORD.findall(text):
        padded = f"<{word.lower()}>"
        found.append(padded)
        found += [padded[i : i + 3] for i in range(len(padded) - 2)]
    return [zlib.crc32(item.encode()) % NUM_BUCKETS for item in found] or [0]


class Retriever(nn.Module):
    """Embeds questions and passages so that a question is close to its passage."""

    def __init__(self) -> None:
        super().__init__()
        self.question_tower = nn.EmbeddingBag(NUM_BUCKETS, DIM)
        self.passage_tower = nn.EmbeddingBag(NUM_BUCKETS, DIM)

    def forward(self, questions: Sequence[list[int]], passages: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Returns float32 vectors of shape (len(questions), DIM) and (len(passages), DIM)."""
        return self.embed(self.question_tower, questions), self.embed(self.passage_tower, passages)

    @staticmethod
    def embed(tower: nn.EmbeddingBag, texts: Sequence[list[int]]) -> Tensor:
        """Returns unit vectors of shape (len(texts), DIM)."""
        lengths = torch.tensor([len(text) for text in texts])
        flat = torch.tensor([bucket for text in texts for bucket in text])
        vectors: Tensor = tower(flat, torch.cumsum(lengths, 0) - lengths)
        return functional.normalize(vectors)


def loss_of(questions: Tensor, passages: Tensor, positives: Tensor) -> Tensor:
    """Mean cross entropy of each question against all passages; `positives` has the index of each one's own."""
    return functional.cross_entropy(20.0 * questions @ passages.T, positives)


def recall_at_10(ranked: Sequence[Sequence[int]]) -> float:
    """The share of questions whose own passage (the one with the question's number) is among its first ten."""
    return sum(number in found for number, found in enumerate(ranked)) / len(ranked)
