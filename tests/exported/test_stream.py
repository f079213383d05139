"""Feeding exported models chunk by chunk gives what one pass of PyTorch gives."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from causal_onnx.models import (
    AttentionConfig,
    CausalMechanismV1,
    DecoderConfig,
    DecoderLM,
    tiny_llama_config,
)
from causal_onnx.runtime import ArtifactError, Model, load
from causal_onnx.runtime.session.device import Device
from causal_onnx.runtime.session.device_memory import DeviceMemory
from causal_onnx.runtime.session.runner import Runner
from causal_onnx.runtime.stream.kv_cache import KVCache
from tests.export.quick import quick_export

WINDOW = 4


def windowed_config() -> DecoderConfig:
    attention = AttentionConfig(
        embed_dim=16, num_heads=2, max_seq_len=40, rotary="half", window=WINDOW
    )
    return DecoderConfig(vocab_size=31, num_layers=2, attention=attention, mlp_dim=24)


FORMS = {
    "full": (tiny_llama_config(), "ort"),
    "window": (windowed_config(), "ort"),
    "one operator for all calls": (tiny_llama_config(), "ort-1.32"),
}


class Subject:
    def __init__(self, decoder: DecoderLM, model: Model) -> None:
        self.decoder, self.model = decoder, model

    def ids(self, batch: int, seq: int) -> np.ndarray:
        return self.decoder.example_input(batch, seq).numpy()

    def whole(self, ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.decoder(torch.from_numpy(ids)).numpy()

    @property
    def is_bounded(self) -> bool:
        return any(pair.bounded for pair in self.model.contract.cache)


class OnDevice(Runner):
    """Keeps caches as on a GPU, in `OrtValue`s that numpy does not see; they lie in host memory."""

    cache_device = property(lambda self: Device("cpu"))


@cache
def decoder_of(config: DecoderConfig) -> DecoderLM:
    """The same for both targets, so that it is captured once."""
    return DecoderLM(config, seed=0).eval()


@pytest.fixture(scope="module", params=list(FORMS))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DecoderLM, Path]:
    config, target = FORMS[request.param]
    path = tmp_path_factory.mktemp("stream") / "m.onnx"
    quick_export(decoder_of(config), path, cache=True, target=target)
    return decoder_of(config), path


@pytest.fixture(scope="module", params=[Runner, OnDevice])
def subject(request: pytest.FixtureRequest, exported: tuple[DecoderLM, Path]) -> Subject:
    decoder, path = exported
    model = load(path, threads=1)
    model.runner.__class__ = request.param
    return Subject(decoder, model)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("cuts", [[0, 23], [0, 1, 2, 3, 13, 23], [0, 7, 8, 9, 10, 23]])
def test_chunks_equal_one_pass(subject: Subject, cuts: list[int]) -> None:
    ids = subject.ids(2, cuts[-1])
    stream = subject.model.stream(batch=2)
    got = [stream(ids[:, start:stop]) for start, stop in pairwise(cuts)]
    close(np.concatenate(got, 1), subject.whole(ids))
    assert stream.lengths == (23, 23)


def test_rows_of_different_lengths_go_their_own_ways(subject: Subject) -> None:
    ids = subject.ids(3, 20)
    expected = subject.whole(ids)
    stream, lengths = subject.model.stream(batch=3), np.zeros(3, np.int64)
    for new in ([6, 2, 1], [1, 1, 1], [0, 5, 3], [2, 1, 2]):
        width = max(new)
        rows = [ids[row, n : n + width] for row, n in enumerate(lengths)]
        got = stream(np.stack(rows), lengths=new)
        for row, (n, count) in enumerate(zip(lengths, new, strict=True)):
            if count:
                close(got[row, :count], expected[row, n : n + count])
        lengths += new
    assert stream.lengths == tuple(lengths)


def test_a_row_does_not_depend_on_its_neighbours(subject: Subject) -> None:
    ids = subject.ids(3, 12)
    alone, together = subject.model.stream(), subject.model.stream(batch=3)
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        mine = alone(ids[1:2, start:stop])
        close(together(ids[:, start:stop])[1:2], mine)


def test_a_fork_goes_on_by_itself(subject: Subject) -> None:
    ids, others = subject.ids(1, 15), subject.ids(2, 15)[1:]
    stream = subject.model.stream()
    stream(ids[:, :8])
    fork = stream.fork()
    close(fork(others[:, 8:]), subject.whole(np.concatenate([ids[:, :8], others[:, 8:]], 1))[:, 8:])
    close(stream(ids[:, 8:]), subject.whole(ids)[:, 8:])


def test_rows_leave_come_twice_and_change_places(subject: Subject) -> None:
    ids = subject.ids(3, 14)
    expected = subject.whole(ids)
    stream = subject.model.stream(batch=3)
    stream(ids[:, :9], lengths=[9, 4, 2])
    chosen = stream.select([2, 1, 2])
    assert chosen.lengths == (2, 4, 2)
    got = chosen(np.stack([ids[2, 2:4], ids[1, 4:6], ids[2, 2:4]]))
    close(got, np.stack([expected[2, 2:4], expected[1, 4:6], expected[2, 2:4]]))


def test_rewinding_takes_positions_back(subject: Subject) -> None:
    ids = subject.ids(2, 10)
    stream = subject.model.stream(batch=2)
    stream(ids[:, :3], lengths=[3, 2])
    stream.rewind([1, 2])
    assert stream.lengths == (1, 2)
    got = stream(np.stack([ids[0, 1:4], ids[1, 2:5]]))
    expected = subject.whole(ids)
    close(got, np.stack([expected[0, 1:4], expected[1, 2:5]]))


def test_what_a_window_has_dropped_is_not_taken_back(subject: Subject) -> None:
    stream = subject.model.stream()
    stream(subject.ids(1, 9))
    if subject.is_bounded:
        with pytest.raises(ValueError, match=r"keeps the last 3 positions only.*fork\(\)"):
            stream.rewind(8)
        assert stream.lengths == (9,)
    else:
        stream.rewind(8)
        assert stream.lengths == (8,)
    with pytest.raises(ValueError, match="cannot rewind to 10: the rows have"):
        stream.rewind(10)


def test_a_saved_stream_is_taken_up_again(subject: Subject, tmp_path: Path) -> None:
    ids = subject.ids(2, 12)
    stream = subject.model.stream(batch=2)
    stream(ids[:, :7], lengths=[7, 3])
    stream.save(tmp_path / "state")
    restored = subject.model.restore(tmp_path / "state")
    assert restored.lengths == (7, 3)
    rows = np.stack([ids[0, 7:9], ids[1, 3:5]])
    np.testing.assert_array_equal(restored(rows), stream(rows))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_changed_byte_of_a_saved_stream_is_found(subject: Subject, tmp_path: Path) -> None:
    stream = subject.model.stream()
    stream(subject.ids(1, 3))
    stream.save(tmp_path / "state")
    data = bytearray((tmp_path / "state").read_bytes())
    for place, message in ((len(data) // 2, "damaged"), (0, "not a saved stream")):
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "state").write_bytes(changed)
        with pytest.raises(ArtifactError, match=message):
            subject.model.restore(tmp_path / "state")


def test_the_limit_holds_and_a_refused_chunk_changes_nothing(subject: Subject) -> None:
    limit = subject.model.contract.max_seq_len
    assert limit is not None
    ids = subject.ids(1, limit)
    stream = subject.model.stream()
    first = stream(ids[:, :-1])
    with pytest.raises(ValueError, match=f"the model accepts at most {limit}"):
        stream(ids[:, :2])
    with pytest.raises(ValueError, match="id"):
        stream(np.array([[-1]]))
    assert stream.lengths == (limit - 1,)
    close(np.concatenate([first, stream(ids[:, -1:])], 1), subject.whole(ids))


def test_the_cache_of_a_window_stays_as_small_as_the_window(subject: Subject) -> None:
    stream = subject.model.stream()
    stream(subject.ids(1, 16))
    slots = {past.shape[2] for past in stream._cache.held(stream._read).values()}
    assert slots == ({WINDOW - 1} if subject.is_bounded else {16})


def test_a_step_writes_into_the_buffers_and_leaves_them_where_they_are(subject: Subject) -> None:
    stream = subject.model.stream(batch=2, capacity=subject.model.contract.max_seq_len)
    ids = subject.ids(2, 12)
    got = [stream(ids[:, :5])]
    held = dict(stream._cache.buffers)
    assert bool(held) == subject.model.runner.writes_in_place
    got += [stream(ids[:, n : n + 1]) for n in range(5, 9)]  # in place
    got += [stream(ids[:, 9:])]  # two rows, several positions: copied into place
    assert all(stream._cache.buffers[name] is buffer for name, buffer in held.items())
    close(np.concatenate(got, 1), subject.whole(ids))


def test_one_operator_for_all_calls_writes_in_place_in_each(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, copied = KVCache.put, []
    monkeypatch.setattr(
        KVCache, "put", lambda self, found, n: copied.append(len(found)) or put(self, found, n)
    )
    stream, ids = subject.model.stream(batch=2, capacity=20), subject.ids(2, 20)
    for new in ([6, 2], [1, 0], [3, 5], [4, 4]):
        stream(ids[:, : max(new)], lengths=new)
    if subject.model.contract.shares_every_call:
        assert copied == [0, 0, 0, 0]
    else:
        assert copied[1:] == [len(subject.model.contract.cache)] * 3


def test_the_last_positions_alone(subject: Subject) -> None:
    stream, ids = subject.model.stream(batch=3), subject.ids(3, 12)
    assert subject.model.contract.last_only == "logits"
    whole = subject.whole(ids)
    got = stream(ids[:, :9], lengths=[9, 4, 1], last_only=True)
    close(got, whole[[0, 1, 2], [8, 3, 0]][:, None])
    more = np.stack([ids[0, 9:11], ids[1, 4:6], ids[2, 1:3]])
    close(stream(more, last_only=True), whole[[0, 1, 2], [10, 5, 2]][:, None])
    step = np.stack([ids[0, 11:], ids[1, 6:7], ids[2, 3:4]])
    close(stream(step), whole[[0, 1, 2], [11, 6, 3]][:, None])


def test_where_nothing_is_written_in_place_the_cache_is_kept_as_it_comes(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "writes_in_place", False)
    stream, ids = subject.model.stream(batch=2), subject.ids(2, 12)
    got = [stream(ids[:, :5]), stream(ids[:, 5:6])]
    fork = stream.fork()
    got += [stream(ids[:, 6:])]
    close(np.concatenate(got, 1), subject.whole(ids))
    close(fork.select([1])(ids[1:, 6:]), subject.whole(ids)[1:, 6:])


def test_a_cache_on_a_device_is_not_copied_from_there(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    if subject.model.runner.cache_device is None:
        pytest.skip("in host memory")
    stream, ids = subject.model.stream(batch=2), subject.ids(2, 20)
    got = [stream(ids[:, :5])]
    kept = [*stream._cache.buffers.values(), *stream._cache.feeds(stream._read, {}).values()]
    assert len(kept) == 4
    assert all(isinstance(one, DeviceMemory) for one in kept)
    with monkeypatch.context() as patch:
        patch.setattr(DeviceMemory, "read", lambda self: pytest.fail("copied"))
        got += [stream(ids[:, n : n + 1]) for n in range(5, 18)]
        held = DeviceMemory.of(np.zeros(3), Device("cpu"))
        with pytest.raises(pytest.fail.Exception, match="copied"):
            held.write((slice(0, 1),), np.ones(1))
    got.append(stream(ids[:, 18:]))
    close(np.concatenate(got, 1), subject.whole(ids))


def test_buffers_grow_and_a_capacity_is_a_limit(subject: Subject) -> None:
    stream = subject.model.stream(capacity=4)
    ids = subject.ids(1, 9)
    first = stream(ids[:, :3])
    with pytest.raises(ValueError, match="the stream has room for at most 4"):
        stream(ids[:, 3:5])
    close(np.concatenate([first, stream(ids[:, 3:4])], 1), subject.whole(ids[:, :4]))
    for capacity in (0, -1, True, 2.0, 10**6):
        with pytest.raises(ValueError, match="capacity must be a positive number"):
            subject.model.stream(capacity=capacity)


def test_inputs_that_do_not_fit_are_refused(subject: Subject) -> None:
    stream = subject.model.stream(batch=2)
    for chunk, lengths, message in (
        (np.zeros((3, 2), np.int64), None, "has a batch of 3, but the stream was started with"),
        (np.zeros((2, 2), np.int64), [1], "one number for each of the 2 rows"),
        (np.zeros((2, 2), np.int64), [1, 3], r"lengths must lie in \[0, 2\], got 1, 3"),
        (np.zeros((2, 2), np.float32), None, "int64"),
    ):
        with pytest.raises(ValueError, match=message):
            stream(chunk, lengths=lengths)
    with pytest.raises(ValueError, match="unknown input 'attention_mask'"):
        stream.run(attention_mask=np.ones((2, 2), np.int64))
    with pytest.raises(ValueError, match="batch must be a positive integer, got 0"):
        subject.model.stream(batch=0)
    with pytest.raises(ValueError, match="rows are 0 to 1, got 2"):
        stream.select([2])


def test_features_stream_with_and_without_a_batch_axis(tmp_path: Path) -> None:
    module = CausalMechanismV1(dim_in=8, dim_out=6, context_length=16).eval()
    x = torch.randn(1, 9, 8)
    stream = quick_export(module, tmp_path / "m.onnx", cache=True).stream()
    got = [stream(x[0, :4].numpy()), stream(x[0, 4:].numpy())]
    close(np.concatenate(got), module(x)[0].detach().numpy())


def test_a_model_without_a_cache_cannot_be_fed_in_chunks(tmp_path: Path) -> None:
    module = CausalMechanismV1(dim_in=8, dim_out=6, context_length=16)
    model = quick_export(module, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="export it with cache=True"):
        model.stream()


def test_long_chunks_of_a_window_go_block_by_block(tmp_path: Path) -> None:
    attention = AttentionConfig(embed_dim=16, num_heads=2, max_seq_len=640, window=70)
    config = DecoderConfig(vocab_size=31, num_layers=2, attention=attention, mlp_dim=24)
    decoder = DecoderLM(config, seed=0).eval()
    model = quick_export(decoder, tmp_path / "m.onnx", cache=True)
    bodies = [node.op_type for node in ir.load(tmp_path / "m.onnx").graph.all_nodes()]
    assert bodies.count("Loop") == 2
    ids = decoder.example_input(2, 640).numpy()
    stream = model.stream(batch=2)
    got = [stream(ids[:, a:b]) for a, b in pairwise([0, 300, 301, 640])]
    with torch.no_grad():
        close(np.concatenate(got, 1), decoder(torch.from_numpy(ids)).numpy())
