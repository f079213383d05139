"""The shapes for which a captured graph is valid, read from the guards torch.export recorded.

Two readings, which must agree: the conditions as text, parsed here and asked at any sizes; and
PyTorch's own check of them (`ExportedProgram.module(check_guards=True)`), asked on tensors without
data. What neither can read is no permission: the capture is refused.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from causal_onnx.export.errors import ExportError
from causal_onnx.export.source.inputs import CallSizes, InputSpec, free_axes

__all__ = ["LONGEST_CHECKED", "Bound", "Domain", "PyTorchsCheck", "read_domain"]

LONGEST_CHECKED = 8192
"""Every length up to here is asked of the guards."""
UNBOUNDED = 1 << 20
"""And, for a module without a limit, some up to here: no decoder is run on a million positions."""
BATCHES = (1, 2, 5, 64)
FEW_PLACES = 8
"""Sizes of one exclusion that are compared, at most. Where two sizes coincide at more, so many of
them are compared, from the least to the largest; any other condition that excludes more is
believed."""


@dataclass(frozen=True)
class Bound:
    """How far the guards allow a sequence."""

    largest: int
    """The longest sequence for which they hold, whatever the batch."""
    guard: str
    """What fails at one position more."""
    sizes: CallSizes
    """Where it does."""
    is_plain: bool
    """They hold for no longer sequence, and for every batch where they hold for one."""


class Domain:
    """A predicate on sizes, made of the guards and symbol ranges of one exported program.

    Raises:
        ExportError: A guard has a form that is not known here; names it.
    """

    def __init__(
        self,
        guards: Sequence[str],
        specs: Sequence[InputSpec],
        ranges: Mapping[str, tuple[int, float]],
        *,
        longest: int | None = None,
    ):
        self._specs = tuple(specs)
        self._longest = longest
        """The longest sequence that the module takes, its past included; None: any."""
        self._ranges = {
            axis: (low, high) for axis, (low, high) in ranges.items() if low > 2 or high < math.inf
        }
        """Axis name -> (least, largest) size that torch.export allows for it; 0 and 1 are excluded
        as in `excluded`."""
        conditions = [
            _Condition(guard, self._specs) for guard in guards if not _ABOUT_THE_TENSOR.match(guard)
        ]
        self._places: dict[_Condition, list[CallSizes]] = {}
        self.sampled: list[str] = []
        """Exclusions of so many sizes that only some of them are in `excluded`."""
        for condition in conditions:
            places = self._failing(condition) if condition.is_exclusion else []
            if len(places) > FEW_PLACES and condition.is_coincidence:
                self.sampled.append(condition.text)
                places = _spread(places)
            if condition.is_exclusion and len(places) <= FEW_PLACES:
                self._places[condition] = places
        self._conditions = [c for c in conditions if c not in self._places]

    @property
    def guards(self) -> list[str]:
        """Those that must hold."""
        return [condition.text for condition in self._conditions]

    @property
    def excluded(self) -> list[CallSizes]:
        """Sizes that torch.export excludes for reasons of its own: to be compared, not believed.

        It takes 0 and 1, and the full width of a sliced buffer, for special; code asks
        `if length > 1`. The graph is mostly right there all the same (on 142 of 142 modules).
        Batches 1, 2 and 5 and the lengths 1, 2 and 3 are left out: they are always compared.
        """
        return list(dict.fromkeys(size for places in self._places.values() for size in places))

    def refusal(self, sizes: CallSizes) -> str | None:
        """The first guard that `sizes` break, or None if the graph is valid there."""
        for axis, (low, high) in self._ranges.items():
            if sizes.of(axis) > high:
                return f"{axis} <= {high:.0f}"
            if low > 2 and sizes.of(axis) < low:
                return f"{axis} >= {low}"
        return next((c.text for c in self._conditions if not c.holds(sizes)), None)

    def every_refusal(self, sizes: CallSizes) -> str | None:
        """As `refusal`, with the exclusions counted: what PyTorch's own check says."""
        broken = (c.text for c in self._places if not c.holds(sizes))
        return self.refusal(sizes) or next(broken, None)

    def bound(self, *, least: int, top: int | None) -> Bound | None:
        """Where the guards stop holding, asked at every length from `least` on.

        Args:
            least: The shortest sequence.
            top: The longest that is promised; None: there is no limit, and lengths up to
                `LONGEST_CHECKED` and some beyond are asked.
        """
        lengths = [*range(least, (top or LONGEST_CHECKED) + 1)]
        if top is None:
            lengths += _some_beyond(LONGEST_CHECKED)
        if not self._conditions and not self._ranges:
            return None
        known = least - 1
        for seq in lengths:
            sizes = self._refused_at(seq)
            if sizes is None:
                known = seq
                continue
            largest, sizes = self._bisected(known, sizes)
            guard = self.refusal(sizes)
            assert guard is not None
            longer = [n for n in (*lengths, LONGEST_CHECKED, UNBOUNDED) if n > largest]
            is_plain = all(self._refused_at(n, batch) for n in longer for batch in self._batches)
            return Bound(largest=largest, guard=guard, sizes=sizes, is_plain=is_plain)
        return None

    @functools.cached_property
    def _batches(self) -> tuple[int, ...]:
        matters = "batch" in self._ranges or any("batch" in c.axes for c in self._conditions)
        return BATCHES if matters else BATCHES[:1]

    def _refused_at(self, seq: int, *batches: int) -> CallSizes | None:
        """A call that reaches `seq` positions, in one step or after a past, and is refused."""
        pasts = [0]
        if any("past_seq" in spec.axes.values() for spec in self._specs):
            pasts += sorted({n for n in (1, 5, seq - 1) if 0 < n < seq})
        return next(
            (
                sizes
                for batch in batches or self._batches
                for past in pasts
                if self.refusal(sizes := CallSizes(batch=batch, seq=seq - past, past=past))
                is not None
            ),
            None,
        )

    def _bisected(self, known: int, sizes: CallSizes) -> tuple[int, CallSizes]:
        """The last valid length between `known` and the refused `sizes`, and the next one."""
        low, high, refused = known, sizes.seq + sizes.past, sizes
        while high - low > 1:
            middle = (low + high) // 2
            found = self._refused_at(middle)
            if found is None:
                low = middle
            else:
                high, refused = middle, found
        return low, refused

    def _failing(self, condition: _Condition) -> list[CallSizes]:
        """Sizes that break an exclusion and are not always compared."""
        past = 5 if any("past_seq" in spec.axes.values() for spec in self._specs) else 0
        used = [axis for axis in free_axes(self._specs) if axis in condition.axes]
        if used:
            return self._failing_free(condition, used[0], past)
        tried = [CallSizes(batch=2, seq=n, past=past) for n in range(4, LONGEST_CHECKED + 1)]
        tried += [CallSizes(batch=n, seq=7, past=past) for n in range(3, 65) if n != 5]
        if past:
            tried += [CallSizes(batch=2, seq=7, past=n) for n in range(2, 65) if n != 5]
        if len(condition.axes) > 1:
            tried += [
                CallSizes(batch=b, seq=n, past=p)
                for b in range(2, 10)
                for n in range(4, 41)
                for p in ({past, 2, 3} if past else {0})
            ]
        most = self._longest or math.inf
        return [s for s in tried if s.past + s.seq <= most and not condition.holds(s)]

    def _failing_free(self, condition: _Condition, axis: str, past: int) -> list[CallSizes]:
        """The same for a condition on a free axis."""
        tried = [CallSizes(batch=2, seq=7, past=past, free=((axis, n),)) for n in range(1, 1025)]
        if len(condition.axes) > 1:
            tried += [
                CallSizes(batch=b, seq=n, past=past, free=((axis, m),))
                for b in (2, 3)
                for n in range(4, 41)
                for m in range(2, 41)
            ]
        most = self._longest or math.inf
        return [s for s in tried if s.past + s.seq <= most and not condition.holds(s)]

    def free_bound(self, axis: str, top: int | None) -> tuple[int, str] | None:
        """The largest size of a free axis that the guards allow, and what fails beyond it.

        None: they allow every size up to `top`, or where that is None, any.
        """
        sizes = [*range(1, (top or LONGEST_CHECKED) + 1)]
        if top is None:
            sizes += _some_beyond(LONGEST_CHECKED)
        for size in sizes:
            for seq in (1, 7):
                guard = self.refusal(CallSizes(batch=2, seq=seq, free=((axis, size),)))
                if guard is not None:
                    return size - 1, guard
        return None


