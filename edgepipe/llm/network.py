"""A Llama network with a key-value cache, in plain operators that every format can express. Needs torch.

Shapes: tokens [1, S]; each of the 2 x layers caches [1, K, P, D], P the tokens seen before; rows [R], the positions
among S whose next token is wanted; logits [R, V]. The next caches are [1, K, P + S, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgepipe.errors import UsageError
from edgepipe.llm.gguf import File


@dataclass(frozen=True)
class Sizes:
    """What the shapes follow from. ``context`` is the longest sequence that positions are made for."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    base: float
    epsilon: float

    @property
    def head(self) -> int:
        """Values of one head."""
        return self.width // self.heads


def sizes(file: File, context: int) -> Sizes:
    """The sizes a GGUF states; ``context`` bounds the sequence (and so the table of positions).

    Raises:
        UsageError: another architecture, or sizes that don't fit each other.
    """
    kind = file.pairs.get("general.architecture")
    if kind != "llama":
        raise UsageError(f"the architecture {kind} is not read", str(file.path), "give a GGUF of a Llama model")

    def count(name: str) -> int:
        return int(file.pair(f"llama.{name}", int))

    found = Sizes(
        layers=count("block_count"),
        width=count("embedding_length"),
        hidden=count("feed_forward_length"),
        heads=count("attention.head_count"),
        kv_heads=count("attention.head_count_kv"),
        vocabulary=len(file.pair("tokenizer.ggml.tokens", list)),
        context=min(context, count("context_length")),
        base=float(file.pairs.get("llama.rope.freq_base", 10000.0)),
        epsilon=float(file.pair("llama.attention.layer_norm_rms_epsilon", float)),
    )
    positive = min(found.layers, found.width, found.hidden, found.heads, found.kv_heads, found.context) > 0
    if not positive or found.width % found.heads or found.heads % found.kv_heads or found.head % 2:
        raise UsageError(f"sizes that don't fit each other: {found}", str(file.path), "get the file again")
    return found


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
    s = sizes(file, context)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Llama(s).state_dict().items()}
    values = {}
    for name, shape in shapes.items():
        own = _name(name, file)
        value = file.read(own)
        if value.shape != shape:
            raise UsageError(f"tensor {own} is {list(value.shape)}, not {list(shape)}", str(file.path), "get it again")
        if own.endswith(("attn_q.weight", "attn_k.weight")):
            value = _halves(value, s.head)
        values[name] = torch.from_numpy(value.copy())
    network: Llama = Llama(s)
    network.load_state_dict(values)
    network.output.weight = network.embedding.weight if _tied(file) else network.output.weight
    network.eval()
    return network


def _tied(file: File) -> bool:
    return "output.weight" not in file.tensors


def _name(name: str, file: File) -> str:
    """What GGUF calls a parameter of ours."""
    outer = {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    if name == "output.weight":
        return "token_embd.weight" if _tied(file) else name
    return outer.get(name) or name.replace("layers.", "blk.", 1)


def _halves(value: Any, head: int) -> Any:
    """Rows of queries and keys from pairs, as GGUF turns them, to halves: [heads, D / 2, 2] -> [heads, 2, D / 2]."""
    return value.reshape(-1, head // 2, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
