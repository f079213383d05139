"""Loops over positions, or over blocks of them, rewritten so that they are traced as one Scan.

A trace writes out `for t in range(x.shape[1])`, `for block in x.split(16, 1)` or
`for i in range(0, n, 16)` for the length of its example: "Constraints violated". Here the body of
such a loop becomes a function of its own, in the code of the module and of what it calls, and
`loop_scan` decides where it runs whether it is one step of a Scan. The rewritten code is in place
while the module is captured, and does what it did in every other thread.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch

__all__ = ["functions_of", "rewritten"]

_LOOPS, _BLOCKS = (
    f"__import__({f'{__package__}.{name}'!r}, fromlist=['run'])" for name in ("loop_scan", "blocks")
)
"""Modules of ours in code that has only the module's own globals."""

_BODY, _STATE, _FIRST, _ITEM = (
    f"_causal_onnx_{name}" for name in ("body", "state", "outer", "item")
)
_LEAVES = (ast.Return, ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.Delete)
_OF_ITS_PLACE = {"super", "locals", "vars", "eval", "exec", "__class__"}
"""What means something else in a function within the function."""
_PLAIN_TARGETS = (ast.Name, ast.Tuple, ast.List, ast.expr_context)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def functions_of(module: torch.nn.Module) -> Iterator[FunctionType]:
    """The functions in the code of `module`, of its parts, and those that they call.

    PyTorch's own are left alone. Which method of which part an attribute means is not known: all of
    that name are meant.
    """
    members: dict[str, list[FunctionType | None]] = {}
    for kind in {kind for part in module.modules() for kind in type(part).__mro__}:
        if not _is_foreign(kind.__module__):
            for name, member in vars(kind).items():
                members.setdefault(name, []).append(_function(member))
    stack = [*members.get("forward", ())]
    stack += [_function(own) for part in module.modules() for own in vars(part).values()]
    seen: set[FunctionType] = set()
    while stack:
        function = stack.pop()
        if function is None or function in seen or _is_foreign(function.__module__):
            continue
        seen.add(function)
        yield function
        names = set(_names(function.__code__))
        for name in names:
            stack += members.get(name, ())
            found = function.__globals__.get(name)
            if isinstance(found, ModuleType) and not _is_foreign(found.__name__):
                stack += [_function(vars(found).get(other)) for other in names]
            else:
                stack.append(_function(found))
        for cell in function.__closure__ or ():  # a decorator keeps what it wraps there
            stack.append(_function(cell.cell_contents) if _is_set(cell) else None)


def _function(member: Any) -> FunctionType | None:
    member = getattr(member, "__func__", member)
    if not isinstance(member, FunctionType):
        member = getattr(member, "__wrapped__", None)
    return member if isinstance(member, FunctionType) else None


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - reading an empty one raises
    except ValueError:
        return False
    return True


def _is_foreign(name: str | None) -> bool:
    name = name or "builtins"
    top = name.partition(".")[0]
    is_ours = name.startswith("causal_onnx.export.")
    return top in ("torch", "numpy") or is_ours or top in sys.stdlib_module_names


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def rewritten(function: FunctionType) -> CodeType | None:
    """The code of `function` with its loops over a range, or over what `split` gives, rewritten.

    Returns:
        None where there is none, where the source is not at hand, or where the loop does what no
        function of its own could: it leaves the function, or its last index is read behind it.
    """
    if set(_names(function.__code__)).isdisjoint(("range", "split")):
        return None
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # made by exec, or a lambda within an expression
        return None
    whole = tree.body[0]
    if not isinstance(whole, ast.FunctionDef) or whole.name != function.__code__.co_name:
        return None
    if any(isinstance(n, ast.Name | ast.Attribute) and _is_mangled(n) for n in ast.walk(whole)):
        return None
    if not _Loops(whole).rewrite():
        return None
    whole.decorator_list = []
    ast.increment_lineno(tree, first - 1)
    free = function.__code__.co_freevars
    if free:
        assigned = ast.Assign(
            [ast.Name(name, ast.Store()) for name in free], ast.Constant(None), lineno=first
        )
        (outer,) = ast.parse(f"def {_FIRST}(): pass").body
        assert isinstance(outer, ast.FunctionDef)
        outer.body = [assigned, whole]
        tree.body = [outer]
    compiled = compile(ast.fix_missing_locations(tree), function.__code__.co_filename, "exec")
    code = next((c for c in _codes(compiled) if c.co_name == whole.name), None)
    return code if code is not None and code.co_freevars == free else None


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _is_mangled(node: ast.Name | ast.Attribute) -> bool:
    """Whether the name means another one inside of a class."""
    name = node.id if isinstance(node, ast.Name) else node.attr
    return name.startswith("__") and not name.endswith("__")