def _spread(places: Sequence[CallSizes]) -> list[CallSizes]:
    """Some of the sizes: half of them the least, the others at growing distances."""
    count = len(places)
    steps = [*range(FEW_PLACES // 2)]
    steps += [min(count - 1, 2 ** (2 * n + 2)) for n in range(FEW_PLACES // 2)]
    return [places[step] for step in dict.fromkeys(steps)]


def _some_beyond(length: int) -> list[int]:
    powers = []
    while length < UNBOUNDED:
        length *= 2
        powers += [length - length // 4, length - 1, length, length + 1]
    return powers


# What may stand in a guard and says nothing of sizes: the export decides it, not the caller. A file
# takes dense tensors of one dtype.
_ABOUT_THE_TENSOR = re.compile(
    r"^(not )?L\['\w+'\]\[\d+\]\.(device(\.type|\.index)?|dtype|layout|requires_grad"
    r"|is_contiguous\(\))( (==|is) ('\w+(:\d+)?'|(torch\.)?\w+(\(type='\w+'(, index=\d+)?\))?))?$"
)

_CONSTANT_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "round": round,
    "int": int,
    "float": float,
    "torch.sym_float": float,
    "torch.sym_int": int,
    "torch.sym_min": min,
    "torch.sym_max": max,
    "torch._sym_sqrt": math.sqrt,
    **{
        f"math.{name}": getattr(math, name)
        for name in ("floor", "ceil", "trunc", "sqrt", "log", "log2", "exp", "pow", "fabs")
    },
}


_AXIS_OF_INPUT = re.compile(r"L\['(?:inputs|flat_args)'\]\[(\d+)\]\.size\(\)\[(\d+)\]")


def _named(found: re.Match[str], specs: Sequence[InputSpec]) -> str:
    index, axis = int(found[1]), int(found[2])
    known = specs[index].axes if index < len(specs) else {}
    return known.get(axis, found[0])


class _UnknownFormError(Exception):
    """A part of a guard that is not known here."""


class _Condition:
    """One guard: arithmetic on the sizes of the inputs, and a comparison."""

    def __init__(self, text: str, specs: Sequence[InputSpec]):
        self.text = _AXIS_OF_INPUT.sub(lambda found: _named(found, specs), text)
        """With the names of axes in the place of torch's for the sizes."""
        reader = _Reader(specs)
        try:
            parsed = ast.parse(text, mode="eval")
            self.is_coincidence = _is_coincidence(parsed.body)
            self.is_exclusion = _is_exclusion(parsed.body)
            body = reader.visit(parsed.body)
        except (SyntaxError, _UnknownFormError) as error:
            raise ExportError(
                f"the captured graph is valid only where {text!r} holds, which torch "
                f"{torch.__version__} recorded and this version of causal-onnx cannot read "
                f"({error}), so the sizes are unknown. Remedy: install the PyTorch version that "
                "is tested (pip install 'causal-onnx[export]'), and take sizes in forward from "
                "x.shape alone"
            ) from error
        self.axes = frozenset(reader.axes)
        self._names = sorted(reader.axes)
        function = ast.parse(f"lambda {', '.join(self._names)}: 0", mode="eval")
        assert isinstance(function.body, ast.Lambda)
        function.body.body = body
        code = compile(ast.fix_missing_locations(function), "<guard>", "eval")
        self._holds = eval(code, {"__builtins__": {}, "_f": _CONSTANT_FUNCTIONS})

    def holds(self, sizes: CallSizes) -> bool:
        """Whether it is true; where it cannot be computed (a division by 0) it is not."""
        try:
            return bool(self._holds(*(sizes.of(axis) for axis in self._names)))
        except (ArithmeticError, TypeError, ValueError):  # complex numbers cannot be compared
            return False


class _Reader(ast.NodeTransformer):
    """Replaces each size of an input by the name of its axis; knows nothing else by name."""

    def __init__(self, specs: Sequence[InputSpec]):
        self._specs = specs
        self.axes: set[str] = set()

    def visit(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float()):
                return node
            case ast.Attribute(value=ast.Name(id="math"), attr="inf" | "nan" | "pi"):
                return ast.Constant(value=getattr(math, node.attr))
            case ast.Subscript(
                value=ast.Call(
                    func=ast.Attribute(value=tensor, attr="size" | "stride" as what), args=[]
                ),
                slice=ast.Constant(value=int() as axis),
            ):
                sizes = self._sizes(tensor)
                if not 0 <= axis < len(sizes):
                    raise _UnknownFormError(ast.unparse(node))
                used = sizes[axis : axis + 1] if what == "size" else sizes[axis + 1 :]
                self.axes.update(size.id for size in used if isinstance(size, ast.Name))
                return _product(used)
            case ast.Call(
                func=ast.Attribute(value=tensor, attr="storage_offset"), args=[], keywords=[]
            ):
                self._sizes(tensor)
                return ast.Constant(value=0)
            case ast.Call(func=function, keywords=[]):
                name = ast.unparse(function)
                if name not in _CONSTANT_FUNCTIONS:
                    raise _UnknownFormError(name)
                known = ast.Subscript(
                    value=ast.Name(id="_f", ctx=ast.Load()),
                    slice=ast.Constant(value=name),
                    ctx=ast.Load(),
                )
                return ast.Call(func=known, args=[self.visit(a) for a in node.args], keywords=[])
            case ast.BoolOp() | ast.BinOp() | ast.UnaryOp() | ast.Compare() | ast.IfExp():
                return self.generic_visit(node)
            case (
                ast.boolop()
                | ast.unaryop()
                | ast.Add()
                | ast.Sub()
                | ast.Mult()
                | ast.Div()
                | ast.FloorDiv()
                | ast.Mod()
                | ast.Pow()
                | ast.Eq()
                | ast.NotEq()
                | ast.Lt()
                | ast.LtE()
                | ast.Gt()
                | ast.GtE()
            ):
                return node
        raise _UnknownFormError(ast.unparse(node) if isinstance(node, ast.expr) else str(node))

    def _sizes(self, tensor: ast.AST) -> list[ast.expr]:
        """The sizes of `L['inputs'][0]`: names of axes, and numbers; strict mode says flat_args."""
        match tensor:
            case ast.Subscript(
                value=ast.Subscript(
                    value=ast.Name(id="L"), slice=ast.Constant(value="inputs" | "flat_args")
                ),
                slice=ast.Constant(value=int() as index),
            ) if 0 <= index < len(self._specs):
                spec = self._specs[index]
                return [
                    ast.Name(id=spec.axes[axis], ctx=ast.Load())
                    if axis in spec.axes
                    else ast.Constant(value=size)
                    for axis, size in enumerate(spec.example.shape)
                ]
        raise _UnknownFormError(ast.unparse(tensor))


def _product(factors: Sequence[ast.expr]) -> ast.expr:
    if not factors:
        return ast.Constant(value=1)
    return functools.reduce(lambda a, b: ast.BinOp(left=a, op=ast.Mult(), right=b), factors)


def _is_coincidence(node: ast.expr) -> bool:
    """`16 * s != 16 * (s + -s % 4)`: two sizes, which at some lengths happen to be equal.

    PyTorch asks whether they are, to broadcast or to tell a tensor's layout, and goes on alike.
    """
    match node:
        case ast.Compare(ops=[ast.NotEq()], left=left, comparators=[right]):
            return not isinstance(left, ast.Constant) and not isinstance(right, ast.Constant)
    return False


def _is_exclusion(node: ast.expr) -> bool:
    """`s != 24`, `24 != s`, `s > 1`, `2 <= s`: single sizes are left out."""
    match node:
        case ast.Compare(ops=[ast.NotEq()]):
            return True
        case (
            ast.Compare(ops=[ast.Gt()], comparators=[ast.Constant(value=1)])
            | ast.Compare(ops=[ast.GtE()], comparators=[ast.Constant(value=2)])
            | ast.Compare(left=ast.Constant(value=1), ops=[ast.Lt()])
            | ast.Compare(left=ast.Constant(value=2), ops=[ast.LtE()])
        ):
            return True
    return False


def read_domain(
    program: ExportedProgram,
    specs: Sequence[InputSpec],
    fixed_seq: int | None = None,
    *,
    longest: int | None = None,
) -> Domain:
    """Collect the guards and the ranges of the symbols that stand for our axes.

    Args:
        program: What was captured.
        specs: Its inputs.
        fixed_seq: The only length that the module takes; None: it takes several.
        longest: The longest sequence that it takes; None: any.

    Raises:
        ExportError: An axis that must be dynamic was given one fixed size; a guard cannot be read;
            PyTorch's own check of the guards says something else.
    """
    guards = getattr(program, "_guards_code", None)
    if not isinstance(guards, list) or not all(isinstance(guard, str) for guard in guards):
        raise ExportError(
            f"torch {torch.__version__} does not say for which sizes its captured graph is valid "
            f"(ExportedProgram._guards_code is {type(guards).__name__}, not a list of conditions). "
            "Remedy: install the PyTorch version that is tested: pip install "
            "'causal-onnx[export]'"
        )
    values = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    ranges: dict[str, tuple[int, float]] = {}
    for spec, value in zip(specs, values, strict=True):
        for axis, label in spec.axes.items():
            size = value.shape[axis]
            if isinstance(size, int):
                if label == "seq" and fixed_seq is not None:
                    continue
                raise ExportError(
                    f"the capture fixed {label} to {size} (axis {axis} of input {spec.name!r})"
                )
            bounds = program.range_constraints.get(size.node.expr)
            if bounds is None:
                continue
            low, high = int(bounds.lower), _finite(bounds.upper)
            known_low, known_high = ranges.get(label, (0, math.inf))
            ranges[label] = (max(low, known_low), min(high, known_high))
    for label, (low, high) in ranges.items():
        if high <= 2 or low == high:
            raise ExportError(f"the capture fixed {label} to the range [{low}, {high}]")
    domain = Domain(guards, specs, ranges, longest=longest)
    _compare_readings(domain, PyTorchsCheck(program), specs, fixed_seq)
    return domain


def _finite(bound: Any) -> float:
    # torch writes "no bound" as a sympy infinity of its own, which no int() accepts.
    return float(bound) if getattr(bound, "is_Integer", False) else math.inf


class PyTorchsCheck:
    """PyTorch's own check of an exported program's guards, without the program.

    Raises:
        ExportError: The program has none where PyTorch documents it.
    """

    def __init__(self, program: ExportedProgram):
        module = program.module(check_guards=True)
        assert isinstance(module, fx.GraphModule)
        self._module = module
        # Documented: a submodule of the guards is called right after the inputs.
        self._calls = [
            node for node in module.graph.nodes if node.op == "call_module" and not node.users
        ]
        if not self._calls:
            raise ExportError(
                f"torch {torch.__version__} writes no check of its guards into an exported program "
                "(no submodule is called by ExportedProgram.module(check_guards=True)), so it is "
                "unknown for which sizes the graph is valid. Remedy: install the PyTorch version "
                "that is tested: pip install 'causal-onnx[export]'"
            )

    def refusal(self, inputs: Sequence[torch.Tensor]) -> str | None:
        """The guard that PyTorch says `inputs` break; their values do not matter."""
        given = [node for node in self._module.graph.nodes if node.op == "placeholder"]
        values = dict(zip(given, inputs, strict=True))
        try:
            for call in self._calls:
                guards = self._module.get_submodule(str(call.target))
                guards(*(values[argument] for argument in call.args))
        except AssertionError as error:
            return str(error)
        return None


def _compare_readings(
    domain: Domain, check: PyTorchsCheck, specs: Sequence[InputSpec], fixed_seq: int | None
) -> None:
    """The guards as read here and as PyTorch checks them must allow the same sizes.

    Raises:
        ExportError: They do not.
    """
    has_past = any("past_seq" in spec.axes.values() for spec in specs)
    lengths = [fixed_seq] if fixed_seq else [1, 2, 3, 5, 8, 13, 24, 64, 1000, LONGEST_CHECKED]
    bound = None if fixed_seq else domain.bound(least=1, top=None)
    if bound is not None:
        lengths += [n for n in (bound.largest, bound.largest + 1) if n > 0]
    for batch in BATCHES:
        for seq in lengths:
            for past in (2, 5, 64) if has_past else (0,):
                sizes = CallSizes(batch=batch, seq=seq, past=past)
                inputs = [
                    torch.empty(spec.shape(sizes), dtype=spec.example.dtype, device="meta")
                    for spec in specs
                ]
                ours, theirs = domain.every_refusal(sizes), check.refusal(inputs)
                if (ours is None) != (theirs is None):
                    raise ExportError(
                        f"torch {torch.__version__} and this version of causal-onnx read the "
                        f"guards of the captured graph differently at batch {batch}, seq {seq}: "
                        f"{theirs or 'valid'} against {ours or 'valid'}. Remedy: install the "
                        "PyTorch version that is tested: pip install 'causal-onnx[export]'"
                    )
