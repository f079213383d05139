"""A second, small decoder that chooses the codebooks of one frame, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from causal_onnx.runtime.generation.codebooks import Codebooks, count_codebooks, signature
from causal_onnx.runtime.generation.prompt import can_rewind
from causal_onnx.runtime.request.whole_numbers import whole_number

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import Contract, TensorSpec
    from causal_onnx.runtime.generation.language_model import LanguageModel
    from causal_onnx.runtime.stream.stream import Stream

    Array = npt.NDArray[Any]

__all__ = ["DepthCodebooks", "DepthDecoder", "check_depth", "find_depth_codebooks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthDecoder:
    """Let a second decoder choose the codebooks of each position, along its own sequence.

    Its first position reads the hidden state of the main model, and each later one the id of the
    codebook before. Sources: Lee et al. 2022 (RQ-Transformer), https://arxiv.org/abs/2203.01941,
    section 3.2; Défossez et al. 2024 (Moshi), https://arxiv.org/abs/2410.00037, section 3.4.
    """

    model: LanguageModel
    """Exported with cache=True: ids (batch, seq) and the hidden state in, and out logits
    (batch, seq, vocab). The hidden state is (batch, width) or (batch, 1, width) where each position
    reads it, or (batch, seq, width), which holds it at the first position and zeros behind."""
    first_id: int | None = 0
    """The id at the first position, before any codebook; position k then scores codebook k. None:
    the first codebook's own, which the main model scores; position k then scores codebook k + 1, as
    in Moshi."""

    def __post_init__(self) -> None:
        if not hasattr(self.model, "contract"):
            raise TypeError(f"model must be a loaded model, such as load(path), got {self.model!r}")
        if self.first_id is not None:
            whole_number("first_id", self.first_id, least=0, wanted="an id of at least 0, or None")


class _Reader:
    """Reads the frames of a depth decoder, each from the beginning of its stream."""

    def __init__(self, decoder: DepthDecoder, ids: TensorSpec, hidden: TensorSpec, places: int):
        self._model, self._places = decoder.model, places
        self._order = [spec.name for spec in decoder.model.contract.without_cache().inputs]
        self._ids, self._hidden = ids, hidden
        self._can_rewind = can_rewind(decoder.model)
        self._stream: Stream | None = None

    def start(self, batch: int) -> Stream:
        """A stream that has read nothing."""
        stream = self._stream
        if stream is None or len(stream.lengths) != batch or not self._can_rewind:
            # Rows that have ended leave the batch.
            stream = self._stream = self._model.stream(batch=batch, capacity=self._places)
        stream.rewind(0)
        return stream

    def read(self, stream: Stream, ids: Array, state: Array) -> Mapping[str, Array]:
        """Read ids (batch, seq) after hidden states (batch, width): the outputs at the last."""
        spec = self._hidden
        state = state.astype(spec.host_dtype, copy=False)
        if "seq" in spec.axes:
            given = np.zeros((*ids.shape, state.shape[-1]), state.dtype)
            if not stream.lengths[0]:
                given[:, 0] = state
        else:
            given = state[:, None] if len(spec.axes) == 3 else state
        found = {
            self._ids.name: np.ascontiguousarray(ids, self._ids.dtype),
            spec.name: np.ascontiguousarray(given),
        }
        return stream.run(*(found[name] for name in self._order), last_only=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthCodebooks(Codebooks):
    """The codebooks of a model and of a depth decoder, which scores all of them or all but the
    first; `outputs` is the first one's, if the model scores it."""

    state: TensorSpec
    """The model's output (batch, seq, width) that is the hidden state."""
    decoder: DepthDecoder
    reader: _Reader
    ids: TensorSpec
    """The input of the depth decoder."""
    found: TensorSpec
    """The logits of the depth decoder."""

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """How many logits each codebook has."""
        first = (int(spec.axes[-1]) for spec in self.outputs)
        return (*first, *[int(self.found.axes[-1])] * (self.count - len(self.outputs)))

    def logits(self, results: Mapping[str, Array]) -> Array:
        """The logits of the first codebook, if there are any, and the hidden state behind them:
        (batch, seq, vocab + width)."""
        parts = [results[spec.name] for spec in (*self.outputs, self.state)]
        return np.concatenate(parts, axis=-1)

    def scores(self, logits: Array, ids: Array) -> Iterator[Array]:
        """What the ids of one position are chosen by, codebook after codebook: (batch, vocab).

        Args:
            logits: What `logits` returned, at one position of each row: (batch, vocab + width).
            ids: (batch, codebooks), where whoever chooses an id writes it before the next codebook.
        """
        width = int(self.state.axes[-1])
        state, first = logits[:, -width:], self.decoder.first_id
        stream = self.reader.start(len(ids))
        unread = [] if first is None else [np.full(len(ids), first, np.int64)]
        for book in range(self.count):
            if book:
                unread.append(ids[:, book - 1])
            if book < len(self.outputs):
                yield logits[:, :-width]
                continue
            results = self.reader.read(stream, np.stack(unread, axis=1), state)
            unread = []
            yield results[self.found.name][:, -1]

    def check_fill(self, fill: Sequence[int]) -> None:
        """Raise `ValueError` where the depth decoder cannot read what delays leave in a place."""
        size = self.ids.vocab_size
        for book, filler in enumerate(fill[:-1]):  # nothing is read after the last
            if size is not None and filler >= size:
                raise ValueError(
                    f"delays leave the id {filler} (fill) in places of codebook {book}, and the "
                    f"depth decoder reads {self.ids.describe()}; export one whose ids include it, "
                    "or give another fill=..."
                )