@dataclass
class _Loops:
    """The loops of one function, outermost first."""

    function: ast.FunctionDef
    count: int = 0

    def rewrite(self) -> bool:
        """Change the function in place; whether there was a loop to change."""
        if any(isinstance(n, ast.Global | ast.Nonlocal) for n in ast.walk(self.function)):
            return False
        self._in_block(self.function.body)
        return self.count > 0

    def _in_block(self, block: list[ast.stmt]) -> None:
        for place, statement in enumerate(block):
            if isinstance(statement, _SCOPES):
                continue
            if isinstance(statement, ast.For):
                new = self._rewritten(statement, block[place + 1 :])
                if new is not None:
                    block[place : place + 1] = [ast.copy_location(new, statement)]
                    self.count += 1
                    continue
            for name in ("body", "orelse", "finalbody"):
                self._in_block(getattr(statement, name, []))
            for handler in getattr(statement, "handlers", []):
                self._in_block(handler.body)

    def _rewritten(self, loop: ast.For, after: list[ast.stmt]) -> ast.stmt | None:
        runner, items = "run", _end_of_range(loop.iter)
        if items is None:
            runner, items = "run_blocks", self._blocks(loop.iter)
        inside = [node for statement in loop.body for node in ast.walk(statement)]
        targets = list(ast.walk(loop.target))
        if items is None or loop.orelse:
            return None
        if not all(isinstance(node, _PLAIN_TARGETS) for node in targets):
            return None
        if any(isinstance(node, (*_LEAVES, *_SCOPES)) for node in inside) or _breaks(loop.body):
            return None
        if any(isinstance(node, ast.Name) and node.id in _OF_ITS_PLACE for node in inside):
            return None
        if any(
            isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) for node in inside
        ):
            return None  # what the module keeps would be kept of one step
        own = set(map(id, ast.walk(loop)))
        rest = [node for node in ast.walk(self.function) if id(node) not in own]
        indices = _stored(targets)
        for index in indices:
            is_read = any(isinstance(node, ast.Name) and node.id == index for node in rest)
            if is_read and not _is_reset(index, rest):
                return None
        assigned = _stored(inside) - indices
        appended = {name for node in inside if (name := _appended(node))} - assigned
        carried = _read_first(loop.body, assigned)
        live = {
            name
            for name in assigned
            if not _is_overwritten(name, after)
            and any(isinstance(n, ast.Name) and n.id == name for n in rest if _is_load(n))
        }
        names = (sorted(part) for part in (assigned, appended, carried, live))
        return _call(loop, runner, items, *names)

    def _blocks(self, iterated: ast.expr) -> ast.expr | None:
        """What gives blocks of positions, perhaps, and nothing but that otherwise.

        `range(0, n, size)`, `x.split(size, 1)`, a name of such, and `zip` and `enumerate` of these.
        """
        match iterated:
            case ast.Call(
                func=ast.Name("range"), args=[ast.Constant(value=0), end, size], keywords=[]
            ) if not isinstance(size, ast.Constant) or size.value != 1:
                return _ours("starts", [end, size], iterated)
            case ast.Name(name) if name in self._splits:
                return iterated
            case _ if _is_split(iterated):
                return iterated
            case ast.Call(func=ast.Name("zip" | "enumerate" as name), args=[_, *_], keywords=given):
                first = iterated.args if name == "zip" else iterated.args[:1]
                parts = [self._blocks(part) for part in first]
                found = [part for part in parts if part is not None]
                if len(found) < len(parts):
                    return None
                ours = "zipped" if name == "zip" else "numbered"
                return _ours(ours, [*found, *iterated.args[len(found) :]], iterated, given)
        return None

    @functools.cached_property
    def _splits(self) -> set[str]:
        """The names to which the function assigns what a `split` gives."""
        pairs = [
            (target, node.value)
            for node in ast.walk(self.function)
            if isinstance(node, ast.Assign)
            for target in node.targets
        ]
        for target, value in pairs:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs += zip(target.elts, value.elts, strict=False)
        return {
            target.id
            for target, value in pairs
            if isinstance(target, ast.Name) and _is_split(value)
        }


def _is_split(value: ast.expr) -> bool:
    """Whether it calls something of the name `split`."""
    function = value.func if isinstance(value, ast.Call) else None
    return isinstance(function, ast.Attribute) and function.attr == "split"


