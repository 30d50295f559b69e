"""Text to tokens and back, by the tokenizer that a GGUF holds, and its chat template. Needs tokenizers and jinja2."""

from __future__ import annotations

from typing import Any

from edgepipe.errors import UsageError
from edgepipe.llm.gguf import File

_CONTROL = 3  # the token type of marks such as the end of a turn


class Text:
    """The tokenizer of a model.

    Raises:
        UsageError: it is not byte-level BPE as GPT-2's and SmolLM2's are, or the library is missing.
    """

    def __init__(self, file: File) -> None:
        try:
            import tokenizers
        except ImportError:
            fix = "pip install 'edgepipe[llm]'"
            raise UsageError("the package tokenizers is missing", "edgepipe llm", fix) from None
        kinds = file.pairs.get("tokenizer.ggml.model"), file.pairs.get("tokenizer.ggml.pre")
        if kinds not in {("gpt2", "smollm"), ("gpt2", "gpt-2")}:
            raise UsageError(f"the tokenizer {kinds} is not read", str(file.path), "give a model with smollm's")
        tokens: list[str] = file.pair("tokenizer.ggml.tokens", list)
        merges = [tuple(pair.split(" ", 1)) for pair in file.pair("tokenizer.ggml.merges", list)]
        model = tokenizers.models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges)
        self._coder = tokenizers.Tokenizer(model)
        bytes_ = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        steps = [digits, bytes_] if kinds[1] == "smollm" else [bytes_]
        self._coder.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
        self._coder.decoder = tokenizers.decoders.ByteLevel()
        types = file.pairs.get("tokenizer.ggml.token_type", [])
        self._coder.add_special_tokens([t for t, kind in zip(tokens, types, strict=False) if kind == _CONTROL])
        self.end = int(file.pair("tokenizer.ggml.eos_token_id", int))
        self._template = file.pairs.get("tokenizer.chat_template", "")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without marks added."""
        return list(self._coder.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without marks."""
        return str(self._coder.decode(tokens))

    def turn(self, question: str) -> list[int]:
        """Tokens of a question as the model's chat template frames it, up to where the answer begins.

        Raises:
            UsageError: the model has no template that works.
        """
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        try:  # the template comes from the file, so from anywhere
            template = ImmutableSandboxedEnvironment().from_string(str(self._template))
            framed = template.render(messages=messages, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise UsageError(f"its chat template fails: {error}", "chat template", "leave --ask out") from error
        return self.encode(framed or question)
