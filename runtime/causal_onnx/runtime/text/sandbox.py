"""Where chat templates run: jinja2's sandbox as transformers sets it up, with bounded work.

A template is a program out of a file that somebody else wrote. jinja2 keeps it from Python's
internals and from changing what it is given; what it may do for how long is bounded here.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from causal_onnx.runtime.text.extras import import_extra

__all__ = ["LEAST_JINJA", "make_environment"]

LEAST_JINJA = (3, 1, 6)
"""Earlier versions have known ways out of the sandbox."""

MOST_WORK = 100_000_000
"""Characters and items that a rendering may handle. A conversation of a million characters, with a
template that takes each ten times into its hands, needs a tenth of it, and so do 1000 messages of
which each looks at all before it; some seconds of work."""

CALL, ITEM = 300, 20
"""What a call, and an iteration of a loop, cost in characters, about."""

AS_TEXT = {"e", "escape", "format", "forceescape", "join", "pprint", "replace", "string", "tojson"}
AS_TEXT |= {"urlencode", "urlize", "xmlattr"}
"""Filters that make a text of all that is in what they are given."""

_LEFT = threading.local()
"""What a rendering may still handle: its `work`."""

WITH_WIDTHS = {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "tojson"}
WITH_WIDTHS |= {"wordwrap", "zfill"}
"""Filters and methods of texts that add as many spaces or items as a number says."""

WIDE = re.compile(r"%[^a-zA-Z%]*\d{7}|:[^}]*\d{7}")
"""A width in a format that fills the memory."""


def make_environment() -> Any:
    """An `ImmutableSandboxedEnvironment` with transformers' settings, filters and globals.

    Its method `begin` starts a rendering, after which it may do `MOST_WORK`.

    Raises:
        ImportError: jinja2 is not installed, or is too old.
    """
    jinja2 = _jinja2()
    environment = _environment_class()(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # or constants would be worked out before anybody counts
        extensions=[_generation_extension(), "jinja2.ext.loopcontrols"],
    )
    filters = environment.filters | {"tojson": _to_json}
    environment.filters = {
        name: environment.bounded(name, function) for name, function in filters.items()
    }

    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(message)

    del environment.globals["lipsum"]  # makes text of any length
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _namespace_class(),
    }
    return environment


def _jinja2() -> Any:
    jinja2 = import_extra("jinja2", extra="text", purpose="a chat template")
    found = tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3])
    if found < LEAST_JINJA:
        wanted = ".".join(str(part) for part in LEAST_JINJA)
        raise ImportError(
            f"a chat template needs jinja2 {wanted} or later, because earlier sandboxes have "
            "holes; "
            f"this is {jinja2.__version__}: pip install 'causal-onnx[text]'",
            name="jinja2",
        )
    return jinja2


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: jinja2's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


class _Dict:
    """`dict` for templates, without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


