"""Embeddings for the first positions of a prompt, beside a plain loop over the PyTorch module."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from causal_onnx.cli.main import main
from causal_onnx.export import Input
from causal_onnx.runtime import Chat, Model, PrefixCache, PromptLookup, Sampling
from causal_onnx.runtime.generation import prompt as prompts
from causal_onnx.runtime.stream.repeated_step import RepeatedStep
from tests.export.quick import quick_export
from tests.runtime import language

VOCAB, DIM, WIDTH, PLACES, WINDOW = 23, 24, 5, 40, 6
PROMPT = [0, 0, 0, 0, 7, 3, 8]
LONGEST = 4
"""Positions of the longest image in the tests."""


class Decoder(nn.Module):
    """Two layers of attention over embeddings, of which subclasses say where they come from."""

    window: int | None = None
    vocab = VOCAB

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(self.vocab, DIM)
        self.project = nn.Linear(WIDTH, DIM, bias=False)
        self.place = nn.Embedding(PLACES, DIM)
        self.qkv = nn.ModuleList(nn.Linear(DIM, 3 * DIM) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2))
        self.head = nn.Linear(DIM, self.vocab)

    def logits(self, x: Tensor) -> Tensor:
        seq = x.shape[1]
        x = x + self.place(torch.arange(seq))
        mask = torch.ones(seq, seq, dtype=torch.bool).tril()
        if self.window is not None:
            mask = mask & torch.ones(seq, seq, dtype=torch.bool).triu(1 - self.window)
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (y.unflatten(-1, (3, -1)).transpose(1, 2) for y in qkv(x).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + out(y.transpose(1, 2).flatten(2))
        return self.head(x)


class Added(Decoder):
    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        return self.logits(self.embed(ids) + self.project(image))


class Labelled(Decoder):
    def forward(self, ids: Tensor, label: Tensor) -> Tensor:
        return self.logits(self.embed(ids) + self.embed(label)[:, None])


class Speaking(Added):
    vocab = language.VOCAB


class Windowed(Added):
    window = WINDOW


class NotZero(Decoder):
    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        is_image = (image != 0).any(-1, keepdim=True)
        return self.logits(torch.where(is_image, self.project(image), self.embed(ids)))


class Selected(Decoder):
    def forward(self, ids: Tensor, image: Tensor, is_image: Tensor) -> Tensor:
        x = torch.where(is_image[..., None], self.project(image), self.embed(ids))
        return self.logits(x)


@dataclass(frozen=True)
class Subject:
    module: Decoder
    model: Model
    whole: Model
    """Without a cache."""
    path: Path

    def given(self, image: np.ndarray | Sequence[np.ndarray | None]) -> dict[str, Any]:
        """The inputs beside the ids, as a caller has them."""
        if not isinstance(self.module, Selected):
            return {"image": image}
        if isinstance(image, np.ndarray):
            return {"image": image, "is_image": np.ones(image.shape[:2], np.bool_)}
        flags = [None if row is None else np.ones(len(row), np.bool_) for row in image]
        return {"image": image, "is_image": flags}

    def padded(self, image: np.ndarray | None, seq: int) -> tuple[Tensor, ...]:
        """The same, (1, seq, ...), for one pass of the module over `seq` positions."""
        whole, flags = torch.zeros(1, seq, WIDTH), torch.zeros(1, seq, dtype=torch.bool)
        if image is not None:
            count = min(len(image), seq)
            whole[0, :count], flags[0, :count] = torch.from_numpy(image[:count]), True
        return (whole, flags) if isinstance(self.module, Selected) else (whole,)

    def logits(self, ids: Sequence[int], image: np.ndarray | None) -> Tensor:
        with torch.no_grad():
            return self.module(torch.tensor([list(ids)]), *self.padded(image, len(ids)))[0]

    def loop(
        self,
        prompt: Sequence[int],
        image: np.ndarray | None,
        count: int,
        *,
        temperature: float | None = None,
        seed: tuple[int, int] = (0, 0),
    ) -> list[int]:
        """`count` ids after a prompt, each from a pass over all before it."""
        ids, random = list(prompt), np.random.default_rng(seed)
        for _ in range(count):
            scores, uniform = self.logits(ids, image)[-1].double(), random.random()
            if temperature is None:
                ids.append(int(scores.argmax()))
            else:
                cumulative = (scores / temperature).softmax(-1).cumsum(-1)
                ids.append(int((cumulative > uniform).int().argmax()))
        return ids[len(prompt) :]


def make(kind: type[Decoder], folder: Path) -> Subject:
    torch.manual_seed(2)
    module = kind().eval()
    with torch.no_grad():
        module.head.weight.mul_(8)  # or all ids are about equally likely
        module.project.weight.mul_(4)
    example = [torch.randint(0, VOCAB, (2, 6)), torch.randn(2, 6, WIDTH)]
    options: dict[str, Any] = {}
    if isinstance(module, Selected):
        example.append(torch.rand(2, 6) > 0.5)
        options["inputs"] = {"is_image": Input(kind="flags")}
    options |= {"example": tuple(example), "axes": [{0: "batch", 1: "seq"}] * len(example)}
    model = quick_export(module, folder / "model.onnx", cache=True, **options)
    whole = quick_export(module, folder / "whole.onnx", **options)
    return Subject(module, model, whole, folder / "model.onnx")


@pytest.fixture(scope="module", params=[Added, Windowed, NotZero, Selected])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make(request.param, tmp_path_factory.mktemp("first"))


def image(positions: int, *, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng([seed, positions]).standard_normal((positions, WIDTH))
    return numbers.astype(np.float32)


def close(got: np.ndarray, expected: Tensor) -> None:
    assert np.abs(got - expected.numpy()).max() <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("positions", [0, 1, LONGEST, len(PROMPT)])
def test_greedy_ids_are_those_of_a_plain_loop(subject: Subject, positions: int) -> None:
    given = subject.given(image(positions)[None])
    expected = subject.loop(PROMPT, image(positions), 12)
    assert list(subject.model.generate(PROMPT, max_new_tokens=12, inputs=given).ids) == expected
    steps = subject.model.tokens(PROMPT, max_new_tokens=12, inputs=given)
    assert [choice.id for choice in steps] == expected
    (alone,) = subject.model.beam_search(PROMPT, max_new_tokens=12, beams=1, inputs=given)
    assert list(alone.ids) == expected


def test_images_change_what_follows(subject: Subject) -> None:
    found = {tuple(subject.loop(PROMPT, image(LONGEST, seed=seed), 12)) for seed in range(4)}
    assert len({*found, tuple(subject.loop(PROMPT, None, 12))}) >= 4


def test_drawn_ids_are_those_of_a_plain_loop(subject: Subject) -> None:
    given, sampling = subject.given(image(LONGEST)[None]), Sampling(temperature=1.3)
    for seed in range(3):
        found = subject.model.generate(
            PROMPT, max_new_tokens=10, sampling=sampling, seed=seed, inputs=given
        )
        expected = subject.loop(PROMPT, image(LONGEST), 10, temperature=1.3, seed=(seed, 0))
        assert list(found.ids) == expected


def test_without_a_cache_a_loop_of_ones_own_writes_the_same(subject: Subject) -> None:
    ids = list(PROMPT)
    for _ in range(8):
        inputs = (x.numpy() for x in subject.padded(image(LONGEST), len(ids)))
        ids.append(int(subject.whole(np.array([ids]), *inputs)[0, -1].argmax()))
    given = subject.given(image(LONGEST)[None])
    assert list(subject.model.generate(PROMPT, max_new_tokens=8, inputs=given).ids) == ids[7:]
    with pytest.raises(ValueError, match=r"exported with cache=True.*, without a cache$"):
        subject.whole.generate(PROMPT, inputs=given)


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_prompts_together_become_what_each_becomes_alone(
    subject: Subject, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "CHUNK", chunk)
    asked = [PROMPT, [0, 9], [4, 4, 1, 6, 2], [5]]
    images = [image(LONGEST), image(2), None, image(1, seed=3)]
    together = subject.model.generate_batch(asked, max_new_tokens=9, inputs=subject.given(images))
    for row, ids, own in zip(together, asked, images, strict=True):
        assert list(row.ids) == subject.loop(ids, own, 9)
        alone = subject.model.generate(ids, max_new_tokens=9, inputs=subject.given([own]))
        assert alone.ids == row.ids
        np.testing.assert_allclose(alone.logprobs, row.logprobs, atol=1e-5)


def test_copies_of_a_prompt_share_its_image(subject: Subject) -> None:
    images = [image(LONGEST), image(1)]
    found = subject.model.generate_batch(
        [PROMPT, [2, 3]],
        n=2,
        max_new_tokens=6,
        sampling=Sampling(temperature=1.3),
        seed=4,
        inputs=subject.given(images),
    )
    for index, row in enumerate(found):
        ids, own = [(PROMPT, images[0]), ([2, 3], images[1])][index // 2]
        drawn = subject.loop(ids, own, 6, temperature=1.3, seed=(4, index))
        assert list(row.ids) == drawn


def test_beams_score_what_they_found(subject: Subject) -> None:
    given = subject.given(image(LONGEST)[None])
    beams = subject.model.beam_search(PROMPT, max_new_tokens=6, beams=3, inputs=given)
    assert len({beam.ids for beam in beams}) == 3
    for beam in beams:
        scores = subject.logits([*PROMPT, *beam.ids], image(LONGEST)).double().log_softmax(-1)
        expected = [scores[len(PROMPT) - 1 + n, token] for n, token in enumerate(beam.ids)]
        np.testing.assert_allclose(beam.logprobs, expected, atol=1e-4)


def test_drafts_change_nothing(subject: Subject) -> None:
    prompt = [0, 0, 0, 0, 5, 6, 5, 6, 5, 6]
    given = subject.given(image(LONGEST)[None])
    found = subject.model.generate(prompt, max_new_tokens=20, draft=PromptLookup(), inputs=given)
    assert list(found.ids) == subject.loop(prompt, image(LONGEST), 20)
    assert found.speculation is not None
    assert found.speculation.proposed > 0


IDS = np.random.default_rng(5).integers(0, VOCAB, (3, 14))
IMAGES = [image(LONGEST), None, image(3, seed=1)]


@pytest.mark.parametrize("width", [1, 2, 3, 5, 14])
def test_chunks_equal_one_pass(subject: Subject, width: int) -> None:
    stream = subject.model.stream(batch=3, inputs=subject.given(IMAGES))
    assert stream.covered == (LONGEST, 0, 3)
    got = np.concatenate(
        [stream(IDS[:, start : start + width]) for start in range(0, 14, width)], 1
    )
    for row, own in enumerate(IMAGES):
        close(got[row], subject.logits(IDS[row], own))


def test_rows_that_read_at_their_own_pace_have_their_own_offsets(subject: Subject) -> None:
    stream, lengths = subject.model.stream(batch=3, inputs=subject.given(IMAGES)), np.zeros(3, int)
    for new in ([2, 0, 1], [1, 3, 1], [3, 1, 2], [1, 1, 1], [0, 2, 2]):
        width = max(new)
        chunk = np.stack([IDS[row, n : n + width] for row, n in enumerate(lengths)])
        for last_only in (True, False):
            reader = stream.fork() if last_only else stream
            got = reader(chunk, lengths=new, last_only=last_only)
            for row, (n, count) in enumerate(zip(lengths, new, strict=True)):
                expected = subject.logits(IDS[row, : n + count], IMAGES[row])[n:] if count else None
                if expected is not None:
                    close(got[row, :count], expected[-1:] if last_only else expected)
        lengths += new


def test_forks_and_chosen_rows_go_on_with_their_images(subject: Subject) -> None:
    stream = subject.model.stream(batch=3, inputs=subject.given(IMAGES))
    stream(IDS[:, :2], lengths=[2, 1, 2])
    chosen, fork = stream.select([2, 0, 2]), stream.fork()
    assert (chosen.covered, fork.covered) == ((3, LONGEST, 3), stream.covered)
    got = chosen(IDS[[2, 0, 2], 2:9])
    for place, row in enumerate((2, 0, 2)):
        close(got[place], subject.logits(IDS[row, :9], IMAGES[row])[2:])
    fork(IDS[:, 5:7])
    got = stream(IDS[[0], 2:9].repeat(3, 0))
    close(got[0], subject.logits(IDS[0, :9], IMAGES[0])[2:])


def test_a_stream_rewinds_into_the_image(subject: Subject) -> None:
    stream = subject.model.stream(inputs=subject.given([IMAGES[0]]))
    for start, stop in ((0, 5), (2, 4), (0, 3), (1, 9)):
        stream.rewind(start)
        got = stream(IDS[:1, start:stop])
        close(got[0], subject.logits(IDS[0, :stop], IMAGES[0])[start:])


def test_a_saved_stream_goes_on_with_the_image_that_it_is_given_again(
    subject: Subject, tmp_path: Path
) -> None:
    given = subject.given(IMAGES)
    stream = subject.model.stream(batch=3, inputs=given)
    stream(IDS[:, :3], lengths=[3, 2, 1])
    stream.save(tmp_path / "stream")
    again = subject.model.restore(tmp_path / "stream", inputs=given)
    assert again.covered == stream.covered
    chunk = np.stack([IDS[row, n : n + 6] for row, n in enumerate((3, 2, 1))])
    np.testing.assert_array_equal(again(chunk), stream(chunk))
    with pytest.raises(ValueError, match="has 2 rows, expected 3, or one that all share"):
        subject.model.restore(tmp_path / "stream", inputs=subject.given(IMAGES[:2]))
    bare = subject.model.restore(tmp_path / "stream")
    with pytest.raises(ValueError, match="missing: image: float32"):
        bare(chunk)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the steps that were taken the short way."""
    found: list[int] = []
    run = RepeatedStep.run

    def counted(self: RepeatedStep, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        found.append(1)
        return run(self, inputs)

    monkeypatch.setattr(RepeatedStep, "run", counted)
    return found


def test_steps_with_what_stays_are_short(tmp_path: Path, taken: list[int]) -> None:
    torch.manual_seed(2)
    module = Labelled().eval()
    example = (torch.randint(0, VOCAB, (2, 6)), torch.tensor([1, 4]))
    axes = [{0: "batch", 1: "seq"}, {0: "batch"}]
    model = quick_export(module, tmp_path / "m.onnx", example=example, axes=axes, cache=True)
    stream = model.stream(batch=3, inputs={"label": [5, 2, 7]}).select([2, 0])
    got = [stream(IDS[:2, place : place + 1]) for place in range(14)]
    with torch.no_grad():
        expected = module(torch.from_numpy(IDS[:2]), torch.tensor([7, 5]))
    close(np.concatenate(got, 1), expected)
    assert len(taken) == 13


def test_steps_are_short_once_the_image_is_read(subject: Subject, taken: list[int]) -> None:
    stream = subject.model.stream(inputs=subject.given([IMAGES[0]]))
    got = [stream(IDS[:1, place : place + 1])[0, 0] for place in range(14)]
    close(np.stack(got), subject.logits(IDS[0], IMAGES[0]))
    is_shared = all(pair.shared for pair in subject.model.contract.cache)
    # Of the steps behind the image, the first one binds what the others are like.
    assert len(taken) == (14 - LONGEST - 1 if is_shared else 0)
    if is_shared:
        stream.rewind(1)
        got = [stream(IDS[:1, place : place + 1])[0, 0] for place in range(1, 14)]
        close(np.stack(got), subject.logits(IDS[0], IMAGES[0])[1:])


def test_a_conversation_has_an_image_at_its_first_positions(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    pytest.importorskip("jinja2", reason="chats need the extra `text`")
    language.write_tokenizer(tmp_path)
    subject = make(Speaking, tmp_path)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    options = {
        "template": template,
        "inputs": {"image": image(LONGEST)[None]},
        "max_new_tokens": 3,
        "sampling": Sampling(),
    }

    def expected(messages: Sequence[Any]) -> list[int]:
        tokenizer = subject.model.tokenizer
        assert tokenizer is not None
        text = "".join(message["content"] for message in messages)
        prompt = tokenizer.encode(text, add_special_tokens=False)
        return subject.loop(prompt, image(LONGEST), 3)

    said = [{"role": "user", "content": "name age"}]
    assert list(subject.model.chat(said, **options).ids) == expected(said)
    talk = Chat(subject.model, **options)
    for text in ("name age", "x "):
        reply = talk.send(text)
        assert list(reply.ids) == expected(talk.messages[:-1])
    with pytest.raises(ValueError, match=r"the prompt has . positions, .* for the first 4"):
        subject.model.chat([{"role": "user", "content": "x"}], **options)


def test_the_command_line_takes_a_file_of_them(
    subject: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ids", ",".join(map(str, PROMPT)), "--max-new-tokens", "6", "--json"]
    for name, array in subject.given(image(LONGEST)[None]).items():
        np.save(tmp_path / f"{name}.npy", array)
        arguments += ["--input", f"{name}={tmp_path / name}.npy"]
    assert main(["generate", str(subject.path), *arguments]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ids"] == subject.loop(PROMPT, image(LONGEST), 6)


def test_a_prompt_is_as_long_as_its_image(subject: Subject) -> None:
    with pytest.raises(ValueError, match=r"the prompt has 3 positions, .* for the first 4; an id"):
        subject.model.generate(PROMPT[:3], inputs=subject.given(image(4)[None]))
    with pytest.raises(ValueError, match=r"prompt 1 has 2 positions, .* for the first 4"):
        subject.model.generate_batch([PROMPT, [1, 2]], inputs=subject.given(image(4)[None]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": image(4)[None, :, :3]}, r"'image' has shape .*: axis 2 must be 5, got 3"),
        ({"image": image(4).astype(np.float64)[None]}, "'image' has dtype float64, expected float"),
        ({"image": image(4)}, r"'image' has rank 2, shape \(4, 5\); expected rank 3"),
        ({"image": np.zeros((3, 4, WIDTH), np.float32)}, "'image' has 3 rows, expected 1"),
        ({"picture": image(4)[None]}, "unknown input 'picture'; the inputs are ids, image"),
    ],
    ids=["width", "dtype", "rank", "rows", "name"],
)
def test_what_does_not_fit_is_refused(
    subject: Subject, changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        subject.model.generate(PROMPT, inputs={**subject.given(image(4)[None]), **changes})


def test_a_missing_image_is_named(subject: Subject) -> None:
    with pytest.raises(ValueError, match=r"give the others as inputs=\{'image': \.\.\."):
        subject.model.generate(PROMPT)


def test_prefixes_are_not_kept_without_their_image(subject: Subject) -> None:
    with pytest.raises(ValueError, match="one input of ids"):
        PrefixCache(subject.model, capacity_positions=64)


def test_calls_of_a_stream_are_given_the_rest_alone(subject: Subject) -> None:
    stream = subject.model.stream(inputs=subject.given([IMAGES[0]]))
    with pytest.raises(ValueError, match="'image' was given when the stream was started"):
        stream(IDS[:1, :3], image=image(3)[None])
    with pytest.raises(ValueError, match=r"at most 1: ids .beside what the stream was"):
        stream(IDS[:1, :3], image(3)[None])
    with pytest.raises(ValueError, match=r"got 1 of 2 inputs|got 2 of 3 inputs"):
        stream.run()
    with pytest.raises(ValueError, match="'ids' has rank 1"):
        stream(IDS[0, :3])
    huge = np.broadcast_to(np.int64(0), (1, 1 << 40))
    with pytest.raises(ValueError, match=f"the model accepts at most {PLACES}"):
        stream(huge)
    close(stream(IDS[:1, :6])[0], subject.logits(IDS[0, :6], IMAGES[0]))
