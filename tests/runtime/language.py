"""The language model in fixtures/language.onnx, in numpy: logits from the mean of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.runtime import Model, load
from tests.runtime.artifacts import fixture

Array = npt.NDArray[Any]

VOCAB, DIM, CONTEXT = 280, 6, 400

TEXTS = ['héllo wörld, 世界! 😀 👍🏽 {"name": "x", "age": 3}', "naïve café — ça va?"]


def weights() -> tuple[Array, Array]:
    """Embedding (vocab, dim) and head (dim, vocab)."""
    embedding, head = (
        np.random.default_rng(seed).standard_normal((VOCAB, DIM)).astype(np.float32)
        for seed in (5, 6)
    )
    return embedding, np.ascontiguousarray(head.T) * 2


def logprobs_after(ids: Sequence[int]) -> Array:
    """(vocab,), in float64."""
    embedding, head = (table.astype(np.float64) for table in weights())
    logits = np.mean([embedding[token] for token in ids], axis=0) @ head
    return np.asarray(logits - np.log(np.exp(logits).sum()))


def language_model(**options: Any) -> Model:
    return load(fixture("language"), threads=1, **options)


def write_tokenizer(folder: Path, *, end: bool = False) -> Path:
    """A byte-level BPE tokenizer of less than `VOCAB` ids; `end`: files name its end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 2,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    if end:
        (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    return path


def write_llama_tokenizer(folder: Path) -> Path:
    """A tokenizer like Llama's: a space belongs to the token behind it, other characters are bytes.

    Its decoder drops the space at the beginning of a text. It can write the words "The", "dog" and
    "was", and has no other character as a token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    words = ["▁The", "▁dog", "▁was"]
    parts = [word[:end] for word in words for end in range(2, 5)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*dict.fromkeys("".join(words)), *parts]
    assert len(pieces) <= VOCAB
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)},
        [(part[:-1], part[-1]) for part in parts],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(pieces[:3])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    parts_of_decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts_of_decoder, decoders.Strip(" ", 1, 0)])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
