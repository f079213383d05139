"""Codes that a second decoder chooses frame by frame, beside plain loops over both modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from causal_onnx.runtime import DepthDecoder, Sampling
from tests.export.quick import quick_export
from tests.exported.code_loop import Scores, as_lists, plain_loop
from tests.exported.depth_modules import (
    COUNT,
    AddedAtFirst,
    AtFirst,
    Broadcast,
    Everywhere,
    Main,
    MainWithFirst,
    Pair,
    depth_inputs,
    export_depth,
    make_pair,
)
from tests.zoo.codebooks import PLACES, VOCAB

PROMPT = [[1, 2, 3], [5, 6, 7], [0, 8, 0], [9, 9, 2]]
DELAYS = [None, (0, 1, 1, 1), (2, 0, 1, 3)]


@pytest.fixture(
    scope="module",
    params=[
        (MainWithFirst, AtFirst, 0),
        (Main, AddedAtFirst, 2),
        (Main, Everywhere, VOCAB),
        (MainWithFirst, Everywhere, None),
        (MainWithFirst, Broadcast, None),
    ],
    ids=["csm", "all", "all-everywhere", "moshi", "moshi-broadcast"],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("depth"), *request.param)


@pytest.fixture(scope="module")
def csm(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("csm"), MainWithFirst, AtFirst, 0)


def loop(
    pair: Pair, prompt: Sequence[Sequence[int]], count: int, **options: Any
) -> list[list[int]]:
    """The plain loop, with full passes of both modules."""

    def scores_after(grid: torch.Tensor, place: int) -> Scores:
        with torch.no_grad():
            found = pair.main(grid[None, :, :place])

        def scores(book: int) -> Any:
            if book == 0 and "logits" in found:
                return found["logits"][0, -1]
            before = [] if pair.first_id is None else [pair.first_id]
            ids = [*before, *grid[:book, place].tolist()]
            with torch.no_grad():
                return pair.depth(*depth_inputs(pair, ids, found["hidden"][0, -1]))[0, -1]

        return scores

    return plain_loop(scores_after, torch.full((COUNT,), VOCAB), prompt, count, **options)


@pytest.mark.parametrize("delays", DELAYS, ids=str)
def test_greedy_codes_are_those_of_a_plain_loop(pair: Pair, delays: Any) -> None:
    options = {"max_new_frames": 10, "delays": delays, "fill": VOCAB, "depth": pair.decoder}
    found = pair.model.generate_codes(PROMPT, **options)
    assert as_lists(found.ids) == loop(pair, PROMPT, 10, delays=delays)
    assert found.finish == "length"
    assert len(set(zip(*found.ids, strict=True))) > 2
    frames = list(pair.model.frames(PROMPT, **options))
    assert [frame.ids for frame in frames] == list(zip(*found.ids, strict=True))
    assert [frame.logprobs for frame in frames] == list(zip(*found.logprobs, strict=True))


@pytest.mark.parametrize("delays", DELAYS[:2], ids=str)
def test_drawn_codes_are_those_of_a_plain_loop(pair: Pair, delays: Any) -> None:
    options = {"max_new_frames": 8, "delays": delays, "fill": VOCAB, "depth": pair.decoder}
    for seed in range(3):
        found = pair.model.generate_codes(
            PROMPT, sampling=Sampling(temperature=1.3), seed=seed, **options
        )
        drawn = loop(pair, PROMPT, 8, delays=delays, temperature=1.3, seed=(seed, 0))
        assert as_lists(found.ids) == drawn


def test_prompts_together_become_what_each_becomes_alone(pair: Pair) -> None:
    """Also where one of them ends before the others and leaves the batch."""
    prompts = [PROMPT, [[7], [8], [2], [0]], None]
    options = {"max_new_frames": 8, "fill": VOCAB, "depth": pair.decoder}
    alone = [pair.model.generate_codes(prompt, **options) for prompt in prompts]
    only_one = set(alone[1].ids[2][:5]) - set(alone[0].ids[2]) - set(alone[2].ids[2])
    for stop in (set(), only_one):
        options["stop"] = [[], [], sorted(stop), []]
        alone = [pair.model.generate_codes(prompt, **options) for prompt in prompts]
        together = pair.model.generate_codes_batch(prompts, **options)
        assert [row.ids for row in together] == [row.ids for row in alone]
        assert [row.finish for row in together] == [row.finish for row in alone]


def test_copies_of_a_prompt_have_random_numbers_of_their_own(pair: Pair) -> None:
    found = pair.model.generate_codes_batch(
        [PROMPT],
        n=3,
        max_new_frames=5,
        sampling=Sampling(temperature=1.3),
        seed=4,
        depth=pair.decoder,
    )
    for index, row in enumerate(found):
        drawn = loop(pair, PROMPT, 5, temperature=1.3, seed=(4, index))
        assert as_lists(row.ids) == drawn


def test_each_codebook_has_its_sampling_and_its_stop(pair: Pair) -> None:
    options = {"max_new_frames": 12, "depth": pair.decoder}
    plain = pair.model.generate_codes(PROMPT, **options)
    never = Sampling(logit_bias=dict.fromkeys(range(4), -np.inf))
    samplings = [Sampling(), Sampling(), never, Sampling()]
    found = pair.model.generate_codes(PROMPT, sampling=samplings, **options)
    assert min(plain.ids[2]) < 4 <= min(found.ids[2])
    wanted = plain.ids[3][4]
    stopped = pair.model.generate_codes(PROMPT, stop=[[], [], [], [wanted]], **options)
    place = plain.ids[3].index(wanted)
    assert stopped.finish == "stop"
    assert stopped.ids == tuple(ids[: place + 1] for ids in plain.ids)


def test_the_main_models_limit_ends_with_whole_frames(pair: Pair) -> None:
    found = pair.model.generate_codes(PROMPT, delays=DELAYS[1], fill=VOCAB, depth=pair.decoder)
    count = PLACES + 1 - len(PROMPT[0]) - 1
    assert (found.finish, {len(ids) for ids in found.ids}) == ("limit", {count})
    assert as_lists(found.ids) == loop(pair, PROMPT, count, delays=DELAYS[1])


class Recurrent(Everywhere):
    """Its state cannot take back what it has read, so each frame has a stream of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(12))

    def forward(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.project(hidden)[:, None]
        x = nn.functional.pad(x, (0, 0, 1, 0))[:, :-1] * self.decay + x
        return (x.unsqueeze(2) @ self.heads[torch.arange(x.shape[1])]).squeeze(2)


def test_a_state_that_cannot_be_rewound_begins_anew(csm: Pair, tmp_path: Path) -> None:
    torch.manual_seed(5)
    depth = Recurrent().eval()
    model = export_depth(depth, tmp_path / "recurrent.onnx")
    pair = Pair(csm.main, depth, 3, csm.model, DepthDecoder(model=model, first_id=3))
    found = pair.model.generate_codes(PROMPT, max_new_frames=8, depth=pair.decoder)
    assert as_lists(found.ids) == loop(pair, PROMPT, 8)


def test_a_model_stands_for_a_decoder_with_the_first_id_0(csm: Pair) -> None:
    found = csm.model.generate_codes(PROMPT, max_new_frames=6, depth=csm.decoder.model)
    assert as_lists(found.ids) == loop(csm, PROMPT, 6)
    with pytest.raises(ValueError, match="give it as depth=") as refused:
        csm.model.generate_codes(PROMPT)
    assert "hidden: float32 (batch, seq, 24)" in str(refused.value)
    with pytest.raises(ValueError, match=r"several codebooks there is generate_codes\(\.\.\.\)"):
        csm.model.generate([1, 2])


def test_what_the_depth_decoder_cannot_read_is_refused(csm: Pair, tmp_path: Path) -> None:
    small = export_depth(AtFirst(size=VOCAB).eval(), tmp_path / "small.onnx")
    options = {"max_new_frames": 2, "depth": small}
    csm.model.generate_codes(PROMPT, **options)
    with pytest.raises(ValueError, match=r"delays leave the id 11 \(fill\) in places of codebook"):
        csm.model.generate_codes(PROMPT, delays=(0, 1, 1, 1), fill=VOCAB, **options)
    tight = export_depth(AtFirst(places=3).eval(), tmp_path / "tight.onnx")
    with pytest.raises(ValueError, match=r"at most 3 positions, and a frame of 4 .* needs 4"):
        csm.model.generate_codes(PROMPT, depth=tight)


@pytest.mark.parametrize("call", ["generate_codes", "frames"])
def test_what_is_no_model_is_refused(csm: Pair, call: str) -> None:
    with pytest.raises(TypeError, match=r"depth must be a loaded model, .* got 'depth.onnx'"):
        getattr(csm.model, call)(PROMPT, depth="depth.onnx")


class CsmMain(nn.Module):
    """The backbone of transformers' CSM, and its head for the first codebook."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.backbone(input_ids=codes, use_cache=False).last_hidden_state
        return {"logits": self.head(hidden), "hidden": hidden}


class CsmDepth(nn.Module):
    """Its depth decoder, with the position of each id and head written as they are meant."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.model, self.heads = decoder.model, decoder.codebooks_head.weight
        self.vocab = decoder.config.vocab_size

    def forward(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1])
        books = (places - 1).clamp(min=0)
        x = self.model.embed_tokens(ids + books * self.vocab)
        x = torch.where((places == 0)[:, None], hidden, x)
        # Without a mask, transformers looks for packed sequences where seq is the batch, and fails.
        mask = torch.ones_like(ids)
        x = self.model(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state
        return torch.einsum("bsw,swv->bsv", x, self.heads[books])


def test_csm_writes_what_its_modules_in_transformers_write(tmp_path: Path) -> None:
    from transformers import (
        CsmBackboneModel,
        CsmConfig,
        CsmDepthDecoderConfig,
        CsmDepthDecoderForCausalLM,
    )

    shared = {"num_codebooks": COUNT, "vocab_size": 19, "num_hidden_layers": 1, "head_dim": 8}
    shared |= {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
    torch.manual_seed(0)
    small = CsmDepthDecoderConfig(
        **shared, hidden_size=16, backbone_hidden_size=24, max_position_embeddings=COUNT + 1
    )
    config = CsmConfig(
        **shared, hidden_size=24, max_position_embeddings=64, depth_decoder_config=small
    )
    backbone = CsmBackboneModel(config).eval()
    decoder = CsmDepthDecoderForCausalLM(small).eval()
    head = nn.Linear(24, 19, bias=False)
    for weight in (*backbone.parameters(), *decoder.parameters()):
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.4)
    codes = torch.arange(2 * 5 * COUNT).reshape(2, 5, COUNT) % 19
    seq, options = {0: "batch", 1: "seq"}, {"cache": True}
    model = quick_export(
        CsmMain(backbone, head).eval(), tmp_path / "m.onnx", example=codes, axes=[seq], **options
    )
    example = (codes[:, :4, 0], torch.randn(2, 4, 24))
    depth = quick_export(
        CsmDepth(decoder).eval(), tmp_path / "d.onnx", example=example, axes=[seq] * 2, **options
    )
    found = model.generate_codes(PROMPT, max_new_frames=12, depth=depth)
    grid = torch.tensor(PROMPT).T[None]
    with torch.no_grad():
        for _ in range(12):
            state = backbone(input_ids=grid, use_cache=False).last_hidden_state[:, -1]
            ids = torch.tensor([[0, int(head(state).argmax())]])
            while ids.shape[1] <= COUNT:
                scores = decoder(input_ids=ids, backbone_last_hidden_state=state).logits[:, -1:]
                ids = torch.cat([ids, scores.argmax(-1)], 1)
            grid = torch.cat([grid, ids[:, None, 1:]], 1)
    assert as_lists(found.ids) == grid[0, len(PROMPT[0]) :].T.tolist()
    assert len({*zip(*found.ids, strict=True)}) > 3
