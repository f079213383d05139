"""What only running the module tells: its length limit, its batch axis, whether it is random."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from causal_onnx.export.errors import ExportError
from causal_onnx.export.outcome import Refusal, ask, handed_over
from causal_onnx.export.source.dry_run import DryRun, dry_run
from causal_onnx.export.source.inputs import FREE_SIZES, CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.export.torch_patches.user_code import user_line

__all__ = [
    "Beyond",
    "at_length",
    "find_fixed_seq",
    "find_free_limit",
    "find_max_seq_len",
    "refuse_random",
    "refuse_rigid",
    "refuse_unused_layers",
    "takes_unbatched",
    "with_batch",
]

LONGEST_PROBE = 8192
"""A module without a limit is promised to work, and asked of the graph's guards, up to here."""
LARGEST_LIMIT = 1 << 18
"""Numbers in a module beyond this are no length limits (and no dry run is made beyond it)."""
REAL_ELEMENTS, REAL_FLOPS = 70_000_000, 1e11
"""What a real run may cost where a dry one is not believed: 280 MB for one fp32 tensor, seconds."""
SHORT = 64
"""Up to here a real run is cheaper than a dry one."""
REAL_LENGTH = 2049
"""The longest real run of a module that cannot be run dry, whose cost is then unknown."""


def runs(source: Source, specs: Sequence[InputSpec], sizes: CallSizes) -> bool:
    """Whether the module accepts inputs of `sizes`."""
    return _failure(source, make_inputs(specs, sizes)) is None


def _failure(source: Source, inputs: Sequence[Tensor]) -> Exception | None:
    outcome = ask(source.run, inputs)
    return outcome.error if isinstance(outcome, Refusal) else None


def refuse_broken(source: Source, specs: Sequence[InputSpec]) -> None:
    """Run the caller's own example once.

    Raises:
        ExportError: The module does not accept it.
    """
    error = _failure(source, [spec.example for spec in specs])
    if error is not None:
        inputs = ", ".join(f"{s.name}: {s.example.dtype} {tuple(s.example.shape)}" for s in specs)
        raise ExportError(
            f"{type(source.module).__name__} does not accept the example ({inputs}): "
            f"{type(error).__name__}: {error}{_ids_wanted(source, specs)}"
        ) from error


def _ids_wanted(source: Source, specs: Sequence[InputSpec]) -> str:
    """What to say where the module takes whole numbers in the place of one of the inputs."""
    for index, spec in enumerate(specs):
        if not spec.example.is_floating_point() or spec.example.dim() > 2:
            continue
        examples = [other.example for other in specs]
        examples[index] = torch.zeros(spec.example.shape, dtype=torch.int64)
        if _failure(source.fresh(), examples) is None:
            shape = tuple(spec.example.shape)
            return (
                f". It takes integers as {spec.name}, such as ids: "
                f"example=torch.zeros({shape}, dtype=torch.int64)"
            )
    return ""