@functools.cache
def _namespace_class() -> type:
    jinja2 = _jinja2()

    base: Any = jinja2.utils.Namespace

    class Namespace(base):  # type: ignore[misc]
        """jinja2's, without names that begin with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *given = args  # so that a template may name an attribute `self`
            attributes = dict(*given, **kwargs)
            for name in attributes:
                _check_name(name)
            base.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    def _check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(
                f"a name in a namespace must not begin with an underscore, got {name!r}"
            )

    return Namespace


@functools.cache
def _generation_extension() -> type:
    """`{% generation %}...{% endgeneration %}`, which marks for training what a model wrote."""
    jinja2 = _jinja2()
    import_extra("jinja2.ext", extra="text", purpose="a chat template")

    base: Any = jinja2.ext.Extension

    class Generation(base):  # type: ignore[misc]
        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    return Generation


@functools.cache
def _environment_class() -> type:
    jinja2 = _jinja2()
    import_extra("jinja2.sandbox", extra="text", purpose="a chat template")

    base: Any = jinja2.sandbox.ImmutableSandboxedEnvironment

    class Environment(base):  # type: ignore[misc]
        """Counts what a template handles: sizes of results, iterations and calls."""

        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def begin(self) -> None:
            """Start a rendering, of which each thread has one at a time."""
            _LEFT.work = MOST_WORK

        def spend(self, work: int) -> None:
            _LEFT.work = getattr(_LEFT, "work", MOST_WORK) - work
            if _LEFT.work < 0:
                raise jinja2.exceptions.SecurityError(
                    f"it handles more than {MOST_WORK} characters and items, or never ends"
                )

        def handled(self, value: Any) -> Any:
            """Count a value and give it back."""
            self.spend(CALL + _size(value))
            return value

        def shown(self, value: Any) -> Any:
            """Count a value that becomes text, and give it back."""
            self.spend(CALL + _text_size(value))
            return value

        def counted(self, items: Any) -> Iterable[Any]:
            """What a loop goes through, item by item."""
            return _Counted(items, self.spend)

        def tick(self) -> None:
            """For an iteration of a recursive loop, which as a call is counted."""

        def concatenated(self, *values: Any) -> str:
            """What `~` means."""
            return "".join([str(self.shown(value)) for value in values])

        def bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            """A filter, with what it takes and gives counted."""
            size = _text_size if name in AS_TEXT else _size

            @functools.wraps(function)  # with jinja2's marks on it
            def run(*args: Any, **kwargs: Any) -> Any:
                self._check_widths(name, [*args[1:], *kwargs.values()])
                if name == "format":
                    self._check_format(args[0])
                self.spend(CALL + sum(size(value) for value in args))
                return self.handled(function(*args, **kwargs))

            return run

        def call(__self, __context: Any, __function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            # Names as jinja2 has them, so that a template's own do not collide.
            of = getattr(__function, "__self__", None)
            if isinstance(of, str):
                __self._check_widths(__function.__name__, [*args, *kwargs.values()])
                __self.spend(_text_size([of, *args, *kwargs.values()]))
            return __self.handled(super().call(__context, __function, *args, **kwargs))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "*" and isinstance(left, int) != isinstance(right, int):
                count, item = (left, right) if isinstance(left, int) else (right, left)
                self.spend(max(count, 0) * _size(item))
            elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
                bits = left.bit_length()
                self.spend(bits * abs(right) if operator == "**" else bits + right.bit_length())
            elif operator == "%" and isinstance(left, str):
                self._check_format(left)
                self.spend(_text_size(right))
            return self.handled(super().call_binop(context, operator, left, right))

        def wrap_str_format(self, value: Any) -> Any:
            wrapped = super().wrap_str_format(value)
            if wrapped is not None:
                self._check_format(value.__self__)
            return wrapped

        def _check_widths(self, name: str, arguments: Sequence[Any]) -> None:
            """Count the widths that arguments ask for: `"a".ljust(1000)`."""
            if name in WITH_WIDTHS:
                self.spend(sum(abs(value) for value in arguments if isinstance(value, int)))

        def _check_format(self, text: Any) -> None:
            """Refuse a format with a width that fills the memory."""
            if isinstance(text, str) and WIDE.search(text):
                self.spend(MOST_WORK + 1)

        def _generate(self, source: Any, *args: Any, **kwargs: Any) -> Any:
            source = _counting_class()(self).visit(source)
            source.set_environment(self)
            return super()._generate(source, *args, **kwargs)

    return Environment


@functools.cache
def _counting_class() -> type:
    jinja2 = _jinja2()
    import_extra("jinja2.visitor", extra="text", purpose="a chat template")
    nodes = jinja2.nodes

    base: Any = jinja2.visitor.NodeTransformer

    class Counting(base):  # type: ignore[misc]
        """Makes calls, which are counted, of what runs or grows without one."""

        def __init__(self, environment: Any) -> None:
            self._environment = environment

        def visit_For(self, node: Any) -> Any:  # noqa: N802 - jinja2's
            self.generic_visit(node)
            node.iter = self._call("counted", [node.iter], node)
            if node.recursive:
                tick = self._call("tick", [], node)
                node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
            return node

        def visit_Concat(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            return self._call("concatenated", node.nodes, node)

        def visit_Output(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            node.nodes = [
                part if isinstance(part, nodes.TemplateData) else self._call("shown", [part], node)
                for part in node.nodes
            ]
            return node

        def visit_Operand(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            if node.op.endswith("in"):  # with a "not" or without
                node.expr = self._call("handled", [node.expr], node.expr)
            return node

        def _call(self, name: str, arguments: list[Any], node: Any) -> Any:
            method = nodes.EnvironmentAttribute(name, lineno=node.lineno)
            return nodes.Call(method, arguments, [], None, None, lineno=node.lineno)

    return Counting


class _Counted:
    """Something to go through, of which each item costs."""

    def __init__(self, items: Any, spend: Callable[[int], None]) -> None:
        self._items, self._spend = items, spend

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._spend(ITEM)
            yield item

    def __len__(self) -> int:
        return len(self._items)


def _size(value: Any) -> int:
    """Characters of a text, items of a list."""
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 0


def _text_size(value: Any) -> int:
    """Characters of a value as text, about; what lies in it several times counts as often."""
    size, pending = 0, [value]
    while pending and size <= MOST_WORK:
        item = pending.pop()
        size += 50 + (len(item) if isinstance(item, str) else 0)
        if isinstance(item, dict):
            pending += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            pending += item
    return size
