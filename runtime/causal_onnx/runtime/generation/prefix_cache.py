"""Keep what a model has read of prompts, for prompts that begin alike."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from causal_onnx.runtime.generation.plan import check_model
from causal_onnx.runtime.generation.prompt import Prefill
from causal_onnx.runtime.request.whole_numbers import whole_number
from causal_onnx.runtime.stream import cache_blocks as blocks

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.generation.language_model import LanguageModel
    from causal_onnx.runtime.stream.stream import Stream

    Array = npt.NDArray[Any]

__all__ = ["PrefixCache", "PrefixStats"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixStats:
    """What a prefix cache has been good for, and what it holds."""

    prompts: int
    """That were read."""
    hits: int
    """Of them, those whose beginning was there."""
    positions_asked: int
    """Of all prompts."""
    positions_found: int
    """Of them, those that needed no prefill."""
    positions_held: int
    """A beginning that prompts share counts once."""
    bytes_held: int
    evicted: int
    """Positions that made way for others."""


@dataclass(eq=False, slots=True)
class _Node:
    """A block of positions after those of its parents."""

    key: tuple[str | int | None, ...]
    """The adapter that they were read with, and their ids."""
    parent: _Node | None
    block: blocks.Block
    children: dict[tuple[str | int | None, ...], _Node] = field(default_factory=dict)


class PrefixCache:
    """Keys and values of the beginnings of prompts, to be used by any number of calls.

    Prompts are kept in blocks of positions, as a tree: those that begin alike share the blocks of
    their common beginning. A prompt takes over all blocks that it begins with, and only the rest
    of it is read. Continuations are the same with and without, up to the rounding of logits.

        cache = PrefixCache(model, capacity_positions=100_000)
        model.generate(system + question, max_new_tokens=100, prefix_cache=cache)

    Where some of the model's attention sees a window only, prompts are read block by block, which
    is slower for the first of them. It may be used by several threads at once.
    """

    def __init__(self, model: LanguageModel, *, capacity_positions: int, block: int = 32) -> None:
        """Start empty.

        Args:
            model: A language model with a cache, as for `Model.tokens`.
            capacity_positions: The most positions to hold; beyond it those go that were not used
                for the longest time.
            block: Positions of a block: beginnings are shared in multiples of it.

        Raises:
            ValueError: The model is no language model with a cache, or a number does not fit.
        """
        check_model(model)
        capacity_positions = whole_number(
            "capacity_positions", capacity_positions, wanted="at least 1"
        )
        block = whole_number("block", block, wanted="at least 1")
        if capacity_positions < block:
            raise ValueError(
                f"capacity_positions ({capacity_positions}) must be at least block ({block})"
            )
        self.model: LanguageModel = model
        self._capacity, self._block = capacity_positions, block
        self._root = _Node((), None, {})
        # In the order of use. Whoever uses a node uses its parents after it, so that the first has
        # no children. Wherever an interrupt strikes, what is in the tree is in here too.
        self._nodes: OrderedDict[_Node, None] = OrderedDict()
        self._lock = threading.Lock()
        self._prompts = self._hits = self._asked = self._found = self._evicted = 0

    @property
    def stats(self) -> PrefixStats:
        """What it has been good for so far."""
        with self._lock:
            return PrefixStats(
                prompts=self._prompts,
                hits=self._hits,
                positions_asked=self._asked,
                positions_found=self._found,
                positions_held=len(self._nodes) * self._block,
                bytes_held=sum(_size(node.block) for node in self._nodes),
                evicted=self._evicted,
            )

    def clear(self) -> None:
        """Forget all prompts; the statistics stay."""
        with self._lock:
            self._root.children.clear()
            self._nodes.clear()

    def read(
        self, prompts: Sequence[Sequence[int]], stream: Stream | None = None
    ) -> tuple[Stream, Array]:
        """A stream that has read the prompts, and the logits (batch, vocab) after each.

        Args:
            prompts: One per row, each of at least one id.
            stream: What is to read them: a stream of the model that has read nothing, with the
                adapters of its rows. None: one without adapters.
        """
        model, size = self.model, self._block
        stream = stream or model.stream(batch=len(prompts))
        with self._lock:
            pairs = zip(prompts, stream.adapters, strict=True)
            paths = [self._walk(prompt, adapter) for prompt, adapter in pairs]
            paths = self._together(prompts, paths)
            self._prompts += len(prompts)
            self._hits += sum(bool(path) for path in paths)
            self._asked += sum(len(prompt) for prompt in prompts)
            self._found += sum(len(path) * size for path in paths)
        known = [[node.block for node in path] for path in paths]
        if any(paths):
            stream.take_over(*blocks.join(model.contract, known, size))
        has_window = blocks.has_window(model.contract)
        rest = [prompt[n:] for prompt, n in zip(prompts, stream.lengths, strict=True)]
        prefill = Prefill(stream, rest)
        # What a window has left behind is gone: it is copied at the end of each block.
        windows: list[list[blocks.Block]] = [[] for _ in prompts]
        while prefill.is_going:
            prefill.step(size if has_window else None)
            for row, prompt in enumerate(prompts):
                done = len(known[row]) + len(windows[row]) + 1
                if has_window and stream.lengths[row] == done * size <= len(prompt):
                    windows[row].append(blocks.windows(model.contract, stream, row))
        for row, prompt in enumerate(prompts):
            self.keep(prompt, stream, row=row, known=len(known[row]), windows=windows[row])
        return stream, prefill.logits

    def find(self, prompt: Sequence[int], *, adapter: str | None = None) -> list[blocks.Block]:
        """The blocks that a prompt begins with, for those who read the rest by themselves.

        `cache_blocks.join` makes of them what a stream takes over; at least one id is left to read.

        Args:
            prompt: Of at least one id.
            adapter: The name of the adapter that it is read with: keys and values depend on it.
        """
        with self._lock:
            path = self._walk(prompt, adapter)
            self._prompts += 1
            self._hits += bool(path)
            self._asked += len(prompt)
            self._found += len(path) * self._block
        return [node.block for node in path]

    def keep(
        self,
        prompt: Sequence[int],
        stream: Stream,
        *,
        row: int = 0,
        known: int = 0,
        windows: Sequence[blocks.Block] = (),
    ) -> None:
        """Keep the whole blocks of a prompt that a row of a stream has read.

        Args:
            prompt: The ids.
            stream: What has read them.
            row: Of the stream, whose adapter counts, too.
            known: How many blocks `find` gave.
            windows: `cache_blocks.windows` at the end of each block after those, where the model's
                cache has any.
        """
        with self._lock:
            self._insert(stream, row, prompt, windows, known)

    def _walk(self, prompt: Sequence[int], adapter: str | None) -> list[_Node]:
        """The blocks that a prompt begins with; at least one id is left to read."""
        path, node = [], self._root
        for start in range(0, len(prompt) - self._block, self._block):
            child = node.children.get(self._key(prompt, start, adapter))
            if child is None:
                break
            path.append(child)
            node = child
        self._use(path)
        return path

    def _together(
        self, prompts: Sequence[Sequence[int]], paths: list[list[_Node]]
    ) -> list[list[_Node]]:
        """Of the blocks of each prompt those with which all can be read in one batch."""
        limit, size = self.model.contract.max_seq_len, self._block
        lengths = [len(path) * size for path in paths]
        rest = max(len(prompt) - n for prompt, n in zip(prompts, lengths, strict=True))
        # The rests are padded to one another, and padding takes positions too.
        is_too_long = limit is not None and max(lengths) + rest > limit
        if self.model.contract.mask is None or is_too_long:
            fewest = min(len(path) for path in paths)
            return [path[:fewest] for path in paths]
        return paths

    def _insert(
        self,
        stream: Stream,
        row: int,
        prompt: Sequence[int],
        windows: Sequence[blocks.Block],
        first_window: int,
    ) -> None:
        """Keep the whole blocks of a prompt that a row has read."""
        path: list[_Node] = []
        node = self._root
        for index in range(len(prompt) // self._block):
            start = index * self._block
            key = self._key(prompt, start, stream.adapters[row])
            child = node.children.get(key)
            if child is None:
                if index < first_window:
                    return  # evicted meanwhile, by another thread
                if not self._make_room(path):
                    return
                block = dict(
                    blocks.cut(self.model.contract, stream, row, start, start + self._block)
                )
                if windows:
                    block |= windows[index - first_window]
                child = _Node(key, node, block)
                self._nodes[child] = None
                node.children[key] = child
            path.append(child)
            self._use(path)
            node = child

    def _make_room(self, kept: Sequence[_Node]) -> bool:
        """Evict what was not used for the longest time; whether there is room for a block."""
        while (len(self._nodes) + 1) * self._block > self._capacity:
            oldest = next(iter(self._nodes))
            if oldest in kept:
                return False
            parent = oldest.parent
            if parent is not None and parent.children.get(oldest.key) is oldest:
                del parent.children[oldest.key]
            del self._nodes[oldest]
            self._evicted += self._block
        return True

    def _use(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._nodes.move_to_end(node)

    def _key(
        self, prompt: Sequence[int], start: int, adapter: str | None
    ) -> tuple[str | int | None, ...]:
        return (adapter, *(int(token) for token in prompt[start : start + self._block]))


def _size(block: blocks.Block) -> int:
    return sum(array.nbytes for array in block.values())