def refuse_rigid(source: Source, specs: Sequence[InputSpec]) -> None:
    """Check that the batch is free, and the length has no gaps below the example's.

    A module that takes one length only passes (`find_fixed_seq` says which).

    Raises:
        ExportError: Another batch size, or a shorter sequence, is refused.
    """
    module = type(source.module).__name__
    seq = _example_size(specs, "seq")
    assert seq is not None
    past = _example_size(specs, "past_seq") or 0
    batch = _example_size(specs, "batch")

    @functools.cache
    def answer(batch: int, seq: int) -> Sequence[torch.Size] | Refusal:
        sizes = CallSizes(batch=batch, seq=seq, past=past)
        given = ask(source.run, make_inputs(specs, sizes))
        return given if isinstance(given, Refusal) else [x.shape for x in given]

    def failure(batch: int, seq: int) -> Exception | None:
        given = answer(batch, seq)
        return given.error if isinstance(given, Refusal) else None

    def shapes(batch: int) -> Sequence[torch.Size]:
        given = answer(batch, seq)
        assert not isinstance(given, Refusal)
        return given

    if batch is not None and failure(batch, seq) is None:
        for other in (1, batch + 1, 2):
            error = failure(other, seq)
            if error is not None:
                remedy = "Take the batch size from the input: x.view(x.shape[0], ...)"
                if batch > 1 and failure(2 * batch, seq) is None:
                    remedy = (
                        f"It takes {2 * batch}, so that axis may hold the batch and another one, "
                        "such as codebooks: export it within a module whose input has the two "
                        "apart, and which joins them: x.flatten(0, 1)"
                    )
                raise ExportError(
                    f"{module} accepts a batch of {batch} but not of {other}: "
                    f"{type(error).__name__}: {error}. {remedy}"
                ) from error
            _refuse_fixed_batch(module, seq, (batch, shapes(batch)), (other, shapes(other)))
    some = batch or 1
    shorter = sorted({n for n in (*range(1, 9), seq // 2, seq - 2, seq - 1) if 0 < n < seq})
    works = {n: failure(some, n) for n in shorter}
    refused = [n for n, error in works.items() if error is not None]
    accepted = [n for n in shorter if n not in refused]
    if refused and not accepted:
        accepted = [n for n in (seq + 1, seq + 2, 2 * seq) if failure(some, n) is None]
    if refused and accepted:
        error = works[refused[-1]]
        raise ExportError(
            f"{module} accepts sequences of {_listed([*accepted, seq])} positions but not of "
            f"{_listed(refused)}: {type(error).__name__}: {error}. A file is called with every "
            "length from 1 to the maximum; pad inside forward and cut the result: "
            "y = core(F.pad(x, (0, 0, 0, -n % chunk)))[:, :n]"
        ) from error


def _refuse_fixed_batch(
    module: str,
    seq: int,
    one: tuple[int, Sequence[torch.Size]],
    another: tuple[int, Sequence[torch.Size]],
) -> None:
    """Compare the outputs' shapes at two batch sizes: `x.view(4, -1, width)` takes any batch."""
    (batch, here), (other, there) = one, another
    for a, b in zip(here, there, strict=False):
        moved = [(m, n) for m, n in zip(a, b, strict=False) if m != n]
        if len(a) != len(b) or any(pair != (batch, other) for pair in moved):
            times = a[0] // batch if len(moved) == 1 and a and a[0] % batch == 0 else 0
            if times > 1 and moved == [(times * batch, times * other)] and a[0] != b[0]:
                raise ExportError(
                    f"{module} joins the batch with another axis: an output has shape {tuple(a)} "
                    f"for a batch of {batch} and {tuple(b)} for one of {other}, both of length "
                    f"{seq}. Return the two apart: y.unflatten(0, (-1, {times}))"
                )
            raise ExportError(
                f"{module} has a fixed batch size: an output has shape {tuple(a)} for a batch of "
                f"{batch} and {tuple(b)} for one of {other}, both of length {seq}. Take it from "
                "the input: x.view(x.shape[0], ...)"
            )


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(str(n) for n in sorted(lengths))


def _example_size(specs: Sequence[InputSpec], label: str) -> int | None:
    sizes = [s.example.shape[axis] for s in specs for axis, name in s.axes.items() if name == label]
    return sizes[0] if sizes else None


def refuse_random(source: Source, specs: Sequence[InputSpec], sizes: CallSizes) -> None:
    """Run twice on one input and name the line that draws random numbers.

    Raises:
        ExportError: The two results differ, so no file can equal the module: it is random in eval
            mode, or its result depends on earlier calls.
    """
    inputs = make_inputs(specs, sizes)
    twin = source.fresh()
    before = _snapshot(twin)
    first, second = twin.run(inputs), twin.run(inputs)
    if _same(first, second):
        return
    module = type(source.module).__name__
    if _same(first, source.fresh().run(inputs)):
        changed = [name for name, value in _snapshot(twin).items() if before.get(name) != value]
        what = f" ({', '.join(changed[:3])} changed)" if changed else ""
        raise ExportError(
            f"{module} returns a different result when it is called again with the same input: it "
            f"keeps state between calls{what}, which a file cannot. Make the state an input and "
            "an output"
        )
    calls = _RandomCalls()
    with calls:
        _failure(source, inputs)  # some tensor subclasses cannot be made under a dispatch mode
    place = f" ({calls.found[0]})" if calls.found else ""
    raise ExportError(
        f"{module} is random in eval mode{place}: two calls with the same input "
        "differ. Dropout must be off when not training: F.dropout(x, p, self.training), "
        "scaled_dot_product_attention(..., dropout_p=self.p if self.training else 0.0)"
    )


def refuse_unused_layers(source: Source, specs: Sequence[InputSpec], sizes: CallSizes) -> None:
    """Check that every layer that adapters may change is called.

    Raises:
        ExportError: One is not.
    """
    source.run(make_inputs(specs, sizes))
    source.adaptable.refuse_unused()


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(_bits(a), _bits(b))
        for a, b in zip(first, second, strict=True)
    )


def _bits(value: Tensor) -> Tensor:
    # NaN != NaN; compare what is stored instead.
    return torch.nan_to_num(value, nan=1.2345e30) if value.is_floating_point() else value


def _snapshot(source: Source) -> dict[str, str]:
    """The buffers and plain attributes of every submodule, as text that shows a change."""
    found = {}
    for name, part in source.module.named_modules():
        for key, value in {**part._buffers, **vars(part)}.items():
            if isinstance(value, Tensor):
                wide = torch.complex128 if value.is_complex() else torch.float64
                text = f"{tuple(value.shape)} {value.to(wide).sum() if value.numel() else 0}"
            elif isinstance(value, int | float | str):
                text = repr(value)
            else:
                continue
            found[f"{name}.{key}" if name else key] = text
    return found


class _RandomCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records calls of operators that draw random numbers, with the caller's line."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.append(f"{func.name()} at {user_line()}")
        return handed_over(func, *args, **(kwargs or {}))


def with_batch(source: Source, specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """`specs` with a leading batch axis, if none has a batch axis and the module takes one.

    A module of either rank is exported with the batch: one file then serves both.
    """
    if any("batch" in spec.axes.values() for spec in specs):
        return tuple(specs)
    lifted = tuple(
        replace(
            spec,
            example=spec.example.unsqueeze(0),
            axes={0: "batch", **{axis + 1: label for axis, label in spec.axes.items()}},
        )
        for spec in specs
    )
    sizes = CallSizes(batch=2, seq=_example_size(specs, "seq") or 1)
    if _failure(source, make_inputs(lifted, sizes)) is None and takes_unbatched(
        source, lifted, sizes
    ):
        return lifted
    return tuple(specs)


def takes_unbatched(source: Source, specs: Sequence[InputSpec], sizes: CallSizes) -> bool:
    """Whether the module takes every row without its batch axis and gives that row's output."""
    with_batch_axis = [spec for spec in specs if "batch" in spec.axes.values()]
    if len(with_batch_axis) != len(specs) or source.pads:  # the mask has rows
        return False
    inputs = make_inputs(specs, sizes)
    whole: tuple[Tensor, ...] | None = None
    for index in range(sizes.batch):
        row = [x.select(_axis(spec, "batch"), index) for x, spec in zip(inputs, specs, strict=True)]
        if _failure(source, row) is not None:
            return False
        whole = source.run(inputs) if whole is None else whole
        if not _is_row(source.run(row), whole, index, sizes.batch):
            return False
    return True


def _is_row(single: Sequence[Tensor], whole: Sequence[Tensor], index: int, batch: int) -> bool:
    """Whether `single` holds row `index` of every output in `whole`, up to rounding."""
    if len(whole) != len(single):
        return False
    for batched, alone in zip(whole, single, strict=True):
        if batched.ndim == 0 or batched.shape[0] != batch or batched[index].shape != alone.shape:
            return False
        expected = batched[index].double()
        tolerance = 0.02 if alone.dtype in (torch.float16, torch.bfloat16) else 1e-4
        scale = float(expected.abs().nan_to_num(0, 0, 0).max()) if expected.numel() else 0.0
        if not torch.allclose(
            expected, alone.double(), rtol=0.0, atol=tolerance * scale, equal_nan=True
        ):
            return False
    return True


def _axis(spec: InputSpec, label: str) -> int:
    return next(axis for axis, name in spec.axes.items() if name == label)


def find_max_seq_len(source: Source, specs: Sequence[InputSpec]) -> int | None:
    """The longest sequence that the module accepts, by trying; None: no limit met.

    A limit is mostly a number that stands in the module - the size of a buffer or table, or an
    integer attribute - or the fixed size of an input (slots for keys and values), so lengths around
    those numbers are tried, and a long one for a number that stands in its code; then the exact
    limit is bisected.
    Nothing depends on the clock, so that every export of a module finds the same.
    """
    known = _example_size(specs, "seq")
    assert known is not None
    fixed = {size for s in specs for axis, size in enumerate(s.example.shape) if axis not in s.axes}
    numbers = {*_numbers(source), *fixed, LONGEST_PROBE}
    candidates = sorted(n for n in numbers if known <= n <= LARGEST_LIMIT)
    return _largest(_acceptance(source, specs, known), known, candidates)


def find_free_limit(source: Source, specs: Sequence[InputSpec], axis: str) -> int | None:
    """The largest size of a free axis that the module accepts, by trying; None: no limit met.

    Raises:
        ExportError: It does not take every small size.
    """
    seq = min(_example_size(specs, "seq") or 1, 3)

    def at(size: int) -> CallSizes:
        return CallSizes(batch=1, seq=seq, free=((axis, size),))

    def accepts(size: int) -> bool | None:
        if size > SHORT:
            found = dry_run(source, specs, at(size))
            if found.accepted is not None or found.largest > REAL_ELEMENTS:
                return found.accepted
        return _failure(source.fresh(), make_inputs(specs, at(size))) is None

    for size in sorted(FREE_SIZES):
        error = _failure(source.fresh(), make_inputs(specs, at(size)))
        if error is not None:
            raise ExportError(
                f"{type(source.module).__name__} does not accept size {size} of the axis {axis!r}: "
                f"{type(error).__name__}: {error}. A file accepts every size of a free axis from "
                f"1 on; leave {axis!r} out of axes to keep it at the size of the example, or pad "
                "inside forward"
            ) from error
    known = max(FREE_SIZES)
    numbers = {*_numbers(source), LONGEST_PROBE}
    return _largest(accepts, known, sorted(n for n in numbers if known <= n <= LARGEST_LIMIT))


def _largest(
    accepts: Callable[[int], bool | None], known: int, candidates: Sequence[int]
) -> int | None:
    """The largest accepted size, at one of the candidates or between two; None: no limit met."""
    if not candidates or accepts(candidates[-1] + 1):
        return None
    # Every layer may bring a number of its own, its index, so they are bisected as well.
    first = bisect.bisect_left(candidates, True, key=lambda n: not accepts(n + 1))
    low = candidates[first - 1] + 1 if first else known
    high = candidates[first] + 1
    if accepts(high) is None:
        return None
    if accepts(high - 1) and accepts((low + high) // 2):  # the limit is mostly the number itself
        return high - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return low


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beyond:
    """What the module does with a length."""

    takes: bool | None
    """None: it was not to be found out at a bearable cost."""
    error: Exception | None = None
    """What it raised; None where it takes the length, or takes it and crops."""


def at_length(source: Source, specs: Sequence[InputSpec], sizes: CallSizes) -> Beyond:
    """Ask the module for one set of sizes, by a dry run where a real one is dear."""
    known = _example_size(specs, "seq")
    assert known is not None
    takes = _acceptance(source, specs, known, sizes)(sizes.seq)
    if takes is not False:
        return Beyond(takes=takes)
    found = dry_run(source, specs, sizes)
    is_dear = found.largest > REAL_ELEMENTS or found.flops > REAL_FLOPS
    real = None if is_dear else _failure(source.fresh(), make_inputs(specs, sizes))
    return Beyond(takes=False, error=found.error if is_dear else real)


def _acceptance(
    source: Source, specs: Sequence[InputSpec], known: int, others: CallSizes | None = None
) -> Callable[[int], bool | None]:
    """A function that tells whether a length is accepted; None: that would cost too much.

    A length is accepted where the module runs, and gives more than for one position less: else it
    crops. `others` are the sizes of the other axes; None: one row, no past.
    """
    sizes = others or CallSizes(batch=1, seq=known)

    def inputs(seq: int) -> tuple[Tensor, ...]:
        return make_inputs(specs, replace(sizes, seq=seq))

    @functools.cache
    def run_dry(seq: int) -> DryRun:
        return dry_run(source, specs, replace(sizes, seq=seq))

    @functools.cache
    def grows() -> bool:
        # Logits of the last position alone have one shape at every length: no sign of cropping.
        short = max(known - 1, 1)
        return _follows(source, inputs(short + 1), inputs(short))

    @functools.cache
    def accepts(seq: int) -> bool | None:
        if seq <= SHORT:
            shorter = inputs(seq - 1) if seq > 1 and grows() else None
            return _follows(source, inputs(seq), shorter)
        if run_dry(known).accepted is not True:
            # Some modules cannot be run dry at all, and refuse even what they accept.
            return _failure(source, inputs(seq)) is None if seq <= REAL_LENGTH else None
        found = run_dry(seq)
        if found.accepted:
            if not grows() or _have_length(found, seq, run_dry(known), known):
                return True
            return found.shapes != run_dry(seq - 1).shapes
        if found.largest > REAL_ELEMENTS or found.flops > REAL_FLOPS:
            return found.accepted
        return _failure(source, inputs(seq)) is None  # it stopped early: the real error is cheap

    return accepts


def _have_length(one: DryRun, seq: int, another: DryRun, known: int) -> bool:
    """Whether an output has the length of the input in both runs: then the first did not crop."""
    pairs = zip(one.shapes, another.shapes, strict=False)
    return seq != known and any(
        (seq, known) in zip(a, b, strict=True) for a, b in pairs if len(a) == len(b)
    )


def _follows(
    source: Source, inputs: tuple[Tensor, ...], shorter: tuple[Tensor, ...] | None
) -> bool:
    """Whether the module runs, and gives more than for one position less (else it crops)."""
    outcome = ask(source.fresh().run, inputs)
    before = () if shorter is None else ask(source.fresh().run, shorter)
    if isinstance(outcome, Refusal) or isinstance(before, Refusal):
        return False
    return shorter is None or [x.shape for x in outcome] != [x.shape for x in before]


def find_fixed_seq(source: Source, specs: Sequence[InputSpec]) -> int | None:
    """The example's length, if the module accepts no other (a mask of fixed size, not sliced)."""
    known = _example_size(specs, "seq")
    assert known is not None
    others = {1, 2, 3, known // 2, known - 1, known + 1} - {0, known}
    if any(runs(source, specs, CallSizes(batch=1, seq=seq)) for seq in sorted(others)):
        return None
    return known


def _numbers(source: nn.Module) -> list[int]:
    found: set[int] = set()
    for part in source.modules():
        for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            found.update(tensor.shape)
        for value in vars(part).values():
            found.update(_integers(value))
    return sorted(n for n in found if n >= 2)


def _integers(value: Any) -> list[int]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [value]
    if isinstance(value, Tensor):
        return list(value.shape)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "to_dict") and not isinstance(value, nn.Module):
        value = value.to_dict()
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        value = vars(value)
    if isinstance(value, dict):
        return [n for n in value.values() if isinstance(n, int) and not isinstance(n, bool)]
    return []
