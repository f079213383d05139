"""What goes with a checkpoint's model: tiny checkpoints of many classes, exported and looked at.

    python -m tools.checkpoints            # writes the table in docs/checkpoints.md

The classes are those of the zoo; each is saved as transformers saves it, with a tokenizer, a chat
template and generation settings, and exported as `causal-onnx export` does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causal_onnx.export import export_checkpoint
from causal_onnx.runtime import CausalOnnxError, load, verify_bundle
from tests.zoo.huggingface import ARCHITECTURES, VOCAB, Architecture, build

__all__ = ["NAMES", "PAGE", "Row", "judge", "look_at", "save_checkpoint", "table"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "checkpoints.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"

NAMES = (
    *("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "mpt", "falcon_new", "llama"),
    *("llama_tied_head_dim", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2"),
    *("gemma3", "phi3", "olmo2", "cohere2", "smollm3", "gpt_oss", "glm4", "deepseek_v3"),
)
"""Of the zoo's: one of each kind that people ask for."""

ENDS = [2, 5]
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
SETTINGS = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
PROMPT, COUNT = [7, 3, 11, 6], 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found of one class."""

    name: str
    context: str
    """The limit of the file, and what the configuration states."""
    ends: str
    template: bool
    settings: bool
    tokenizer: bool
    cache: str
    verified: bool
    equal: bool
    """Greedy tokens of the folder are those of transformers."""

    def cells(self) -> list[str]:
        marks = [self.template, self.settings, self.tokenizer, self.verified, self.equal]
        texts = ["yes" if mark else "NO" for mark in marks]
        return [f"`{self.name}`", self.context, self.ends, *texts[:3], self.cache, *texts[3:]]


def save_checkpoint(architecture: Architecture, folder: Path) -> Any:
    """Save a tiny model of the class with all that a checkpoint has; the model, in eval mode."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - slow to import
    from transformers import PreTrainedTokenizerFast as Fast  # noqa: PLC0415

    model: Any = build(architecture, architecture.implementations[0]).eval()
    model.generation_config.update(eos_token_id=ENDS, bos_token_id=1, pad_token_id=0, **SETTINGS)
    model.save_pretrained(folder)
    vocab = {"<p>": 0, "<s>": 1, "</s>": 2, **{f"w{index}": index for index in range(3, VOCAB)}}
    words = Tokenizer(models.WordLevel(vocab, "<p>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = Fast
    tokenizer = make(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<p>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return model


def look_at(architecture: Architecture, scratch: Path) -> Row:
    """Save, export and compare one class.

    Raises:
        CausalOnnxError: It cannot be exported.
    """
    model = save_checkpoint(architecture, scratch / "checkpoint")
    report = export_checkpoint(scratch / "checkpoint", scratch / "model")
    return judge(architecture.name, model, scratch / "model", report.trained_len)


def judge(name: str, model: Any, folder: Path, trained_len: int | None) -> Row:
    """What the folder has of what `save_checkpoint` saved.

    Args:
        name: Of the class.
        model: What was saved.
        folder: What the checkpoint was exported to.
        trained_len: As the export reports it.
    """
    loaded = load(folder)
    contract, tokenizer = loaded.contract, loaded.tokenizer
    with torch.no_grad():
        found = model.generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
            max_new_tokens=COUNT,
            do_sample=False,
        )
    expected = found[0, len(PROMPT) :].tolist()
    settings = json.loads((folder / "generation_config.json").read_text())
    windows = {
        pair.bounded
        for pair in contract.cache
        if pair.bounded is not None and not pair.computed_from
    }
    words = " ".join(f"w{token}" for token in PROMPT)
    return Row(
        name=name,
        context="no limit; none is stated"
        if trained_len is None
        else f"{contract.max_seq_len} of {trained_len}",
        ends=", ".join(map(str, contract.eos_token_ids)),
        template=(folder / "chat_template.jinja").read_text() == TEMPLATE,
        settings=all(settings.get(key) == value for key, value in SETTINGS.items()),
        tokenizer=tokenizer is not None and tokenizer.encode(words) == PROMPT,
        cache="all positions" if not windows else f"window {min(windows)}",
        verified=verify_bundle(folder).passed,
        equal=list(loaded.generate(PROMPT, max_new_tokens=COUNT).ids) == expected,
    )


HEADS = (
    *("class", "context, of trained", "ends at", "template", "sampling", "tokenizer", "cache"),
    *("verified", "greedy tokens equal"),
)


def table(rows: list[list[str]]) -> str:
    """The table in Markdown."""
    lines = [list(HEADS), ["---"] * len(HEADS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(names: list[str]) -> int:
    """Look at all, or at those named, and write the page where all were asked for."""
    known = {item.name: item for item in ARCHITECTURES}
    rows: list[list[str]] = []
    failed = 0
    for name in names or NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                row = look_at(known[name], Path(scratch)).cells()
            except CausalOnnxError as error:
                row = [f"`{name}`", " ".join(str(error).split())[:200], *[""] * (len(HEADS) - 2)]
        failed += "NO" in row or "" in row
        rows.append(row)
        print(" | ".join(row), flush=True)
    if not names:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}{table(rows)}{END}{after}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