def _ours(
    name: str, args: list[ast.expr], place: ast.expr, keywords: Sequence[ast.keyword] = ()
) -> ast.expr:
    """A call of a function in `blocks.py`."""
    call = ast.parse(f"{_BLOCKS}.{name}()", mode="eval").body
    assert isinstance(call, ast.Call)
    for node in ast.walk(call):
        ast.copy_location(node, place)
    call.args, call.keywords = args, list(keywords)
    return call


def _is_load(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def _is_reset(index: str, rest: list[ast.AST]) -> bool:
    """Whether every other use of the index is that of another loop or comprehension over it, or of
    a function that has a parameter of its name."""
    inner = {
        id(node)
        for scope in rest
        if isinstance(scope, ast.FunctionDef | ast.Lambda)
        and any(isinstance(part, ast.arg) and part.arg == index for part in ast.walk(scope.args))
        for part in (scope.body if isinstance(scope.body, list) else [scope.body])
        for node in ast.walk(part)
    }
    inner |= {
        id(node)
        for loop in rest
        if isinstance(loop, ast.For | ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp)
        and index
        in _stored(
            [
                node
                for target in (
                    [loop.target]
                    if isinstance(loop, ast.For)
                    else [part.target for part in loop.generators]
                )
                for node in ast.walk(target)
            ]
        )
        for node in ast.walk(loop)
    }
    return all(id(n) in inner for n in rest if isinstance(n, ast.Name) and n.id == index)


def _end_of_range(iterated: ast.expr) -> ast.expr | None:
    """`n` of `range(n)` or `range(0, n)`."""
    if not isinstance(iterated, ast.Call) or iterated.keywords:
        return None
    if not isinstance(iterated.func, ast.Name) or iterated.func.id != "range":
        return None
    match iterated.args:
        case [end] | [ast.Constant(value=0), end] | [ast.Constant(value=0), end, ast.Constant(1)]:
            return None if isinstance(end, ast.Constant | ast.Starred) else end
    return None


def _breaks(block: list[ast.stmt]) -> bool:
    """Whether a `break` or `continue` of the loop itself is among the statements."""
    for statement in block:
        if isinstance(statement, ast.Break | ast.Continue):
            return True
        if isinstance(statement, ast.For | ast.While):
            continue
        parts = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        parts += [handler.body for handler in getattr(statement, "handlers", [])]
        if any(_breaks(part) for part in parts):
            return True
    return False


def _stored(nodes: list[ast.AST]) -> set[str]:
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _appended(node: ast.AST) -> str | None:
    """`ys` of `ys.append(...)`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if node.func.attr == "append" and isinstance(owner, ast.Name):
            return owner.id
    return None


def _read_first(block: list[ast.stmt], assigned: set[str]) -> set[str]:
    """The names that a step may read before it has assigned them."""
    done: set[str] = set()
    found: set[str] = set()
    for statement in block:
        nodes = list(ast.walk(statement))
        read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            read.add(statement.target.id)
        found |= (read & assigned) - done
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            done |= _stored(nodes)
    # What only one branch assigns, the other leaves as it was.
    return found | (assigned - done)


def _is_overwritten(name: str, after: list[ast.stmt]) -> bool:
    """Whether the statements behind the loop assign the name before they read it."""
    for statement in after:
        names = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
        if any(isinstance(n.ctx, ast.Load) for n in names) or isinstance(statement, ast.AugAssign):
            return False
        if names:
            return isinstance(statement, ast.Assign)
    return False


def _call(  # noqa: PLR0917 - what the call hands over, in its order
    loop: ast.For,
    runner: str,
    items: ast.expr,
    assigned: list[str],
    appended: list[str],
    carried: list[str],
    live: list[str],
) -> ast.stmt:
    """`if True:` a function of the body, its call, and the names as they are afterwards."""
    names = [*assigned, *appended]
    whole = ast.parse(
        f"if True:\n"
        f"    def {_BODY}({', '.join([_ITEM, *names])}):\n"
        f"        return ({''.join(f'{name}, ' for name in names)})\n"
        f"    {_STATE} = {_LOOPS}.{runner}({_BODY}, None, locals(), {names!r}, "
        f"{appended!r}, {carried!r}, {live!r})\n"
        + "".join(f"    {name} = {_STATE}[{name!r}]\n" for name in names)
    ).body[0]
    for node in ast.walk(whole):
        ast.copy_location(node, loop.target)
    assert isinstance(whole, ast.If)
    body, call = whole.body[:2]
    assert isinstance(body, ast.FunctionDef)
    assert isinstance(call, ast.Assign)
    assert isinstance(call.value, ast.Call)
    given = ast.Assign([loop.target], ast.Name(_ITEM, ast.Load()), lineno=loop.target.lineno)
    body.body[:0] = [given, *loop.body]
    call.value.args[1] = items
    return whole
