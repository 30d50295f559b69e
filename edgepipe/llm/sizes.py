"""The sizes of a Llama network, as a GGUF states them."""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def cached(self) -> int:
        """Numbers that the keys and values of one token are."""
        return 2 * self.layers * self.kv_heads * self.head


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
    table = file.tensors.get("token_embd.weight")
    if table is not None and table.shape[0] != found.vocabulary:
        what = f"the tokenizer has {found.vocabulary} tokens and the embedding {table.shape[0]} rows"
        raise UsageError(what, str(file.path), "it is another model's: get a GGUF with its own tokenizer")
    return found
