"""A folder that onnxruntime-genai reads, around a file of edgepipe's: the same weights and operators, other inputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from edgepipe.llm.files import NAME
from edgepipe.llm.graph import DATA
from edgepipe.llm.sizes import Sizes


def make(source: Path, folder: Path, s: Sizes, threads: int, end: int) -> Path:
    """Copy the model of ``source`` to ``folder``, fed by token ids and a mask; return the file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    shutil.copy2(source.parent / DATA, folder / DATA)
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    whole, one = (numpy_helper.from_array(np.array(v, np.int64), n) for v, n in (([1], "axis"), (1, "one")))
    nodes = [
        helper.make_node("ReduceSum", ["mask", "axis"], ["count"], keepdims=0),
        helper.make_node("Sub", ["count", "one"], ["before"]),
        helper.make_node("Cast", ["before"], ["last"], to=TensorProto.INT32),
        helper.make_node("Shape", ["mask"], ["length"], start=1),
        helper.make_node("Squeeze", ["length"], ["long"]),
        helper.make_node("Cast", ["long"], ["total"], to=TensorProto.INT32),
        helper.make_node("Shape", ["tokens"], ["steps"], start=1),
        helper.make_node("Sub", ["steps", "one"], ["rows"]),
        helper.make_node("Unsqueeze", ["flat_logits", "axis"], ["logits"]),
    ]
    for node in graph.node:
        node.output[:] = ["flat_logits" if name == "logits" else name for name in node.output]
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes[:-1], *own, nodes[-1]])
    graph.initializer.extend([whole, one])
    kept = [value for value in graph.input if value.name not in {"rows", "last", "total"}]
    kept.insert(1, helper.make_tensor_value_info("mask", TensorProto.INT64, [1, "seen"]))
    del graph.input[:]
    graph.input.extend(kept)
    graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["r", 1, s.vocabulary]))
    onnx.save(model, folder / NAME)
    (folder / "genai_config.json").write_text(json.dumps(_config(s, threads, end)))
    return folder / NAME


def _config(s: Sizes, threads: int, end: int) -> dict[str, object]:
    given = {f"past_{kind}_names": f"past_{kind}.%d" for kind in ("key", "value")}
    taken = {f"present_{kind}_names": f"next_{kind}.%d" for kind in ("key", "value")}
    decoder = {
        "session_options": {"intra_op_num_threads": threads, "inter_op_num_threads": 1, "provider_options": []},
        "filename": NAME,
        "head_size": s.head,
        "hidden_size": s.width,
        "inputs": {"input_ids": "tokens", "attention_mask": "mask", **given},
        "outputs": {"logits": "logits", **taken},
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
    }
    search = {"do_sample": False, "past_present_share_buffer": True, "max_length": s.context, "num_beams": 1}
    model = {"type": "llama", "vocab_size": s.vocabulary, "context_length": s.context, "decoder": decoder}
    marks = {"bos_token_id": end, "eos_token_id": s.vocabulary - 1, "pad_token_id": end}  # an end that hardly comes
    return {"model": {**model, **marks}, "search": search}