def check_depth(depth: DepthDecoder | LanguageModel) -> DepthDecoder:
    """The settings that `depth` stands for.

    Raises:
        TypeError: It is no model.
    """
    if isinstance(depth, DepthDecoder):
        return depth
    if not hasattr(depth, "contract"):
        raise TypeError(
            f"depth must be a loaded model, such as load(path), a DepthDecoder, or None, got "
            f"{depth!r}"
        )
    return DepthDecoder(model=depth)


def find_depth_codebooks(contract: Contract, decoder: DepthDecoder) -> DepthCodebooks:
    """The codebooks of a model with a depth decoder, from the shapes that both contracts name.

    Args:
        contract: Of the main model: ids of several codebooks in, and out a hidden state
            (batch, seq, width) and, if it scores the first codebook, `logits` (batch, seq, vocab).
        decoder: Its float input is as wide as the hidden state.

    Raises:
        ValueError: One of the two has no such inputs and outputs or no cache, more than one tensor
            could be meant, or the ids of one do not fit the other.
    """
    count = count_codebooks(contract)
    if count is None or not contract.cache:
        raise ValueError(
            "generating codes with a depth decoder needs a main model with several codebooks, "
            "exported with cache=True: ids (batch, codebooks, seq) or (batch, seq, codebooks), or "
            f"an input (batch, seq) for each; this one is {signature(contract)}"
        )
    ids, hidden, found = _depth_specs(decoder.model.contract)
    width = int(hidden.axes[-1])
    logits, state = _main_specs(contract, hidden, width)
    if logits is None and decoder.first_id is None:
        raise ValueError(
            "first_id=None puts the first codebook's id at the depth decoder's first position, and "
            "the main model has no output 'logits' to choose it by; give the id that stands there, "
            f"first_id=0, or return {{'logits': ..., {state.name!r}: ...}} in the exported module; "
            f"it is {signature(contract)}"
        )
    places = count - (decoder.first_id is None)
    limit = decoder.model.contract.max_seq_len
    # The last codebook is chosen and not read.
    if limit is not None and places > limit:
        raise ValueError(
            f"the depth decoder takes at most {limit} positions, and a frame of {count} codebooks "
            f"needs {places}; export it with max_seq_len={places} or more"
            + ("" if places > limit + 1 or logits is None or decoder.first_id is None else _BESIDE)
        )
    books = DepthCodebooks(
        count=count,
        inputs=contract.without_cache().inputs,
        outputs=() if logits is None else (logits,),
        state=state,
        decoder=decoder,
        reader=_Reader(decoder, ids, hidden, places),
        ids=ids,
        found=found,
    )
    _check_ids(books)
    return books


