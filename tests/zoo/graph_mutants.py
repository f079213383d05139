"""Ways to break a good ONNX graph, each by one edit that leaves it loadable.

A mutation takes a model and gives a broken copy, or None where the graph has no such place. They
look at the main graph only, and work on graphs by hand and by exporters alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["GRAPH_MUTANTS", "GraphMutant"]

MASKED_BELOW = -1e4
"""A floating constant at or below this stands for "must not be seen"."""


@dataclass(frozen=True, kw_only=True)
class GraphMutant:
    """One way to break a graph."""

    name: str
    mutate: Callable[[onnx.ModelProto], onnx.ModelProto | None]
    """A broken copy, or None if the pattern is not there; the argument is left as it was."""
    breaks: str
    """The operator that a finding may name: of the edited node, or of the core that reads it."""
    kind: str = "leak"
    """As `Mutant.kind`."""


Edit = Callable[["Editor"], bool]
_mutants: list[GraphMutant] = []


def mutation(name: str, *, breaks: str, kind: str = "leak") -> Callable[[Edit], Edit]:
    def register(edit: Edit) -> Edit:
        def mutate(model: onnx.ModelProto) -> onnx.ModelProto | None:
            editor = Editor(model)
            return editor.model if edit(editor) else None

        _mutants.append(GraphMutant(name=name, mutate=mutate, breaks=breaks, kind=kind))
        return edit

    return register


class Editor:
    """A copy of a model, with what the edits below need to find and change."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph

    def nodes(self, *operators: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.graph.node if node.op_type in operators)

    def maker(self, value: str) -> onnx.NodeProto | None:
        """The node that gives `value`; None for inputs and initialisers."""
        return next((node for node in self.graph.node if value in node.output), None)

    def readers(self, value: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if value in node.input]

    def constant(self, value: str) -> np.ndarray | None:
        """The value of an initialiser or a Constant node, or None."""
        for tensor in self.graph.initializer:
            if tensor.name == value:
                return numpy_helper.to_array(tensor)
        node = self.maker(value)
        if node is None or node.op_type != "Constant":
            return None
        held = node.attribute[0]
        if held.name == "value":
            return numpy_helper.to_array(held.t)
        kind = np.float32 if "float" in held.name else np.int64
        return np.asarray(helper.get_attribute_value(held), dtype=kind)

    def new_constant(self, stem: str, array: np.ndarray) -> str:
        name = f"mutant_{stem}_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def insert_before(self, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        at = next(i for i, item in enumerate(self.graph.node) if item is node or item == node)
        for offset, item in enumerate(new):
            self.graph.node.insert(at + offset, item)

    def attribute(self, node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
        return next((item for item in node.attribute if item.name == name), None)

    def drop_attribute(self, node: onnx.NodeProto, name: str) -> bool:
        held = self.attribute(node, name)
        if held is None:
            return False
        node.attribute.remove(held)
        return True

    def set_attribute(self, node: onnx.NodeProto, name: str, value: object) -> None:
        self.drop_attribute(node, name)
        node.attribute.append(helper.make_attribute(name, value))

    def is_masked_value(self, value: str) -> bool:
        array = self.constant(value)
        return (
            array is not None
            and array.dtype.kind == "f"
            and array.size > 0
            and bool((array <= MASKED_BELOW).all())
        )

    def leads_to_softmax(self, node: onnx.NodeProto) -> bool:
        """Whether the node's output reaches a Softmax through element-wise operators alone."""
        passing = ("Add", "Mul", "Where", "Cast", "Identity", "Unsqueeze", "Expand", "Reshape")
        seen: list[onnx.NodeProto] = [node]
        while seen:
            for reader in self.readers(seen.pop().output[0]):
                if reader.op_type in ("Softmax", "Attention", "ReduceMax"):
                    return True
                if reader.op_type in passing:
                    seen.append(reader)
        return False

    def from_product(self, value: str) -> bool:
        """Whether `value` is a product of two computed matrices, scaled or cast at most."""
        node = self.maker(value)
        while node is not None and node.op_type in ("Mul", "Div", "Cast", "Where", "Add", "Tanh"):
            node = next((m for m in map(self.maker, node.input) if m is not None), None)
        return node is not None and node.op_type in ("MatMul", "Gemm", "Einsum")

    def output_seq_axis(self) -> int | None:
        """The axis of the first output that is called seq, or its second of three."""
        dims = self.graph.output[0].type.tensor_type.shape.dim
        named = [i for i, dim in enumerate(dims) if dim.dim_param == "seq"]
        if named:
            return named[0]
        return 1 if len(dims) == 3 else None

    def rename_output(self) -> tuple[str, str]:
        """Free the first output's name; (the value that was it, the name to give again)."""
        name = self.graph.output[0].name
        inner = f"{name}_before_mutant"
        for node in self.graph.node:
            for i, value in enumerate(node.output):
                if value == name:
                    node.output[i] = inner
            for i, value in enumerate(node.input):
                if value == name:
                    node.input[i] = inner
        return inner, name


@mutation("trilu_flipped", breaks="Trilu")
def trilu_flipped(edit: Editor) -> bool:
    """Keep the other triangle."""
    for node in edit.nodes("Trilu"):
        held = edit.attribute(node, "upper")
        edit.set_attribute(node, "upper", 1 - (held.i if held else 1))
        return True
    return False


@mutation("trilu_shifted", breaks="Trilu")
def trilu_shifted(edit: Editor) -> bool:
    """Move the diagonal by one: each position sees its successor."""
    for node in edit.nodes("Trilu"):
        one = edit.new_constant("one", np.array(1, dtype=np.int64))
        if len(node.input) < 2 or not node.input[1]:
            del node.input[1:]
            node.input.append(one)
        else:
            moved = f"{node.output[0]}_moved"
            edit.insert_before(node, helper.make_node("Add", [node.input[1], one], [moved]))
            node.input[1] = moved
        return True
    return False


@mutation("trilu_one_by_one", breaks="Trilu")
def trilu_one_by_one(edit: Editor) -> bool:
    """Keep the mask's corner alone: [1, 1], which broadcasts."""
    if any(edit.nodes("Attention")):  # takes no mask that would have to be broadcast
        return False
    for node in edit.nodes("Trilu"):
        whole = f"{node.output[0]}_whole"
        starts = edit.new_constant("starts", np.array([0, 0], dtype=np.int64))
        ends = edit.new_constant("ends", np.array([1, 1], dtype=np.int64))
        axes = edit.new_constant("axes", np.array([-2, -1], dtype=np.int64))
        cut = helper.make_node("Slice", [whole, starts, ends, axes], [node.output[0]])
        node.output[0] = whole
        reader = edit.readers(cut.output[0])[0]
        edit.insert_before(reader, cut)
        return True
    return False


@mutation("trilu_far_future_shown", breaks="Trilu")
def trilu_far_future_shown(edit: Editor) -> bool:
    """Show keys seven or more ahead: nothing is wrong at the lengths of an example."""
    for node in edit.nodes("Trilu"):
        upper = edit.attribute(node, "upper")
        keeps_lower = upper is not None and upper.i == 0
        near, result = f"{node.output[0]}_near", node.output[0]
        node.output[0] = near
        reader = edit.readers(result)[0]
        if keeps_lower:  # 1 means seen: put ones back where j - i >= 7
            seven = edit.new_constant("seven", np.array(7, dtype=np.int64))
            far = f"{result}_far"
            edit.insert_before(
                reader,
                helper.make_node("Trilu", [node.input[0], seven], [far], upper=1),
                helper.make_node("Max", [near, far], [result]),
            )
        else:  # not 0 means hidden: zeros where j - i >= 7
            six = edit.new_constant("six", np.array(6, dtype=np.int64))
            edit.insert_before(reader, helper.make_node("Trilu", [near, six], [result], upper=0))
        return True
    return False


@mutation("where_swapped", breaks="Where")
def where_swapped(edit: Editor) -> bool:
    """Hide what was shown, and show what was hidden."""
    for node in edit.nodes("Where"):
        if edit.is_masked_value(node.input[1]) or edit.is_masked_value(node.input[2]):
            node.input[1], node.input[2] = node.input[2], node.input[1]
            return True
    return False


@mutation("masked_value_zeroed", breaks="Softmax")
def masked_value_zeroed(edit: Editor) -> bool:
    """Replace the number that hides by 0."""
    done = False
    for node in list(edit.graph.node):
        held = edit.attribute(node, "value")
        if node.op_type == "ConstantOfShape" and held is not None:
            array = numpy_helper.to_array(held.t)
            if array.dtype.kind == "f" and float(array.reshape(-1)[0]) <= MASKED_BELOW:
                edit.set_attribute(node, "value", numpy_helper.from_array(np.zeros_like(array)))
                done = True
        for i, value in enumerate(node.input):
            if value and edit.is_masked_value(value):
                array = edit.constant(value)
                assert array is not None
                node.input[i] = edit.new_constant("zero", np.zeros_like(array))
                done = True
    return done


@mutation("masked_value_too_small", breaks="Softmax")
def masked_value_too_small(edit: Editor) -> bool:
    """Replace the number that hides by -3, which scores overcome."""
    for node in list(edit.graph.node):
        for i, value in enumerate(node.input):
            if value and edit.is_masked_value(value):
                array = edit.constant(value)
                assert array is not None
                node.input[i] = edit.new_constant("small", np.full_like(array, -3.0))
                return True
    return False


@mutation("comparison_flipped", breaks="Where")
def comparison_flipped(edit: Editor) -> bool:
    """Turn <= into >= in the comparison of positions."""
    other = {
        "LessOrEqual": "GreaterOrEqual",
        "GreaterOrEqual": "LessOrEqual",
        "Less": "Greater",
        "Greater": "Less",
    }
    for node in edit.nodes(*other):
        if all(edit.constant(value) is None for value in node.input):
            node.op_type = other[node.op_type]
            return True
    return False


@mutation("not_removed", breaks="Where")
def not_removed(edit: Editor) -> bool:
    """Leave out the negation of the mask."""
    for node in edit.nodes("Not"):
        node.op_type = "Identity"
        return True
    return False


def _without_mask(edit: Editor, operator: str) -> bool:
    for node in edit.nodes(operator):
        if not edit.leads_to_softmax(node):
            continue
        scores = [value for value in node.input if edit.from_product(value)]
        if len(scores) == 1:
            del node.input[:]
            node.input.append(scores[0])
            del node.attribute[:]
            node.op_type = "Identity"
            return True
    return False


@mutation("mask_add_bypassed", breaks="Softmax")
def mask_add_bypassed(edit: Editor) -> bool:
    """Do not add the mask."""
    return _without_mask(edit, "Add")


@mutation("mask_where_bypassed", breaks="Softmax")
def mask_where_bypassed(edit: Editor) -> bool:
    """Do not put the mask in."""
    return _without_mask(edit, "Where")


@mutation("softmax_axis", breaks="Softmax")
def softmax_axis(edit: Editor) -> bool:
    """Normalise over the queries."""
    for node in edit.nodes("Softmax"):
        edit.set_attribute(node, "axis", -2)
        return True
    return False


@mutation("weights_transposed", breaks="MatMul")
def weights_transposed(edit: Editor) -> bool:
    """Multiply the values with the transposed weights."""
    if any("past" in item.name for item in edit.graph.input):  # the weights are not square
        return False
    for node in edit.nodes("Softmax"):
        reader = next((r for r in edit.readers(node.output[0]) if r.op_type == "MatMul"), None)
        if reader is None:
            continue
        rank = _rank(edit, node)
        if rank is None:
            continue
        perm = [*range(rank - 2), rank - 1, rank - 2]
        turned = f"{node.output[0]}_turned"
        edit.insert_before(
            reader, helper.make_node("Transpose", [node.output[0]], [turned], perm=perm)
        )
        reader.input[0] = turned
        return True
    return False


def _rank(edit: Editor, node: onnx.NodeProto) -> int | None:
    """The rank of a node's output: from value_info, else from the shapes onnx infers."""
    inferred = onnx.shape_inference.infer_shapes(edit.model)
    for info in (*edit.graph.value_info, *inferred.graph.value_info):
        if info.name == node.output[0] and info.type.tensor_type.HasField("shape"):
            return len(info.type.tensor_type.shape.dim)
    return None


@mutation("attention_not_causal", breaks="Attention")
def attention_not_causal(edit: Editor) -> bool:
    """Remove is_causal."""
    done = [edit.drop_attribute(node, "is_causal") for node in edit.nodes("Attention")]
    return any(done)


@mutation("attention_mask_removed", breaks="Attention")
def attention_mask_removed(edit: Editor) -> bool:
    """Give the Attention operator no mask."""
    for node in edit.nodes("Attention"):
        if len(node.input) > 3 and node.input[3]:
            node.input[3] = ""
            return True
    return False


@mutation("mha_bidirectional", breaks="MultiHeadAttention")
def mha_bidirectional(edit: Editor) -> bool:
    """Remove unidirectional."""
    done = [edit.drop_attribute(n, "unidirectional") for n in edit.nodes("MultiHeadAttention")]
    return any(done)


@mutation("gqa_window_lost", breaks="GroupQueryAttention", kind="footprint")
def gqa_window_lost(edit: Editor) -> bool:
    """See the whole past where a window was declared."""
    done = [edit.drop_attribute(n, "local_window_size") for n in edit.nodes("GroupQueryAttention")]
    return any(done)


@mutation("gqa_window_wider", breaks="GroupQueryAttention", kind="footprint")
def gqa_window_wider(edit: Editor) -> bool:
    """See one key more than declared."""
    for node in edit.nodes("GroupQueryAttention"):
        held = edit.attribute(node, "local_window_size")
        if held is not None and held.i > 0:
            edit.set_attribute(node, "local_window_size", held.i + 1)
            return True
    return False


@mutation("merge_not_transposed", breaks="Reshape")
def merge_not_transposed(edit: Editor) -> bool:
    """Merge heads without moving them behind the positions first."""
    for node in edit.nodes("Transpose"):
        held = edit.attribute(node, "perm")
        feeds = edit.readers(node.output[0])
        if held is None or list(held.ints) != [0, 2, 1, 3] or len(feeds) != 1:
            continue
        source = edit.maker(node.input[0])
        if feeds[0].op_type == "Reshape" and source is not None and source.op_type != "Reshape":
            merged, good = feeds[0].output[0], f"{feeds[0].output[0]}_good"
            reader = next(iter(edit.readers(merged)), None)
            if reader is None:  # the merged heads are the graph's output
                continue
            feeds[0].output[0] = good
            shape = f"{merged}_shape"
            edit.insert_before(
                reader,
                helper.make_node("Shape", [good], [shape]),
                helper.make_node("Reshape", [node.input[0], shape], [merged]),
            )
            return True
    return False


@mutation("norm_over_time", breaks="ReduceMean")
def norm_over_time(edit: Editor) -> bool:
    """Take a norm's mean over positions in the place of features."""
    for node in edit.nodes("ReduceMean"):
        held = edit.attribute(node, "axes")
        if held is not None:
            edit.set_attribute(node, "axes", [1])
            return True
        axes = edit.constant(node.input[1]) if len(node.input) > 1 else None
        if axes is not None and list(np.atleast_1d(axes)) in ([-1], [2]):
            node.input[1] = edit.new_constant("axes", np.array([1], dtype=np.int64))
            return True
    return False


@mutation("cumsum_reversed", breaks="CumSum")
def cumsum_reversed(edit: Editor) -> bool:
    """Sum what is still to come."""
    for node in edit.nodes("CumSum"):
        if edit.leads_to_softmax(node):
            continue
        edit.set_attribute(node, "reverse", 1)
        return True
    return False


@mutation("conv_padded_both_sides", breaks="Conv")
def conv_padded_both_sides(edit: Editor) -> bool:
    """Move one step of a causal convolution's padding to the right."""
    for node in edit.nodes("Conv"):
        held = edit.attribute(node, "pads")
        if held is not None and len(held.ints) == 2 and held.ints[0] > 0 and held.ints[1] == 0:
            edit.set_attribute(node, "pads", [held.ints[0] - 1, 1])
            return True
    return False


@mutation("past_joined_behind", breaks="Concat")
def past_joined_behind(edit: Editor) -> bool:
    """Put the past behind the present: the mask no longer fits the keys."""
    pasts = {item.name for item in edit.graph.input if "past" in item.name}
    done = False
    for node in edit.nodes("Concat"):
        if len(node.input) == 2 and node.input[0] in pasts:
            node.input[0], node.input[1] = node.input[1], node.input[0]
            done = True
    return done


@mutation("past_not_counted", breaks="Trilu", kind="footprint")
def past_not_counted(edit: Editor) -> bool:
    """Align the mask to the upper left, though there is a past."""
    if not any("past" in item.name for item in edit.graph.input):
        return False
    for node in edit.nodes("Trilu"):
        if len(node.input) > 1 and edit.constant(node.input[1]) is None:
            node.input[1] = edit.new_constant("zero", np.array(0, dtype=np.int64))
            return True
    return False


@mutation("past_counted_twice", breaks="Trilu")
def past_counted_twice(edit: Editor) -> bool:
    """Move the diagonal by the past's length once more."""
    if not any("past" in item.name for item in edit.graph.input):
        return False
    for node in edit.nodes("Trilu"):
        if len(node.input) > 1 and edit.constant(node.input[1]) is None:
            twice = f"{node.input[1]}_twice"
            add = helper.make_node("Add", [node.input[1], node.input[1]], [twice])
            edit.insert_before(node, add)
            node.input[1] = twice
            return True
    return False


def _at_output(edit: Editor, *nodes: Callable[[str, str, int], onnx.NodeProto]) -> bool:
    """Put `nodes` in a chain between the first output and its maker."""
    axis = edit.output_seq_axis()
    if axis is None or edit.graph.output[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        return False
    inner, name = edit.rename_output()
    value = inner
    for i, make in enumerate(nodes):
        result = name if i == len(nodes) - 1 else f"{inner}_{i}"
        edit.graph.node.append(make(value, result, axis))
        value = result
    return True


@mutation("output_reversed", breaks="Slice")
def output_reversed(edit: Editor) -> bool:
    """Give the positions in reversed order."""

    def reverse(value: str, result: str, axis: int) -> onnx.NodeProto:
        bounds = (("from", -1), ("to", np.iinfo(np.int64).min), ("axis", axis), ("step", -1))
        names = [edit.new_constant(stem, np.array([v], dtype=np.int64)) for stem, v in bounds]
        return helper.make_node("Slice", [value, *names], [result])

    return _at_output(edit, reverse)


@mutation("mean_subtracted", breaks="ReduceMean")
def mean_subtracted(edit: Editor) -> bool:
    """Subtract the mean over positions."""
    mean = "mutant_mean"

    def reduce(value: str, result: str, axis: int) -> onnx.NodeProto:
        axes = edit.new_constant("axes", np.array([axis], dtype=np.int64))
        inputs = [value, axes] if _opset(edit) >= 18 else [value]
        node = helper.make_node("ReduceMean", inputs, [mean], keepdims=1)
        if _opset(edit) < 18:
            edit.set_attribute(node, "axes", [axis])
        edit.graph.node.append(node)
        return helper.make_node("Sub", [value, mean], [result])

    return _at_output(edit, reduce)


@mutation("softmax_over_time", breaks="Softmax")
def softmax_over_time(edit: Editor) -> bool:
    """Normalise the output over positions."""
    return _at_output(
        edit, lambda value, result, axis: helper.make_node("Softmax", [value], [result], axis=axis)
    )


@mutation("successor_added", breaks="Slice")
def successor_added(edit: Editor) -> bool:
    """Put every position's successor in its place; the last one becomes 0."""

    def shift(value: str, result: str, axis: int) -> onnx.NodeProto:
        bounds = (("from", 1), ("to", np.iinfo(np.int64).max), ("axis", axis))
        names = [edit.new_constant(stem, np.array([v], dtype=np.int64)) for stem, v in bounds]
        return helper.make_node("Slice", [value, *names], [result])

    def pad(value: str, result: str, axis: int) -> onnx.NodeProto:
        rank = len(edit.graph.output[0].type.tensor_type.shape.dim)
        pads = np.zeros(2 * rank, dtype=np.int64)
        pads[rank + axis] = 1
        return helper.make_node("Pad", [value, edit.new_constant("pads", pads)], [result])

    return _at_output(edit, shift, pad)


def _opset(edit: Editor) -> int:
    return next(item.version for item in edit.model.opset_import if item.domain in ("", "ai.onnx"))


GRAPH_MUTANTS: tuple[GraphMutant, ...] = tuple(_mutants)
