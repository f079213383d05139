"""Text in and out, with tokenizers made here."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError, Model, PromptLookup, Sampling, Tokenizer, load
from tests.runtime.artifacts import fixture
from tests.runtime.language import TEXTS, language_model, write_llama_tokenizer, write_tokenizer

pytest.importorskip("tokenizers", reason="text needs the extra `text`")

HOT = Sampling(temperature=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    shutil.copy(fixture("language"), folder / "model.onnx")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder / "model.onnx", threads=1)


def test_text_goes_in_as_its_ids_and_comes_out_as_that_of_its_ids(model: Model) -> None:
    tokenizer = model.tokenizer
    found = model.generate(TEXTS[0], max_new_tokens=30, sampling=HOT, seed=1)
    same = model.generate(tokenizer.encode(TEXTS[0]), max_new_tokens=30, sampling=HOT, seed=1)
    assert found == same
    assert found.text == tokenizer.decode(found.ids)


@pytest.mark.parametrize("seed", range(5))
def test_streamed_pieces_are_the_text_whatever_bytes_come(model: Model, seed: int) -> None:
    options = {"max_new_tokens": 60, "sampling": HOT, "seed": seed}
    pieces = [choice.text for choice in model.tokens("a", **options)]
    whole = model.generate("a", **options)
    assert "".join(pieces) == whole.text == model.tokenizer.decode(whole.ids)


def test_no_piece_ends_within_a_character(model: Model) -> None:
    """The ids of a text, forced one by one: every piece is made of characters of it."""
    text = "世界 😀👍🏽 naïve"
    ids = model.tokenizer.encode(text)
    assert len(ids) > len(text)
    stream = model.tokenizer.stream()
    pieces = [*(stream.push(token) for token in ids), stream.flush()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces.count("") > 5


def test_a_stop_text_ends_within_and_across_tokens(model: Model) -> None:
    decode = model.tokenizer.decode
    broken = [token for token in range(280) if "\ufffd" in decode([token])]
    sampling = Sampling(temperature=2.0, logit_bias=dict.fromkeys(broken, -np.inf))
    free = model.generate("a", max_new_tokens=40, sampling=sampling, seed=7)
    options = {"max_new_tokens": 40, "sampling": sampling, "seed": 7}
    for start, length in ((3, 1), (5, 4), (12, 7)):
        stop = free.text[start : start + length]
        found = model.generate("a", stop=stop, **options)
        assert found.text == free.text[: free.text.index(stop)]
        assert found.finish == "stop"
        assert found.ids == free.ids[: len(found.ids)]
        assert stop in decode(found.ids)
        assert stop not in decode(found.ids[:-1])
        pieces = model.tokens("a", stop=[stop, 999], **options)
        assert "".join(choice.text for choice in pieces) == found.text


def test_a_stop_text_that_never_comes_changes_nothing(model: Model) -> None:
    options = {"max_new_tokens": 40, "sampling": HOT, "seed": 7}
    free = model.generate("a", **options)
    almost = free.text[-3:] + "never"
    assert model.generate("a", stop=almost, **options) == free


def test_rows_of_a_batch_have_their_own_text(model: Model) -> None:
    options = {"max_new_tokens": 20, "sampling": HOT, "seed": 2}
    found = model.generate_batch(["ab", "cd"], **options)
    assert found[0] == model.generate("ab", **options)
    assert [row.text for row in found] == [model.tokenizer.decode(row.ids) for row in found]


def test_the_end_of_text_that_files_name_ends_it(tmp_path: Path) -> None:
    shutil.copy(fixture("language"), tmp_path / "model.onnx")
    write_tokenizer(tmp_path, end=True)
    model = load(tmp_path / "model.onnx", threads=1)
    assert model.tokenizer.end_ids == (1,)
    found = model.generate("a", max_new_tokens=9, sampling=Sampling(logit_bias={1: 99.0}))
    assert (found.ids, found.text, found.finish) == ((1,), "", "stop")
    never = Sampling(logit_bias={1: -np.inf})
    assert model.generate("a", max_new_tokens=9, sampling=never).finish == "length"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return language_model(tokenizer=write_llama_tokenizer(tmp_path_factory.mktemp("llama")))


def always(model: Model, word: str) -> Sampling:
    """Choose one token, which a word with a space before it is."""
    return Sampling(logit_bias={model.tokenizer.encode(word)[-1]: 1e9})


def test_a_prompt_and_its_continuation_are_one_text(llama: Model) -> None:
    options = {"max_new_tokens": 2, "sampling": always(llama, "was")}
    assert llama.generate("The dog", **options).text == " was was"
    assert [row.text for row in llama.generate_batch(["The", "dog"], **options)] == [" was was"] * 2
    assert [choice.text for choice in llama.tokens("The dog", **options)] == [" was", " was"]
    guessed = llama.generate("The dog was was", draft=PromptLookup(), **options)
    assert guessed.text == " was was"
    assert guessed.speculation is not None
    # Where no text comes before, the decoder drops a space at the beginning of all, and of this.
    assert llama.generate([1], **options).text == "was was"


def test_a_text_can_be_encoded_without_what_is_put_around_it(llama: Model) -> None:
    ids = llama.tokenizer.encode("<s>The dog</s>", add_special_tokens=False)
    assert llama.tokenizer.encode("The dog") == ids[:-1] == [1, *ids[1:-1]]


def test_a_beam_continues_the_text_of_its_prompt(llama: Model) -> None:
    prompt = llama.tokenizer.encode("The dog")
    best = llama.beam_search("The dog", max_new_tokens=6, beams=2)[0]
    texts = [llama.tokenizer.decode(ids) for ids in (prompt, [*prompt, *best.ids])]
    assert texts[0] + best.text == texts[1]


def test_a_stop_text_may_begin_with_the_space_at_the_joint(llama: Model) -> None:
    options = {"max_new_tokens": 4, "sampling": always(llama, "was")}
    found = llama.generate("The dog", stop=[" was"], **options)
    assert (found.text, found.finish, len(found.ids)) == ("", "stop", 1)
    assert llama.generate("The dog", stop=["dog was"], **options).finish == "length"


@pytest.mark.parametrize("seed", range(5))
def test_text_of_any_bytes_continues_that_of_its_prompt(llama: Model, seed: int) -> None:
    # A run of bytes that is broken later is the exception: see docs/generation.md.
    wide = dict.fromkeys(range(3 + 128, 3 + 256), -np.inf)
    sampling = Sampling(temperature=2.0, logit_bias=wide)
    found = llama.generate("The 世", max_new_tokens=50, sampling=sampling, seed=seed)
    stream = llama.tokenizer.stream(after=llama.tokenizer.encode("The 世"))
    pieces = [*(stream.push(token) for token in found.ids), stream.flush()]
    assert "".join(pieces) == found.text
    whole = llama.tokenizer.decode([*llama.tokenizer.encode("The 世"), *found.ids])
    assert "The 世" + found.text == whole


@pytest.mark.parametrize(
    ("file", "content", "ids"),
    [
        ("generation_config.json", '{"eos_token_id": [0, 1]}', (0, 1)),
        ("config.json", '{"eos_token_id": 1}', (1,)),
        ("tokenizer_config.json", '{"eos_token": "</s>"}', (1,)),
        ("tokenizer_config.json", '{"eos_token": {"content": "<s>"}}', (0,)),
        ("tokenizer_config.json", "{}", ()),
    ],
)
def test_ends_of_text_are_found(
    tmp_path: Path, file: str, content: str, ids: tuple[int, ...]
) -> None:
    path = write_tokenizer(tmp_path)
    (tmp_path / file).write_text(content)
    assert Tokenizer(path).end_ids == Tokenizer(tmp_path).end_ids == ids


def test_a_tokenizer_elsewhere_is_named_and_kept_in_a_pickle(folder: Path) -> None:
    model = language_model(tokenizer=folder)
    twin = pickle.loads(pickle.dumps(model))
    assert twin.tokenizer.encode("ab") == model.tokenizer.encode("ab")
    assert language_model().tokenizer is None


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no tokenizer .*tokenizer\.json"):
        language_model(tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is not a tokenizer"):
        language_model(tokenizer=tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"config\.json is not JSON"):
        language_model(tokenizer=tmp_path)


def test_without_the_extra_ids_work_and_text_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    model = load(folder / "model.onnx", threads=1)
    assert model.generate([1], max_new_tokens=2).text is None
    with pytest.raises(ImportError, match=r"text needs the package tokenizers: pip install .*text"):
        model.generate("a", max_new_tokens=2)


def hostile(place: Path, **parts: object) -> Path:
    """A tokenizer with other parts."""
    document = json.loads(write_tokenizer(place).read_text())
    document |= parts
    (place / "tokenizer.json").write_text(json.dumps(document))
    return place / "tokenizer.json"


SLOW = {"pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


def test_a_regular_expression_that_takes_too_many_steps_is_a_clear_error(tmp_path: Path) -> None:
    """Rust panics, which Python sees as a BaseException."""
    tokenizer = Tokenizer(hostile(tmp_path, pre_tokenizer={"type": "Split", **SLOW}))
    assert tokenizer.encode("b")
    with pytest.raises(ValueError, match=r"cannot encode a text of 41 characters: .*retry-limit"):
        tokenizer.encode("a" * 40 + "!")


def replacing(content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": content}


def test_a_short_text_cannot_become_long(tmp_path: Path) -> None:
    twice = {"type": "Sequence", "normalizers": [replacing("a" * 99)] * 2}
    with pytest.raises(ArtifactError, match="make a text 10000 times longer, expected up to 4096"):
        Tokenizer(hostile(tmp_path, normalizer=twice))
    ids = {"id": "Z", "ids": [1] * 99, "tokens": ["x"] * 99}
    piece = {"SpecialToken": {"id": "Z", "type_id": 0}}
    around = {"single": [piece] * 99, "pair": [], "special_tokens": {"Z": ids}}
    with pytest.raises(ArtifactError, match="make a text 9802 times longer"):
        Tokenizer(hostile(tmp_path, post_processor={"type": "TemplateProcessing", **around}))


def test_no_text_is_padded_or_cut(tmp_path: Path) -> None:
    """A stated length of 2^33 would end the process; a stride beyond the length panics."""
    padding = {
        "strategy": {"Fixed": 1 << 33},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}
    tokenizer = Tokenizer(hostile(tmp_path, padding=padding, truncation=cut))
    assert tokenizer.encode("abcdef") == Tokenizer(write_tokenizer(tmp_path)).encode("abcdef")


def test_an_id_beyond_any_vocabulary_is_refused(tmp_path: Path) -> None:
    model = json.loads(write_tokenizer(tmp_path).read_text())["model"]
    model["vocab"]["<q>"] = (1 << 32) - 1
    with pytest.raises(ArtifactError, match="has the id 4294967295, expected less than 4194304"):
        Tokenizer(hostile(tmp_path, model=model))


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"version": 5}', "", '{"normalizer":' * 5000, "\0" * 99],
    ids=["deep", "types", "empty", "deep objects", "zeros"],
)
def test_a_damaged_tokenizer_is_a_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is not a tokenizer: "):
        Tokenizer(tmp_path)


def test_a_tokenizer_larger_than_any_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("causal_onnx.runtime.text.tokenizer.MAX_TOKENIZER_BYTES", 1000)
    write_tokenizer(tmp_path)
    with pytest.raises(ArtifactError, match="larger than 1000 bytes"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("1e400", "is not JSON: the number 1e400 is not finite"),
        (str(2**70), r"is 1\.1805.*e\+21, expected an id"),
        ("-1", "eos_token_id in .* is -1, expected an id, or a list of ids, from 0 to 4194303"),
        ("true", "is True, expected an id"),
        ("2.0", r"is 2\.0, expected an id"),
        ('"</s>"', "is </s>, expected an id"),
        ("[1, null]", r"is \[1, None\], expected an id"),
        (str(2**31), "is 2147483648, expected an id"),
        ("[" * 3000 + "]" * 3000, "is not JSON: it is nested more than 64 deep"),
    ],
)
def test_an_end_of_text_that_is_no_id_is_refused(tmp_path: Path, stated: str, message: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {stated}}}')
    with pytest.raises(ArtifactError, match=message):
        Tokenizer(tmp_path)