_BESIDE = (
    ", or, if the first codebook's id stands at its first position beside the hidden state, give "
    "depth=DepthDecoder(model=..., first_id=None)"
)


def _depth_specs(contract: Contract) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """The ids, the hidden state and the logits of a depth decoder."""
    own = contract.without_cache()
    ids = [spec for spec in own.inputs if "int" in spec.dtype and spec.axes == ("batch", "seq")]
    hidden = [spec for spec in own.inputs if "float" in spec.dtype and _is_state(spec)]
    found = [spec for spec in own.outputs if _is_wide(spec)]
    found = [spec for spec in found if spec.name == "logits"] or found
    is_whole = len(ids) == len(hidden) == len(found) == 1 and len(own.inputs) == 2
    if not is_whole or not contract.cache:
        raise ValueError(
            "depth must be a model exported with cache=True that takes ids (batch, seq) and a "
            "hidden state (batch, width), (batch, 1, width) or (batch, seq, width), and nothing "
            "else, and returns logits (batch, seq, vocab), as its only output of such a shape or "
            f"under the name 'logits'; this one is {signature(contract)}"
        )
    return ids[0], hidden[0], found[0]


def _main_specs(
    contract: Contract, hidden: TensorSpec, width: int
) -> tuple[TensorSpec | None, TensorSpec]:
    """The first codebook's logits, if there are any, and the hidden state of a main model."""
    outputs = contract.without_cache().outputs
    logits = next((spec for spec in outputs if spec.name == "logits"), None)
    if logits is not None and not _is_wide(logits):
        _refuse_main(
            contract,
            f"'logits' must be those of the first codebook, (batch, seq, vocab), or left out: a "
            f"depth decoder scores the others. It is {logits.describe()}; if the model scores all "
            "of its codebooks, leave depth= out",
        )
    others = [spec for spec in outputs if spec is not logits]
    fitting = [spec for spec in others if _is_wide(spec) and spec.axes[-1] == width]
    if len(fitting) > 1:
        fitting = [spec for spec in fitting if spec.name == hidden.name]
    if len(fitting) != 1:
        _refuse_main(
            contract,
            f"the depth decoder reads {hidden.describe()}, so one output of the main model must be "
            f"the hidden state (batch, seq, {width}); if several have this shape, the one of the "
            f"same name, {hidden.name!r}, is taken",
        )
    if logits is None and len(others) > 1:
        names = ", ".join(repr(spec.name) for spec in others if spec is not fitting[0])
        _refuse_main(
            contract,
            f"it cannot be seen whether {names} scores the first codebook: return its logits under "
            "the name 'logits', or the hidden state alone where the depth decoder scores all",
        )
    return logits, fitting[0]


def _refuse_main(contract: Contract, why: str) -> NoReturn:
    raise ValueError(f"{why}; the main model is {signature(contract)}")


def _check_ids(books: DepthCodebooks) -> None:
    """Raise `ValueError` where an id may be chosen that cannot be read."""
    first, ids = books.decoder.first_id, books.ids
    if first is not None and ids.vocab_size is not None and first >= ids.vocab_size:
        raise ValueError(
            f"first_id must be an id of the depth decoder ({ids.describe()}), got {first}"
        )
    for index, size in enumerate(books.vocab_sizes):
        own = books.inputs[index if len(books.inputs) > 1 else 0]
        readers = (own, ids) if index < books.count - 1 else (own,)
        for spec in readers:
            if spec.vocab_size is not None and size > spec.vocab_size:
                raise ValueError(
                    f"codebook {index} is chosen among {size} logits, and {spec.describe()} would "
                    "read it; export modules whose inputs have an id for each logit"
                )


def _is_wide(spec: TensorSpec) -> bool:
    """Whether an output is (batch, seq, size)."""
    is_sized = len(spec.axes) == 3 and isinstance(spec.axes[2], int)
    return is_sized and spec.axes[:2] == ("batch", "seq") and "float" in spec.dtype


def _is_state(spec: TensorSpec) -> bool:
    """Whether an input may be the hidden state of one position of the main model."""
    is_sized = bool(spec.axes) and isinstance(spec.axes[-1], int)
    return is_sized and spec.axes[:-1] in (("batch",), ("batch", 1), ("batch", "seq"))
