"""A tiny language model as a GGUF file, and what writes one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HIDDEN, HEADS, SHARED, LAYERS = 64, 96, 4, 2, 2
F32, F16, Q4_0, Q4_1, Q8_0 = 0, 1, 2, 3, 8
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, list):
        inner = 8 if isinstance(value[0], str) else 5
        items = b"".join(_text(item) if inner == 8 else struct.pack("<i", item) for item in value)
        return struct.pack("<IIQ", 9, inner, len(value)) + items
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def write(path: Path, pairs: dict[str, Any], tensors: dict[str, tuple[list[int], int, bytes]]) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    head += b"".join(_text(name) + _typed(value) for name, value in pairs.items())
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        axes = struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += _text(name) + struct.pack("<I", len(shape)) + axes + struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def words_of() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes as, after three marks."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<end>", "<start>", "<pad>", *sorted(ByteLevel.alphabet()), "Ġt"]


def weights_of() -> dict[str, np.ndarray[Any, Any]]:
    """Float weights by GGUF's names, queries and keys in halves as the usual implementation has them."""
    random, narrow = np.random.default_rng(0), WIDTH // HEADS * SHARED
    shapes = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (narrow, WIDTH), "attn_v": (narrow, WIDTH), "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN),
    }  # fmt: skip
    found = {"token_embd": random.normal(0, 1, (len(words_of()), WIDTH)), "output_norm": random.uniform(0.5, 2, WIDTH)}
    for layer in range(LAYERS):
        found |= {f"blk.{layer}.{name}": random.normal(0, 0.2, shape) for name, shape in shapes.items()}
        found |= {f"blk.{layer}.{name}": random.uniform(0.5, 2, WIDTH) for name in ("attn_norm", "ffn_norm")}
    return {f"{name}.weight": value.astype(np.float32) for name, value in found.items()}


def tiny(path: Path) -> Path:
    """Write a model of two layers with random weights to ``path``."""
    words = words_of()
    pairs = {
        "general.architecture": "llama", "llama.block_count": LAYERS, "llama.context_length": 2048,
        "llama.embedding_length": WIDTH, "llama.feed_forward_length": HIDDEN, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": SHARED, "llama.rope.freq_base": 1e4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(words) - 3),
        "tokenizer.ggml.merges": ["Ġ t"], "tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    tensors = {}
    for name, value in weights_of().items():
        if "attn_q" in name or "attn_k" in name:  # GGUF turns neighbours with each other
            turned = value.reshape(-1, 2, WIDTH // HEADS // 2, WIDTH).swapaxes(1, 2)
        else:
            turned = value
        tensors[name] = (list(value.shape), F32, turned.tobytes())
    return write(path, pairs, tensors)
