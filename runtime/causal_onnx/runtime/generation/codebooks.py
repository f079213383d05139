"""Several codebooks: where a model takes the ids of each, and where it gives their logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import Contract, TensorSpec

    Array = npt.NDArray[Any]

__all__ = ["Codebooks", "count_codebooks", "find_codebooks", "has_codebooks", "signature"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Codebooks:
    """The codebooks of a model, in one layout whatever its own is: (batch, seq, codebooks)."""

    count: int
    inputs: tuple[TensorSpec, ...]
    """One with an axis of codebooks, or one (batch, seq) for each."""
    outputs: tuple[TensorSpec, ...]
    """One with an axis of codebooks, which stands before that of the logits, or one
    (batch, seq, vocab) for each, in the order of the codebooks."""

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """How many logits each codebook has."""
        sizes = [_sizes(spec)[-1] for spec in self.outputs]
        return tuple(sizes * (self.count // len(sizes)))

    def arrays(self, ids: Array) -> tuple[Array, ...]:
        """The model's inputs, in their order, from ids (batch, seq, codebooks)."""
        if len(self.inputs) > 1:
            return tuple(ids[:, :, index] for index in range(self.count))
        spec = self.inputs[0]
        order = [("batch", "seq").index(a) if isinstance(a, str) else 2 for a in spec.axes]
        return (np.ascontiguousarray(ids.transpose(order)),)

    def logits(self, results: Mapping[str, Array]) -> Array:
        """Logits (batch, seq, codebooks, vocab), from the model's outputs.

        Where codebooks have different numbers of ids, what a smaller one lacks is -inf.
        """
        if len(self.outputs) == 1:
            spec = self.outputs[0]
            fixed = [at for at, axis in enumerate(spec.axes) if isinstance(axis, int)]
            return results[spec.name].transpose(
                spec.axes.index("batch"), spec.axes.index("seq"), *fixed
            )
        each, sizes = [results[spec.name] for spec in self.outputs], self.vocab_sizes
        found = np.full((*each[0].shape[:2], self.count, max(sizes)), -np.inf, each[0].dtype)
        for index, (array, size) in enumerate(zip(each, sizes, strict=True)):
            found[:, :, index, :size] = array
        return found

    def scores(self, logits: Array, ids: Array) -> Iterator[Array]:
        """What the ids of one position are chosen by, codebook after codebook: (batch, vocab).

        Args:
            logits: What `logits` returned, at one position of each row: (batch, codebooks, vocab).
            ids: (batch, codebooks), where whoever chooses an id writes it before the next codebook.
        """
        del ids  # those of one position do not depend on each other here
        for index, size in enumerate(self.vocab_sizes):
            yield logits[:, index, :size]


def find_codebooks(contract: Contract) -> Codebooks:
    """The codebooks of a model with a cache, from the shapes that its contract names.

    Ids are one input whose axes are "batch", "seq" and the codebooks, in any order, or several
    (batch, seq). Logits are one output with these axes and, last, the vocabulary, or an output
    (batch, seq, vocab) for each codebook, in the same order. Other outputs may stand beside those.

    Raises:
        ValueError: There are none, or more than one output could be theirs.
    """
    own = contract.without_cache()
    inputs, outputs, count = own.inputs, own.outputs, count_codebooks(contract)
    if not contract.cache or count is None:
        raise ValueError(_refusal(contract))
    one = [spec for spec in outputs if len(_sizes(spec)) == 2 and _sizes(spec)[0] == count]
    one = [spec for spec in one if spec.name == "logits"] or one
    each = [spec for spec in outputs if spec.axes[:2] == ("batch", "seq") and len(spec.axes) == 3]
    each = [spec for spec in each if isinstance(spec.axes[2], int)]
    found = one or each
    if len(found) != (1 if one else count):
        raise ValueError(_refusal(contract))
    books = Codebooks(count=count, inputs=tuple(inputs), outputs=tuple(found))
    for index, size in enumerate(books.vocab_sizes):
        spec = inputs[index if len(inputs) > 1 else 0]
        # Two inputs and two outputs alone are no codebooks: they may be segments and features.
        if len(inputs) > 1 and not size <= (spec.vocab_size or 0):
            raise ValueError(
                f"codebook {index} would take the ids of {spec.describe()} from {size} logits, "
                "more than it has ids; export the module with one input of all codebooks "
                "(batch, codebooks, seq), or with inputs and outputs in the same order"
            )
    return books


def has_codebooks(contract: Contract) -> bool:
    """Whether `find_codebooks` finds any."""
    try:
        find_codebooks(contract)
    except ValueError:
        return False
    return True


def count_codebooks(contract: Contract) -> int | None:
    """How many codebooks the inputs of ids have; None: they are no such inputs."""
    inputs: Sequence[TensorSpec] = contract.without_cache().inputs
    if not all("int" in spec.dtype for spec in inputs):
        return None
    if len(inputs) == 1:
        sizes = _sizes(inputs[0])
        return sizes[0] if len(sizes) == 1 else None
    return len(inputs) if all(spec.axes == ("batch", "seq") for spec in inputs) else None


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    """The fixed axes of a tensor that besides has batch and seq, and nothing else."""
    fixed = tuple(axis for axis in spec.axes if isinstance(axis, int))
    is_whole = {"batch", "seq"} <= set(spec.axes) and len(spec.axes) == len(fixed) + 2
    return fixed if is_whole and (len(fixed) < 2 or spec.axes[-1] == fixed[-1]) else ()


def signature(contract: Contract) -> str:
    """What a model takes and returns beside its cache, and whether it has one."""
    own = contract.without_cache()
    return (
        f"{', '.join(spec.describe() for spec in own.inputs)} -> "
        f"{', '.join(spec.describe() for spec in own.outputs)}"
        + ("" if contract.cache else ", without a cache")
    )


def _refusal(contract: Contract) -> str:
    return (
        "generating codes needs a model with several codebooks, exported with cache=True: ids "
        "(batch, codebooks, seq) or (batch, seq, codebooks) in, logits with the same axes and "
        "(..., vocab) out, or an input (batch, seq) and an output (batch, seq, vocab) for each; "
        f"this one is {signature(contract)}; if a second decoder chooses the codebooks of a frame, "
        "give it as depth=..."
    )
