"""Codes of several codebooks, beside plain loops over the module, and beside transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from causal_onnx.cli.main import main
from causal_onnx.runtime import Model, Sampling
from tests.export.quick import quick_export
from tests.exported.code_loop import Scores, as_lists, plain_loop
from tests.zoo.codebooks import BOOKS, DIM, PLACES, VOCAB, Books, Each, First, Last

PROMPT = [[1, 2, 3, 4], [5, 6, 7, 8], [0, 8, 0, 8]]
DELAYS = [None, (0, 1, 2), (0, 2, 2), (1, 0, 5)]


class ListOfLogits(First):
    """ids (batch, codebooks, seq) -> an output (batch, seq, vocab) for each codebook."""

    def forward(self, codes: torch.Tensor) -> Any:
        return super().forward(codes).unbind(1)


class Described(First):
    """The same, with what describes the first positions: (batch, seq, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed.append(torch.nn.Linear(4, DIM, bias=False))

    def forward(self, codes: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.hidden((*codes.unbind(1), text))
        return torch.stack([head(x) for head in self.heads], 1)


@dataclass(frozen=True)
class Subject:
    module: Books
    model: Model

    @property
    def fill(self) -> tuple[int, ...]:
        """For each codebook, the id that stands for none."""
        return self.module.sizes


@pytest.fixture(
    scope="module", params=[First, Last, ListOfLogits, Each], ids=lambda cls: cls.__name__
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    torch.manual_seed(1)
    module = request.param().eval()
    for head in module.heads:
        head.weight.data *= 6  # or all ids are about equally likely
    example = inputs(module, torch.arange(2 * BOOKS * 5).reshape(2, BOOKS, 5) % 9)
    path = tmp_path_factory.mktemp("codes") / "model.onnx"
    axes = [{0: "batch", example[0].ndim - 1: "seq"}] * len(example)
    if isinstance(module, Last):
        axes = [{0: "batch", 1: "seq"}]
    return Subject(module, quick_export(module, path, example=example, axes=axes, cache=True))


def inputs(module: Books, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The module's inputs, from ids (batch, codebooks, seq)."""
    if isinstance(module, Each):
        return ids.unbind(1)
    return (ids.mT,) if isinstance(module, Last) else (ids,)


def logits(module: Books, ids: torch.Tensor) -> list[torch.Tensor]:
    """The logits of each codebook (batch, seq, vocab), from ids (batch, codebooks, seq)."""
    with torch.no_grad():
        found = module(*inputs(module, ids))
    if isinstance(found, tuple):
        return list(found)
    return list(found.unbind(2 if isinstance(module, Last) else 1))


def loop(
    module: Books, prompt: Sequence[Sequence[int]], count: int, **options: Any
) -> list[list[int]]:
    def scores_after(grid: torch.Tensor, place: int) -> Scores:
        found = logits(module, grid[None, :, :place])
        return lambda book: found[book][0, -1]

    return plain_loop(scores_after, torch.tensor(module.sizes), prompt, count, **options)


@pytest.mark.parametrize("delays", DELAYS, ids=str)
def test_greedy_codes_are_those_of_a_plain_loop(subject: Subject, delays: Any) -> None:
    options = {"max_new_frames": 12, "delays": delays, "fill": subject.fill}
    found = subject.model.generate_codes(PROMPT, **options)
    assert as_lists(found.ids) == loop(subject.module, PROMPT, 12, delays=delays)
    assert found.finish == "length"
    frames = list(subject.model.frames(PROMPT, **options))
    assert [frame.ids for frame in frames] == list(zip(*found.ids, strict=True))
    assert [frame.logprobs for frame in frames] == list(zip(*found.logprobs, strict=True))


@pytest.mark.parametrize("delays", DELAYS[:2], ids=str)
def test_drawn_codes_are_those_of_a_plain_loop(subject: Subject, delays: Any) -> None:
    sampling = Sampling(temperature=1.3)
    for seed in range(3):
        found = subject.model.generate_codes(
            PROMPT,
            max_new_frames=9,
            delays=delays,
            fill=subject.fill,
            sampling=sampling,
            seed=seed,
        )
        drawn = loop(subject.module, PROMPT, 9, delays=delays, temperature=1.3, seed=(seed, 0))
        assert as_lists(found.ids) == drawn
        assert len({*map(tuple, drawn)}) == BOOKS


def test_prompts_together_become_what_each_becomes_alone(subject: Subject) -> None:
    prompts = [PROMPT, [[7], [8], [2]], None]
    options = {"max_new_frames": 8, "delays": (0, 1, 2), "fill": subject.fill}
    together = subject.model.generate_codes_batch(prompts, **options)
    assert [row.ids for row in together] == [
        subject.model.generate_codes(prompt, **options).ids for prompt in prompts
    ]
    assert as_lists(together[2].ids) == loop(
        subject.module, [[one] for one in subject.fill], 8, delays=(0, 1, 2)
    )


def test_copies_of_a_prompt_have_random_numbers_of_their_own(subject: Subject) -> None:
    found = subject.model.generate_codes_batch(
        [PROMPT], n=3, max_new_frames=6, sampling=Sampling(temperature=1.3), seed=4
    )
    for index, row in enumerate(found):
        drawn = loop(subject.module, PROMPT, 6, temperature=1.3, seed=(4, index))
        assert as_lists(row.ids) == drawn


def test_each_codebook_may_have_a_sampling_of_its_own(subject: Subject) -> None:
    never = Sampling(logit_bias=dict.fromkeys(range(4), -np.inf))
    plain = subject.model.generate_codes(PROMPT, max_new_frames=12)
    found = subject.model.generate_codes(
        PROMPT, max_new_frames=12, sampling=[Sampling(), never, Sampling(temperature=0.0)]
    )
    assert min(plain.ids[1]) < 4 <= min(found.ids[1])
    assert found.ids[0][0] == plain.ids[0][0]


@pytest.mark.parametrize("delays", [None, (0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("book", range(BOOKS))
def test_a_stop_ends_with_the_frame_that_holds_it(subject: Subject, delays: Any, book: int) -> None:
    options = {"max_new_frames": 14, "delays": delays, "fill": subject.fill}
    plain = subject.model.generate_codes(PROMPT, **options)
    wanted = plain.ids[book][5]
    place = plain.ids[book].index(wanted)
    stop = [[wanted] if index == book else [] for index in range(BOOKS)]
    found = subject.model.generate_codes(PROMPT, stop=stop, **options)
    assert (found.finish, {len(ids) for ids in found.ids}) == ("stop", {place + 1})
    assert found.ids[book] == plain.ids[book][: place + 1]
    frames = list(subject.model.frames(PROMPT, stop=stop, **options))
    assert [frame.ids for frame in frames] == list(zip(*found.ids, strict=True))


def test_the_models_limit_ends_with_whole_frames(subject: Subject) -> None:
    delays = (0, 1, 2)
    found = subject.model.generate_codes(PROMPT, delays=delays, fill=subject.fill)
    count = PLACES + 1 - len(PROMPT[0]) - max(delays)
    assert (found.finish, {len(ids) for ids in found.ids}) == ("limit", {count})
    assert as_lists(found.ids) == loop(subject.module, PROMPT, count, delays=delays)


def test_penalties_count_the_ids_of_their_own_codebook(subject: Subject) -> None:
    never_again = Sampling(presence_penalty=1e4)
    count = min(subject.module.sizes)
    found = subject.model.generate_codes(PROMPT, max_new_frames=count, sampling=never_again)
    assert [len(set(ids)) for ids in found.ids] == [count] * BOOKS
    plain = subject.model.generate_codes(PROMPT, max_new_frames=count)
    assert max(len(set(ids)) for ids in plain.ids) < count


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (None, {}, "a prompt of 3 codebooks is needed"),
        ([[1], [2]], {}, r"must be ids \(codebooks, frames\) of 3 codebooks"),
        ([[1], [2, 3], [4]], {}, "equally many frames, got 1, 2, 1"),
        ([[1], [2.5], [3]], {}, "codebook 1 of the prompt must be integers"),
        (PROMPT, {"delays": (0, 1, 2)}, "say which id stands there: fill="),
        (PROMPT, {"delays": (0, 1), "fill": 1}, "delays must hold a number for each of 3"),
        (PROMPT, {"delays": (0, -1, 0), "fill": 1}, r"delays\[1\] must be an integer of at least"),
        (PROMPT, {"stop": [[1], [2]]}, "a list of ids for each of 3 codebooks"),
        (PROMPT, {"stop": ["a", "b", "c"]}, "a list of ids for each of 3 codebooks"),
        (PROMPT, {"max_new_frames": 0}, "max_new_frames must be at least 1, got 0"),
        ([[1] * 40] * 3, {"delays": (0, 1, 0), "fill": 1}, "leave no room in the 40 positions"),
        ([[99]] * 3, {}, r"holds the id 99 .* expected ids in \[0, "),
    ],
)
def test_what_does_not_fit_is_refused(
    subject: Subject, prompt: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        subject.model.generate_codes(prompt, **options)


def test_texts_and_other_generation_are_refused(subject: Subject) -> None:
    with pytest.raises(TypeError, match="is ids, not a text: 'la la'"):
        subject.model.generate_codes("la la")
    with pytest.raises(TypeError, match="sampling must be a Sampling, one for each of 3"):
        subject.model.generate_codes(PROMPT, sampling=[Sampling()])
    with pytest.raises(ValueError, match=r"several codebooks there is generate_codes\(\.\.\.\)"):
        subject.model.generate([1, 2], max_new_tokens=3)


def test_the_command_line_refuses_and_says_why(
    subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(subject.model.runner.artifact.location)
    assert main(["generate", path, "--ids", "1,2", "--trusted"]) == 1
    assert "several codebooks there is generate_codes(...)" in capsys.readouterr().err


def test_a_server_has_no_engine_for_codes_but_keeps_their_cache(subject: Subject) -> None:
    pytest.importorskip("starlette", reason="serving needs the extra `serve`")
    from causal_onnx.serve.registry import ServedModel

    served = ServedModel.of("codes", subject.model)
    assert served.engine is None
    assert served.sequences is not None


class Conditioned(First):
    """A text in front of everything: its mean is added at each position."""

    def forward(self, codes: torch.Tensor, memory: torch.Tensor) -> Any:
        mean = memory.mean(1, keepdim=True)
        return torch.stack([head(self.hidden(codes.unbind(1)) + mean) for head in self.heads], 1)


def test_inputs_that_stay_are_those_of_each_prompt(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module, memories = Conditioned().eval(), torch.randn(2, 4, DIM) * 3
    example = (torch.arange(2 * BOOKS * 5).reshape(2, BOOKS, 5) % 9, memories)
    axes = [{0: "batch", 2: "seq"}, {0: "batch", 1: "memory"}]
    model = quick_export(module, tmp_path / "m.onnx", example=example, axes=axes, cache=True)
    options = {"max_new_frames": 8, "delays": (0, 1, 2), "fill": VOCAB}
    both = model.generate_codes_batch([PROMPT] * 2, inputs={"memory": memories.numpy()}, **options)
    for memory, found in zip(memories, both, strict=True):
        fixed = partial(module, memory=memory[None])
        fixed.sizes = module.sizes
        assert as_lists(found.ids) == loop(fixed, PROMPT, 8, delays=(0, 1, 2))
    assert both[0].ids != both[1].ids


class MusicGen(torch.nn.Module):
    """The decoder of transformers, which joins batch and codebooks, with the two apart."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder, self.count = decoder, decoder.config.num_codebooks

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        batch, count, seq = codes.shape
        found = self.decoder(codes.reshape(batch * count, seq), use_cache=False).logits
        return found.reshape(batch, count, seq, -1)


@pytest.fixture(scope="module")
def musicgen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Model]:
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 32}
    torch.manual_seed(0)
    decoder = MusicgenForCausalLM(
        MusicgenDecoderConfig(
            **sizes,
            vocab_size=37,
            num_codebooks=4,
            max_position_embeddings=64,
            pad_token_id=37,
            bos_token_id=37,
            initializer_range=0.4,
        )
    ).eval()
    module, path = MusicGen(decoder).eval(), tmp_path_factory.mktemp("musicgen") / "model.onnx"
    ids = torch.arange(2 * 4 * 6).reshape(2, 4, 6) % 37
    axes = [{0: "batch", 2: "seq"}]
    return decoder, quick_export(module, path, example=ids, axes=axes, cache=True, max_seq_len=48)


@pytest.mark.parametrize("rest", [[[]] * 4, [[3, 1], [4, 1], [5, 9], [2, 6]]], ids=len)
def test_musicgen_writes_what_transformers_writes(
    musicgen: tuple[Any, Model], rest: list[list[int]]
) -> None:
    """With its own pattern of delays; after the frame that a prompt begins with, and after more."""
    decoder, model = musicgen
    prompt = [[37, *ids] for ids in rest]
    count = 16
    expected = decoder.generate(
        torch.tensor(prompt),
        # Its own would hide the first frame, which it takes for padding.
        attention_mask=torch.ones(1, len(prompt[0]), dtype=torch.int64),
        max_length=len(prompt[0]) + count + 3,
        do_sample=False,
        num_return_sequences=1,
        use_cache=False,  # with one it reads only the last frame of a prompt
        decoder_start_token_id=37,
        eos_token_id=None,
    )
    options = {"max_new_frames": count, "delays": range(4), "fill": 37}
    found = model.generate_codes(prompt, **options)
    written = [[*ids, *new] for ids, new in zip(rest, found.ids, strict=True)]
    assert written == expected[0].tolist()
    assert len(set(found.ids[0])) > 3
    if not rest[0]:
        assert model.generate_codes(**options) == found


def test_codes_follow_what_describes_the_first_positions(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Described().eval()
    codes, text = torch.tensor([PROMPT]), torch.randn(1, 3, 4) * 3
    example = (codes.repeat(2, 1, 1), torch.randn(2, 4, 4))
    axes = [{0: "batch", 2: "seq"}, {0: "batch", 1: "seq"}]
    model = quick_export(module, tmp_path / "m.onnx", example=example, axes=axes, cache=True)
    with torch.no_grad():
        while codes.shape[2] < len(PROMPT[0]) + 8:
            whole = torch.nn.functional.pad(text, (0, 0, 0, codes.shape[2] - 3))
            codes = torch.cat([codes, module(codes, whole)[:, :, -1:].argmax(-1)], 2)
    found = model.generate_codes(PROMPT, max_new_frames=8, inputs={"text": text.numpy()})
    assert as_lists(found.ids) == codes[0, :, len(PROMPT[0]) :].tolist()
    assert found.ids != model.generate_codes(PROMPT, max_new_frames=8, inputs={"text": [None]}).ids
    with pytest.raises(ValueError, match=r"the prompt has 1 positions, .* for the first 3"):
        model.generate_codes([[1], [2], [3]], inputs={"text": text.numpy()})
