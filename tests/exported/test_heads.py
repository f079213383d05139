"""A model's own heads guess tokens, and change none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor

from causal_onnx.runtime import DraftHeads, Model, Sampling
from causal_onnx.runtime.generation.prompt import can_rewind
from tests.export.quick import quick_export
from tests.zoo.codebooks import BOOKS, HEADS, PLACES, VOCAB, Medusa

COUNT = BOOKS - 1
PROMPT = [4, 2, 9]


class Separate(Medusa):
    """Logits of the next token, and an output for each further one."""

    def forward(self, ids: Tensor) -> Any:
        return tuple(head(self.hidden((ids,))) for head in self.heads)


class StackedLast(Medusa):
    """As in multi-token prediction: (batch, seq, heads, vocab)."""

    def forward(self, ids: Tensor) -> Any:
        logits, further = super().forward(ids)
        return logits, further.permute(1, 2, 0, 3)


class Plain(Medusa):
    """The same without further heads."""

    def forward(self, ids: Tensor) -> Any:
        return super().forward(ids)[0]


def texts(count: int) -> Tensor:
    """(count, PLACES): each id follows from the one before by a rule, but for one in sixteen."""
    random = torch.Generator().manual_seed(count)
    columns = [torch.randint(0, VOCAB, (count,), generator=random)]
    for _ in range(PLACES - 1):
        ruled = (2 * columns[-1] + 3) % VOCAB
        drawn = torch.randint(0, VOCAB, (count,), generator=random)
        columns.append(torch.where(torch.rand(count, generator=random) < 1 / 16, drawn, ruled))
    return torch.stack(columns, dim=1)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Trained to follow the rule, every head as far ahead as it looks."""
    torch.manual_seed(0)
    module, ids = Separate(), texts(256)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    for _ in range(100):
        losses = [
            F.cross_entropy(scores[:, : -1 - ahead].flatten(0, 1), ids[:, 1 + ahead :].flatten())
            for ahead, scores in enumerate(module(ids))
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    return module.state_dict()


def exported(kind: type[Medusa], weights: dict[str, Tensor], path: Path) -> Model:
    module = kind().eval()
    module.load_state_dict(weights)
    return quick_export(module, path, example=texts(2)[:, :7], cache=True)


@pytest.fixture(scope="module")
def plain(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Model:
    return exported(Plain, weights, tmp_path_factory.mktemp("plain") / "model.onnx")


@pytest.fixture(scope="module", params=[Separate, Medusa, StackedLast], ids=lambda k: k.__name__)
def model(
    request: pytest.FixtureRequest,
    weights: dict[str, Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    return exported(request.param, weights, tmp_path_factory.mktemp("heads") / "model.onnx")


@pytest.mark.parametrize("count", [None, 1, 2])
def test_heads_save_calls_and_change_no_token(
    model: Model, plain: Model, count: int | None
) -> None:
    expected = plain.generate(PROMPT, max_new_tokens=32)
    assert model.generate(PROMPT, max_new_tokens=32).ids == expected.ids
    found = model.generate(PROMPT, max_new_tokens=32, draft=DraftHeads(count=count))
    assert (found.ids, found.finish) == (expected.ids, expected.finish)
    told = found.speculation
    assert told.draft_calls == 0
    assert told.model_calls + told.accepted in (31, 32)
    assert told.accepted >= 0.8 * told.proposed
    assert told.model_calls <= 31 / ((count or COUNT) + 1) + 3


def test_heads_draw_what_is_drawn_without(model: Model) -> None:
    sampling, told, drawn = Sampling(temperature=1.5), [], set()
    for seed in range(8):
        options = {"max_new_tokens": 30, "sampling": sampling, "seed": seed}
        found = model.generate(PROMPT, draft=DraftHeads(), **options)
        assert found.ids == model.generate(PROMPT, **options).ids
        tokens = model.tokens(PROMPT, draft=DraftHeads(), **options)
        assert tuple(choice.id for choice in tokens) == found.ids
        told.append(found.speculation)
        drawn.add(found.ids)
    assert len(drawn) == 8
    assert 0 < sum(one.accepted for one in told) < sum(one.proposed for one in told)


def test_a_wrong_order_costs_calls_only(
    weights: dict[str, Tensor], plain: Model, tmp_path: Path
) -> None:
    model = exported(Separate, weights, tmp_path / "model.onnx")
    expected = plain.generate(PROMPT, max_new_tokens=32)
    names = [spec.name for spec in model.contract.outputs if len(spec.axes) == 3][1:]
    right, wrong = (
        model.generate(PROMPT, max_new_tokens=32, draft=DraftHeads(outputs=tuple(order)))
        for order in (names, names[::-1])
    )
    assert right.ids == wrong.ids == expected.ids
    assert wrong.speculation.accepted < 0.3 * wrong.speculation.proposed
    assert right.speculation.model_calls < wrong.speculation.model_calls


@pytest.mark.parametrize("length", [PLACES - 6, PLACES - 1, PLACES])
def test_the_models_limit_ends_guessing(model: Model, length: int) -> None:
    prompt = texts(1)[0, :length].tolist()
    expected = model.generate(prompt)
    found = model.generate(prompt, draft=DraftHeads())
    assert (found.ids, found.finish) == (expected.ids, "limit")


def test_a_stop_among_guesses_ends_there(model: Model) -> None:
    stop = [model.generate(PROMPT, max_new_tokens=20).ids[6]]
    expected = model.generate(PROMPT, max_new_tokens=20, stop=stop)
    found = model.generate(PROMPT, max_new_tokens=20, stop=stop, draft=DraftHeads())
    assert (found.ids, found.finish) == (expected.ids, "stop")


class Windowed(Medusa):
    """Each position sees itself and the four before it: its cache cannot be rewound."""

    def hidden(self, books: Any) -> Tensor:
        x = self.embed[0](books[0])
        place = torch.arange(x.shape[1])
        seen = (place <= place[:, None]) & (place > place[:, None] - 5)
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in qkv(x).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            x = x + out(y.transpose(1, 2).flatten(2))
        return x


def test_heads_guess_where_a_cache_keeps_a_window(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    model = exported(Windowed, weights, tmp_path / "model.onnx")
    assert not can_rewind(model)
    for seed in range(4):
        options = {"max_new_tokens": 60, "sampling": Sampling(temperature=2.0), "seed": seed}
        found = model.generate(PROMPT, draft=DraftHeads(), **options)
        assert found.ids == model.generate(PROMPT, **options).ids
        assert 0 < found.speculation.accepted < found.speculation.proposed


class AllInOne(Medusa):
    """The next token and those after it in one tensor: none says which is which."""

    def forward(self, ids: Tensor) -> Any:
        return torch.stack([head(self.hidden((ids,))) for head in self.heads], dim=2)


def test_which_head_is_the_next_token_is_not_guessed(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    model = exported(AllInOne, weights, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="returns those of the next token as an output of its own"):
        model.generate(PROMPT, draft=DraftHeads())


def test_what_is_no_head_is_refused(model: Model, plain: Model) -> None:
    with pytest.raises(ValueError, match="has no heads to draft with: outputs besides its logits"):
        plain.generate(PROMPT, draft=DraftHeads())
    for name in ("banana", "output"):
        with pytest.raises(ValueError, match=f"'{name}' is no output that could be a head"):
            model.generate(PROMPT, draft=DraftHeads(outputs=(name,)))
    with pytest.raises(ValueError, match="count must be at least 1, or None, got 0"):
        DraftHeads(count=0)
    with pytest.raises(TypeError, match="outputs must be names of outputs, or None, got 'head'"):
        DraftHeads(outputs="head")
