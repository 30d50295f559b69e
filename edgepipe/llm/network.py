"""A Llama network with a key-value cache, in plain operators that every format can express. Needs torch.

Shapes: tokens [1, S]; each of the 2 x layers caches [1, K, P, D], P the tokens seen before; rows [R], the positions
among S whose next token is wanted; logits [R, V]. The next caches are [1, K, P + S, D].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgepipe.llm.gguf import File
from edgepipe.llm.sizes import Sizes, sizes
from edgepipe.llm.weights import Weights


class _Norm(nn.Module):  # type: ignore[misc]
    """Divided by the root of the mean square of the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.epsilon) * self.weight


class _Layer(nn.Module):  # type: ignore[misc]
    """Attention over the cache, then the gated feed-forward."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        narrow = s.kv_heads * s.head
        self.sizes = s
        self.attn_norm, self.ffn_norm = _Norm(s.width, s.epsilon), _Norm(s.width, s.epsilon)
        self.attn_q, self.attn_output = nn.Linear(s.width, s.width, bias=False), nn.Linear(s.width, s.width, bias=False)
        self.attn_k, self.attn_v = nn.Linear(s.width, narrow, bias=False), nn.Linear(s.width, narrow, bias=False)
        self.ffn_gate, self.ffn_up = nn.Linear(s.width, s.hidden, bias=False), nn.Linear(s.width, s.hidden, bias=False)
        self.ffn_down = nn.Linear(s.hidden, s.width, bias=False)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor], turn: tuple[Tensor, Tensor], seen: Tensor) -> Any:
        s, steps, h = self.sizes, x.shape[1], self.attn_norm(x)
        q = _turned(self.attn_q(h).view(1, steps, s.heads, s.head).transpose(1, 2), *turn)
        k = _turned(self.attn_k(h).view(1, steps, s.kv_heads, s.head).transpose(1, 2), *turn)
        v = self.attn_v(h).view(1, steps, s.kv_heads, s.head).transpose(1, 2)
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        # The heads that share keys stand below each other, so that one product serves them all.
        grouped = q.reshape(1, s.kv_heads, -1, s.head) * s.head**-0.5
        scores = (grouped @ k.transpose(2, 3)).view(1, s.heads, steps, -1)
        weights = torch.softmax(scores + seen, -1).view(1, s.kv_heads, -1, k.shape[2])
        mixed = (weights @ v).view(1, s.heads, steps, s.head).transpose(1, 2).reshape(1, steps, s.width)
        x = x + self.attn_output(mixed)
        h = self.ffn_norm(x)
        gate = self.ffn_gate(h)
        return x + self.ffn_down(gate * torch.sigmoid(gate) * self.ffn_up(h)), k, v


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions: each half of a head turned with the other."""
    one, two = x.chunk(2, -1)
    return torch.cat([one * cosine - two * sine, two * cosine + one * sine], -1)


class Llama(nn.Module):  # type: ignore[misc]
    """The whole network; see the module's docstring for its shapes. The output layer shares the embedding."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.sizes = s
        self.embedding = nn.Embedding(s.vocabulary, s.width)
        self.layers = nn.ModuleList(_Layer(s) for _ in range(s.layers))
        self.norm = _Norm(s.width, s.epsilon)
        self.output = nn.Linear(s.width, s.vocabulary, bias=False)
        rates = s.base ** (-torch.arange(0, s.head, 2, dtype=torch.float64) / s.head)
        angles = torch.arange(s.context, dtype=torch.float64)[:, None] * rates
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(self, tokens: Tensor, rows: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits at ``rows``, and the caches that the next call needs."""
        before, steps = past[0].shape[2], tokens.shape[1]
        places = torch.arange(steps) + before
        hidden = torch.arange(before + steps)[None, :] > places[:, None]
        seen = hidden.float() * -1e9
        turn = self.cosine[places], self.sine[places]
        x, kept = self.embedding(tokens), []
        for number, layer in enumerate(self.layers):
            x, k, v = layer(x, (past[2 * number], past[2 * number + 1]), turn, seen)
            kept += [k, v]
        return self.output(self.norm(torch.index_select(x, 1, rows)))[0], kept

    def empty(self) -> list[Tensor]:
        """The caches before the first token."""
        s = self.sizes
        return [torch.zeros(1, s.kv_heads, 0, s.head) for _ in range(2 * s.layers)]


def load(file: File, context: int) -> Llama:
    """The network with the weights of a GGUF, in eval mode.

    Raises:
        UsageError: a tensor is missing, or has another shape than the sizes ask for.
        IntegrityError: a tensor is cut off or not finite.
    """
    found = Weights(file, sizes(file, context), 32, 0)
    network: Llama = Llama(found.sizes)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(found.floats(name, shape)) for name, shape in shapes.items()})
    network.output.weight = network.embedding.weight if found.tied else network.output.weight
    network.eval()
    return network
