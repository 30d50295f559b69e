"""A sentence encoder with a classifier on it: MiniLM-L6 (22.7 million parameters, frozen) and one linear layer.

The encoder is a BERT (Devlin et al., 2018, arXiv:1810.04805) of six layers, written here with the names of its public
weights, which are fetched on first use (model.toml, [weights_from]). Padding is taken out of the attention after the
softmax, by a product, and not by a large negative number before it: that number would be the range of int8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LENGTH = 128
WIDTH, INNER, LAYERS, HEADS = 384, 1536, 6, 12
TOKENS, PLACES, CLASSES = 30522, 512, 2
_EPSILON = 1e-12


def norm() -> nn.LayerNorm:
    """Layer normalisation over the width."""
    return nn.LayerNorm(WIDTH, _EPSILON)


class Layer(nn.Module):
    """Self-attention and two linear layers, each added to its input and normalised: [N,S,WIDTH] -> the same."""

    def __init__(self) -> None:
        """Build the layers, under the names of the public weights."""
        super().__init__()
        parts = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        joined = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH), "LayerNorm": norm()})
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(parts), "output": joined})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = nn.ModuleDict({"dense": nn.Linear(INNER, WIDTH), "LayerNorm": norm()})
        self.gelu = nn.GELU()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``mask`` is float [N,1,1,S], 1 for words and 0 for padding."""
        parts, joined = self.attention["self"], self.attention["output"]
        query, key, value = (self._heads(parts[name](x)) for name in ("query", "key", "value"))
        weights = torch.softmax(query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5, 3) * mask
        weights = weights / weights.sum(3, keepdim=True)
        seen = (weights @ value).transpose(1, 2).reshape(-1, LENGTH, WIDTH)
        x = joined["LayerNorm"](x + joined["dense"](seen))
        inner = self.gelu(self.intermediate["dense"](x))
        found: Tensor = self.output["LayerNorm"](x + self.output["dense"](inner))
        return found

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        """[N,S,WIDTH] -> [N,HEADS,S,WIDTH/HEADS]."""
        return x.reshape(-1, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2)


class Encoder(nn.Module):
    """Token ids and mask, both [N,LENGTH], to a vector for each token, [N,LENGTH,WIDTH]."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(TOKENS, WIDTH),
                "position_embeddings": nn.Embedding(PLACES, WIDTH),
                "token_type_embeddings": nn.Embedding(2, WIDTH),
                "LayerNorm": norm(),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """``mask`` is float [N,1,1,LENGTH]."""
        parts = self.embeddings
        fixed = parts["position_embeddings"].weight[:LENGTH] + parts["token_type_embeddings"].weight[0]
        x: Tensor = parts["LayerNorm"](parts["word_embeddings"](ids) + fixed)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        return x


class Classifier(nn.Module):
    """Encoder, mean over words, unit length, linear layer."""

    def __init__(self) -> None:
        """Build the layers; the encoder is frozen."""
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(WIDTH, CLASSES)
        self.encoder.requires_grad_(requires_grad=False)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map ids and mask, int32 [N,LENGTH], to logits [N,CLASSES] and the sentence's embedding [N,WIDTH]."""
        kept = mask.to(torch.float32)
        words = self.encoder(ids, kept.reshape(-1, 1, 1, LENGTH))
        weight = kept.reshape(-1, LENGTH, 1)
        mean = (words * weight).sum(1) / weight.sum(1)
        embedding = mean / mean.square().sum(1, keepdim=True).sqrt()
        return self.head(embedding), embedding


def build() -> nn.Module:
    """Return a new, randomly initialised network in training mode."""
    return Classifier()
