"""The nodes of a file: operators of the allow list, each judged by its rule, in control flow as our
forms write it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from causal_onnx.runtime.artifact.protobuf import WindowedFile
from causal_onnx.runtime.contract import SLOT_AXES, Contract
from causal_onnx.runtime.scan.attributes import (
    check_attribute,
    check_value,
    contents,
    read_texts,
    tensors_of,
)
from causal_onnx.runtime.scan.decode import Message
from causal_onnx.runtime.scan.growth import Growth
from causal_onnx.runtime.scan.limits import Limits, Refused
from causal_onnx.runtime.scan.numbers import INTEGERS, Contents, joined, of_type
from causal_onnx.runtime.scan.rules import ALLOWED, CONTRIB, OPSETS
from causal_onnx.runtime.scan.sizes import (
    STATED,
    Number,
    add,
    axis,
    between,
    bounded_steps,
    chosen_by_caller,
    high_of,
    hull,
    infimum,
    low_of,
    subtract,
    supremum,
)
from causal_onnx.runtime.scan.tensors import BITS, STRING, TensorChecker
from causal_onnx.runtime.scan.values import BOOL, INT64, Node, Shape, Value, extent

__all__ = ["GraphChecker"]

IR_VERSIONS = (4, 14)
"""Of the file format, the first and the last that were reviewed; before, weights were inputs."""

MAX_BRANCHES = 4
"""Graphs in graphs. The tiled form has a Loop in a branch; a cached one no more."""

MAX_RANK = 16
"""Axes of a value. Modules have 3 to 6; many kernels have fixed room for some more."""

GRAPHS = {
    "If": {"then_branch", "else_branch"},
    "Loop": {"body"},
    "Scan": {"body"},
    "SequenceMap": {"body"},
}
"""Control flow, read here and not by a rule -> the graphs that it has."""


class _Scope:
    """What is known of the values of one graph, and of the graphs around it."""

    def __init__(self, outer: _Scope | None, *, times: float = 1, in_loop: bool = False) -> None:
        self.outer = outer
        self.times: float = times * (1 if outer is None else outer.times)
        self.in_loop: bool = in_loop or (outer is not None and outer.in_loop)
        self.depth: int = 0 if outer is None else outer.depth + 1
        self.values: dict[str, Value] = {}
        self.declared: dict[str, list[Message]] = {}
        """Axes that the file states of values that it computes; onnxruntime believes them."""

    def find(self, name: str) -> Value | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return None


class GraphChecker:
    """Checks the graphs of one file."""

    def __init__(
        self,
        source: WindowedFile,
        tensors: TensorChecker,
        limits: Limits,
        *,
        opsets: Sequence[Message],
        ir_version: int,
        contract: Contract | None = None,
        rows: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            source: The file.
            tensors: What judges its tensors.
            limits: What it may hold.
            opsets: The operator sets that it imports, as decoded.
            ir_version: The version of its format.
            contract: What requests are checked against before they reach the graph: which axes are
                of the same size, and which are never empty. None, when a file is only looked at:
                the names in the graph say so.
            rows: The most batch rows that a call may have, fewer than an open axis is judged at.
                None: any number.

        Raises:
            Refused: An operator set or the format is of a version that was not reviewed.
        """
        self._source = source
        self._tensors = tensors
        self._limits = limits
        self._opsets = _versions(opsets)
        self._contract = contract
        self._rows = rows
        self._budget = self._new_budget(0)
        self._axes: dict[str, Number] = {}
        if rows is not None:
            self._axes["batch"] = between((1,), (rows,))
        self._nodes = 0
        first, last = IR_VERSIONS
        if not first <= ir_version <= last:
            raise Refused(
                f"it is of the IR version {ir_version}; {first} to {last} were reviewed",
                f"set it with onnx: model.ir_version = 10 (it has to be one of {first} to {last})",
            )

    def check(self, graph: Message, scope: _Scope | None = None) -> list[Value]:
        """Check a graph and those inside it; returns what is known of its outputs.

        Raises:
            Refused: By name, what it holds that our forms do not, or what it takes.
        """
        if scope is None:
            with bounded_steps():
                return self._graph(graph, _Scope(None), is_main=True)
        return self._graph(graph, scope, is_main=False)

    def _graph(self, graph: Message, scope: _Scope, *, is_main: bool) -> list[Value]:
        if "sparse_initializer" in graph:
            raise Refused("it has sparse weights, which are small in the file and large in memory")
        for key in ("input", "output", "value_info"):
            for value in graph.get(key, []):
                check_value(value, key)
                if key != "input":
                    shape = value.get("type", {}).get("tensor_type", {}).get("shape")
                    if shape is not None:
                        scope.declared[value.get("name", "")] = shape.get("dim", [])
        if is_main:
            for value in graph.get("input", []):
                self._define(scope, value.get("name", ""), self._input_of(value), where="input")
        defaults = {value.get("name") for value in graph.get("input", [])} if is_main else set()
        for tensor in graph.get("initializer", []):
            self._initializer(tensor, scope, defaults)
        if is_main:
            self._budget = self._new_budget(self._tensors.bytes)
        for index, node in enumerate(graph.get("node", [])):
            self._nodes += 1
            if self._nodes > self._limits.max_nodes:
                raise Refused(
                    f"it has more than {self._limits.max_nodes} nodes",
                    "raise it: limits=Limits(max_nodes=...)",
                )
            self._node(node, scope, index)
        outputs = []
        for value in graph.get("output", []):
            found = scope.find(value.get("name", ""))
            if found is None:
                raise Refused(f"nothing computes the output {value.get('name', '')!r}")
            outputs.append(found)
        return outputs

    def _new_budget(self, weight_bytes: int) -> Growth:
        return Growth(self._limits, weight_bytes, rows=self._rows or STATED)

    def _define(self, scope: _Scope, name: str, value: Value, *, where: str) -> None:
        if not name:
            raise Refused(f"{where} has a value without a name")
        if name in scope.values:
            raise Refused(f"{where} defines the value {name!r} a second time")
        if value.dtype == STRING or value.dtype not in BITS:
            raise Refused(f"{where} has the value {name!r} of texts, expected numbers")
        scope.values[name] = value

    def _input_of(self, value: Message) -> Value:
        """An input of the file, whose sizes a caller chooses within the contract."""
        name = value.get("name", "")
        tensor = value.get("type", {}).get("tensor_type")
        if tensor is None:
            raise Refused(f"the input {name!r} is not a tensor")
        spec = None
        if self._contract is not None:
            spec = next((x for x in self._contract.inputs if x.name == name), None)
        dims: list[Message] | None = tensor["shape"].get("dim", []) if "shape" in tensor else None
        if dims is None and spec is None:
            raise Refused(f"the input {name!r} is of unknown rank")
        if dims is None:
            assert spec is not None
            dims = [{}] * len(spec.axes)
        axes: Sequence[str | int | None]
        if spec is not None and len(spec.axes) == len(dims):
            axes = spec.axes
        else:  # of another rank than the contract says, which `load` refuses
            axes = [dim.get("dim_param") for dim in dims]
        slots = self._slots(name)
        shape = [
            dim["dim_value"]
            if dim.get("dim_value")
            else slots
            if promised in SLOT_AXES
            else self._open_axis(promised)
            for dim, promised in zip(dims, axes, strict=True)
        ]
        dtype = tensor.get("elem_type", 0)
        known = None
        if spec is not None and spec.vocab_size is not None:
            known = Contents.any_of(between((0,), (spec.vocab_size - 1,)))
        elif self._contract is not None and name == self._contract.mask:
            known = Contents.any_of(between((0,), (1,)))
        elif dtype in INTEGERS:
            known = Contents(None, chosen_by_caller(*INTEGERS[dtype]))
        return Value(dtype, tuple(shape), of_type(known, dtype) if known else None)

    def _slots(self, name: str) -> Number:
        """How many slots a bounded past may have: few are less than an open axis is judged at."""
        pairs = () if self._contract is None else self._contract.cache
        bounded = next((pair.bounded for pair in pairs if pair.past == name), None)
        return axis(0) if bounded is None or bounded > STATED else between((0,), (bounded,))

    def _open_axis(self, promised: str | int | None) -> Number:
        """The size of an axis that the graph leaves open; requests keep to the contract."""
        if isinstance(promised, int):
            return promised
        if not promised:
            return axis(0)
        if promised not in self._axes:
            names = {
                x for spec in (self._contract.inputs if self._contract else ()) for x in spec.axes
            }
            if promised == "total_seq" and {"past_seq", "seq"} <= names:
                self._axes[promised] = add(self._open_axis("past_seq"), self._open_axis("seq"))
            else:
                self._axes[promised] = axis(0 if "past" in promised else 1)
        return self._axes[promised]

    def _initializer(self, tensor: Message, scope: _Scope, defaults: Set[Any]) -> None:
        name = tensor.get("name", "")
        where = f"the tensor {name!r}"
        shape = self._tensors.check(tensor, where, may_be_external=scope.depth == 0)
        known = contents(self._source, tensor, shape)
        if name in defaults:  # the default of an input, which a caller may replace
            return
        value = Value(tensor.get("data_type", 0), shape, known)
        self._define(scope, name, value, where=where)

    def _node(self, message: Message, scope: _Scope, index: int) -> None:
        op_type, domain = message.get("op_type", ""), message.get("domain", "")
        domain = "" if domain == "ai.onnx" else domain
        outputs = message.get("output", [])
        name = message.get("name") or next(iter(outputs), f"number {index}")
        where = f"the node {name!r} ({f'{domain}:' if domain else ''}{op_type})"
        self._check_operator(message, op_type, domain, where)
        inputs = [self._input(name, scope, where) for name in message.get("input", [])]
        attributes: dict[str, Message] = {}
        for attribute in message.get("attribute", []):
            key = attribute.get("name", "")
            if not key or key in attributes:
                raise Refused(f"{where} has an attribute {key!r} twice or without a name")
            attributes[key] = attribute
            check_attribute(attribute, where, op_type=op_type)
        read_texts(self._source, attributes)
        node = Node(op_type, domain, where, self._opsets[domain], inputs, len(outputs), attributes)
        graphs = {key: value["g"] for key, value in attributes.items() if "g" in value}
        expected = GRAPHS.get(op_type, set()) if not domain else set()
        if set(graphs) != expected:
            raise Refused(
                f"{where} has the graphs {', '.join(sorted(graphs)) or 'none'}, expected "
                f"{', '.join(sorted(expected)) or 'none'}"
            )
        self._read_tensors(node)
        cost = 1.0
        if op_type == "SequenceMap" and graphs:
            results = self._mapped(node, graphs["body"], scope)
        elif op_type == "If" and graphs:
            results = self._branches(node, graphs, scope)
        elif op_type == "Loop" and graphs:
            results = self._loop(node, message, graphs["body"], scope)
        elif op_type == "Scan" and graphs:
            results = self._scan(node, graphs["body"], scope)
        else:
            rule = ALLOWED[domain, op_type]
            if rule.check is not None:
                rule.check(node)
            results, cost = list(rule.result(node)), rule.cost
        results = [
            _as_declared(value, scope.declared.get(output))
            for value, output in zip(results, outputs, strict=False)
        ]
        if len(results) < len(outputs):
            node.refuse(f"has {len(outputs)} outputs, expected at most {len(results)}")
        for value in results:
            if len(value.shape) > MAX_RANK:
                node.refuse(f"gives a tensor of {len(value.shape)} axes, more than {MAX_RANK}")
        self._budget.take(node, results, cost, times=scope.times)
        for output, value in zip(outputs, results, strict=True):
            if output:
                self._define(scope, output, value, where=where)

    def _check_operator(self, node: Message, op_type: str, domain: str, where: str) -> None:
        if domain not in OPSETS:
            raise Refused(
                f"{where} is of the operator domain {domain!r}, expected ONNX's own or {CONTRIB}"
            )
        rule = ALLOWED.get((domain, op_type))
        if rule is None and (domain or op_type not in GRAPHS):
            raise Refused(f"{where} is not one of the operators that exports have")
        if domain not in self._opsets:
            raise Refused(f"{where} belongs to an operator set that the file does not import")
        if rule is not None and self._opsets[domain] < rule.since and not domain:
            raise Refused(f"{where} is of opset {rule.since}, and the file of an earlier one")
        if node.get("overload") or "device_configurations" in node:
            raise Refused(f"{where} is a call of a local function, or is placed on a device")

    def _input(self, name: str, scope: _Scope, where: str) -> Value | None:
        if not name:
            return None
        found = scope.find(name)
        if found is None:
            raise Refused(f"{where} reads {name!r}, which no earlier node computes")
        return found

    def _read_tensors(self, node: Node) -> None:
        """Put the tensors among the attributes where the rules look for them."""
        for key, tensor in tensors_of(node.attributes):
            shape = self._tensors.check(tensor, f"a tensor in {node.where}", may_be_external=False)
            dtype = tensor.get("data_type", 0)
            value = Value(dtype, shape, contents(self._source, tensor, shape))
            node.attributes[key]["value"] = value

    def _inner(self, node: Node, scope: _Scope, *, times: float = 1, in_loop: bool) -> _Scope:
        if scope.depth >= MAX_BRANCHES:
            node.refuse(f"is nested more than {MAX_BRANCHES} graphs deep")
        return _Scope(scope, times=times, in_loop=in_loop)

    def _branches(self, node: Node, graphs: dict[str, Message], scope: _Scope) -> list[Value]:
        condition = node.input(0).known
        results = []
        for key in ("then_branch", "else_branch"):
            if graphs[key].get("input"):
                node.refuse("has a branch with inputs")
            inner = self._inner(node, scope, in_loop=False)
            results.append(self.check(graphs[key], inner))
        then, other = results
        if condition is not None and condition.exact:
            return then if condition.exact[0] else other
        if len(then) != len(other):
            node.refuse("has branches with other numbers of outputs")
        return [_either(node, a, b) for a, b in zip(then, other, strict=True)]

    def _mapped(self, node: Node, body: Message, scope: _Scope) -> list[Value]:
        """A SequenceMap, as nodes for each tensor of a list that the graph writes out."""
        if len(node.inputs) != 1 or len(body.get("input", [])) != 1 or scope.in_loop:
            node.refuse("has several inputs, or is in a loop")
        results = []
        for part in node.listed(0):
            inner = self._inner(node, scope, in_loop=True)
            self._define(inner, body["input"][0].get("name", ""), part, where=node.where)
            results.append(self.check(body, inner))
        columns = zip(*results, strict=True)
        return [Value(parts[0].dtype, (), parts=tuple(parts)) for parts in columns]

    def _loop(self, node: Node, message: Message, body: Message, scope: _Scope) -> list[Value]:
        """A Loop stacks what each of a bounded number of steps gives, and carries nothing."""
        if scope.in_loop:
            node.refuse("is a loop in a loop")
        if len(node.inputs) != 2 or len(body.get("input", [])) != 2:
            node.refuse("carries values from step to step, which loops of exports do not")
        steps = node.inputs[0]
        known = None if steps is None else steps.known
        if not message["input"][0] or known is None or known.high >= 1 << 62:
            node.refuse("runs a number of times that does not come from the sizes of its inputs")
        most = self._limits.max_loop_steps
        if known.high > most:
            node.refuse(
                f"may run more than {most} times", "raise it: limits=Limits(max_loop_steps=...)"
            )
        count = known.all if known.low >= 0 else between((0,), high_of(hull([known.all, 0])))
        inner = self._inner(node, scope, times=extent(count), in_loop=True)
        step, going = (value.get("name", "") for value in body["input"])
        numbers = Contents.of([between((0,), high_of(count), subtract(count, 1))])
        self._define(inner, step, Value(INT64, (), numbers), where=node.where)
        # No step begins but where the condition is true.
        self._define(inner, going, Value(BOOL, (), Contents.of([1])), where=node.where)
        outputs = self.check(body, inner)
        if not outputs:
            node.refuse("has a body without outputs")
        first = node.inputs[1]
        conditions = [outputs[0].known, Contents.of([1]) if first is None else first.known]
        if any(found is None or found.exact != [1] for found in conditions):
            count = between((0,), high_of(count))  # it may end before all steps are done
        return [Value(value.dtype, (count, *value.shape)) for value in outputs[1:]]

    def _scan(self, node: Node, body: Message, scope: _Scope) -> list[Value]:
        """A Scan goes through tensors of one length, and carries states of unchanging shape."""
        if scope.in_loop:
            node.refuse("is a loop in a loop")
        count = node.number("num_scan_inputs")
        carried = len(node.inputs) - count
        given = [node.input(index) for index in range(len(node.inputs))]
        names = [value.get("name", "") for value in body.get("input", [])]
        if count < 1 or carried < 0 or len(names) != len(given):
            node.refuse(f"has {len(names)} inputs in its body for {len(given)} of its own")
        states, scanned = given[:carried], given[carried:]
        axes = node.several("scan_input_axes") or [0] * count
        if len(axes) != count:
            node.refuse(f"has {len(axes)} axes for {count} scanned inputs")
        lengths, items = [], []
        for value, number in zip(scanned, axes, strict=True):
            rank = len(value.shape)
            if not -rank <= number < rank:
                node.refuse(f"goes along the axis {number} of a tensor of {rank} axes")
            place = number % rank
            lengths.append(value.shape[place])
            shape = (*value.shape[:place], *value.shape[place + 1 :])
            items.append(Value(value.dtype, shape))
        most = self._limits.max_loop_steps
        if any(extent(length) > most for length in lengths):
            node.refuse(
                f"may run more than {most} times", "raise it: limits=Limits(max_loop_steps=...)"
            )
        inner = self._inner(node, scope, times=max(map(extent, lengths)), in_loop=True)
        kept = [Value(value.dtype, value.shape) for value in states]
        for name, value in zip(names, [*kept, *items], strict=True):
            self._define(inner, name, value, where=node.where)
        outputs = self.check(body, inner)
        if len(outputs) < carried:
            node.refuse(f"has a body with {len(outputs)} outputs, expected {carried} and more")
        for before, after in zip(kept, outputs, strict=False):
            if (before.dtype, before.shape) != (after.dtype, after.shape):
                node.refuse("carries a state whose type or shape changes from step to step")
        places = node.several("scan_output_axes") or [0] * (len(outputs) - carried)
        if len(places) != len(outputs) - carried:
            node.refuse(f"has {len(places)} axes for {len(outputs) - carried} stacked outputs")
        stacked = []
        for value, number in zip(outputs[carried:], places, strict=True):
            rank = len(value.shape) + 1
            if not -rank <= number < rank:
                node.refuse(f"stacks along the axis {number} of a tensor of {rank} axes")
            place = number % rank
            shape = (*value.shape[:place], lengths[0], *value.shape[place:])
            stacked.append(Value(value.dtype, shape))
        return [*kept, *stacked]


