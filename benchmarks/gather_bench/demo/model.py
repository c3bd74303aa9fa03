"""The model: two towers of hashed n-gram embeddings, and DPR's loss over in-batch negatives."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gather_bench.demo.features import NUM_BUCKETS

_DIM = 64
_SCALE = 20.0
"""Cosines are too close to each other for a softmax as they are."""


class Retriever(nn.Module):
    """Embeds questions and passages so that a question is close to its passage."""

    def __init__(self) -> None:
        super().__init__()
        self.question_tower = nn.EmbeddingBag(NUM_BUCKETS, _DIM)
        self.passage_tower = nn.EmbeddingBag(NUM_BUCKETS, _DIM)

    def forward(self, questions: Sequence[Tensor], passages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Takes int64 bucket numbers of each text, returns float32 unit vectors of shape (number of texts, 64)."""
        return _embed(self.question_tower, questions), _embed(self.passage_tower, passages)


def _embed(tower: nn.EmbeddingBag, texts: Sequence[Tensor]) -> Tensor:
    lengths = torch.tensor([len(text) for text in texts])
    vectors: Tensor = tower(torch.cat(list(texts)), torch.cumsum(lengths, 0) - lengths)
    return functional.normalize(vectors)


def contrastive_loss(questions: Tensor, passages: Tensor, positives: Tensor) -> Tensor:
    """Mean cross entropy of each question against all passages.

    Args:
        questions: float32 of shape (Q, D).
        passages: float32 of shape (P, D).
        positives: int64 of shape (Q,): which passage answers the question.
    """
    return functional.cross_entropy(_SCALE * questions @ passages.T, positives)