def _versions(opsets: Sequence[Message]) -> dict[str, int]:
    found: dict[str, int] = {}
    for opset in opsets:
        domain, version = opset.get("domain", ""), opset.get("version", 0)
        domain = "" if domain == "ai.onnx" else domain
        if domain in found:
            raise Refused(f"it imports the operators of {domain or 'ONNX'} twice")
        first, last = OPSETS.get(domain, (version, version))
        if not first <= version <= last:
            raise Refused(
                f"it imports version {version} of the operators of {domain or 'ONNX'}; {first} to "
                f"{last} were reviewed",
                "convert it: onnx.version_converter.convert_version",
            )
        found[domain] = version
    return found


def _as_declared(value: Value, dims: list[Message] | None) -> Value:
    """Widened to the sizes that the file states, by which onnxruntime computes shapes at load."""
    if dims is None or len(dims) != len(value.shape):
        return value
    shape: list[Number] = list(value.shape)
    for index, dim in enumerate(dims):
        stated = dim.get("dim_value")
        if stated is None:
            continue
        size = shape[index]
        if not infimum(low_of(size)) <= stated <= supremum(high_of(size), STATED):
            shape[index] = hull([size, stated])
    return Value(value.dtype, tuple(shape), value.known)


def _either(node: Node, a: Value, b: Value) -> Value:
    """What one of two branches gives."""
    if a.dtype != b.dtype:
        node.refuse("has branches with outputs of other types")
    if len(a.shape) != len(b.shape):
        node.refuse(f"has branches with outputs of {len(a.shape)} and {len(b.shape)} axes")
    shape: Shape = tuple(hull([x, y]) for x, y in zip(a.shape, b.shape, strict=True))
    return Value(a.dtype, shape, joined([a.known, b.known]))
