"""The analysis against the truth: what moves in onnxruntime, element by element, node by node."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from causal_onnx.export.analysis.elements import NONE, Elements, Known, view
from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.analysis.interpret import Constants, Run, run
from causal_onnx.export.analysis.signature import Signature, Sizes, read_signature
from causal_onnx.export.proof.perturb import make_input
from causal_onnx.export.proof.symbolic.adopt import assignment
from causal_onnx.export.proof.symbolic.engine import Prover
from causal_onnx.export.proof.symbolic.poly import Poly
from tests.zoo import GRAPHS

from .graphs import static
from .rule_cases import CASES

Array = np.ndarray[Any, np.dtype[Any]]

MODELS = {case.name: case.model for case in CASES} | {graph.name: graph.model for graph in GRAPHS}


def analysed(model: ir.Model) -> tuple[Signature, Sizes, Run]:
    signature = read_signature(model)
    past = 3 if signature.has_past else 0
    sizes = Sizes(batch=2, seq=signature.fixed_seq or 5, past_seq=past)
    return signature, sizes, run(model, signature, sizes, Constants())


def session_with_everything(model: ir.Model, names: list[str]) -> ort.InferenceSession:
    proto = ir.to_proto(model)
    have = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in have)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def moved(a: Array, b: Array) -> Array:
    if a.dtype.kind != "f":
        return np.asarray(a != b)
    return ~((a == b) | (np.isnan(a) & np.isnan(b)))


@pytest.mark.parametrize("name", MODELS)
def test_nothing_moves_that_is_said_to_stay(name: str) -> None:
    model = load_model(MODELS[name]())
    signature, sizes, found = analysed(model)
    tensors = {
        value.name: tensor
        for value, tensor in found.values.items()
        if isinstance(tensor, Elements)
        and value.name
        and value.producer() is not None
        and value.producer().graph is model.graph
    }
    names = list(tensors)
    session = session_with_everything(model, names)
    rng = np.random.default_rng(0)
    feeds = {s.name: make_input(s, sizes, rng, None) for s in signature.inputs}
    base = dict(zip(names, session.run(names, feeds), strict=True))
    for position in range(sizes.total_seq):
        changed = {}
        for spec in signature.inputs:
            array = feeds[spec.name].copy()
            axis = spec.position_axis
            index = position - spec.first_position(sizes)
            if axis is not None and 0 <= index < array.shape[axis]:
                where = (slice(None),) * axis + (index,)
                array[where] = 3 * make_input(spec, sizes, rng, None)[where]
            changed[spec.name] = array
        after = dict(zip(names, session.run(names, changed), strict=True))
        for value, tensor in tensors.items():
            if isinstance(base[value], np.ndarray):
                assert base[value].shape == tensor.shape, value
                reach = view(tensor.reach, tensor.shape)
                assert not (moved(base[value], after[value]) & (reach < position)).any(), value


@pytest.mark.parametrize("name", MODELS)
def test_values_said_to_be_known_are_those_of_the_runtime(name: str) -> None:
    model = load_model(MODELS[name]())
    signature, sizes, found = analysed(model)
    tensors = {
        value.name: tensor
        for value, tensor in found.values.items()
        if value.name
        and value.producer() is not None
        and value.producer().graph is model.graph
        and (
            isinstance(tensor, Known) or (isinstance(tensor, Elements) and tensor.known is not None)
        )
    }
    names = list(tensors)
    if not names:
        return  # run([]) would mean all outputs
    session = session_with_everything(model, names)
    rng = np.random.default_rng(0)
    feeds = {s.name: make_input(s, sizes, rng, None) for s in signature.inputs}
    for value, real in zip(names, session.run(names, feeds), strict=True):
        tensor = tensors[value]
        if not isinstance(real, np.ndarray) or real.dtype.kind not in "fiub":
            continue
        known = np.ones(tensor.shape, np.bool_)
        if isinstance(tensor, Elements) and tensor.known is not None:
            known = view(tensor.known, tensor.shape)
        assert tensor.value is not None
        mine = np.broadcast_to(tensor.value, tensor.shape)[known].astype(np.float64)
        np.testing.assert_allclose(mine, real[known].astype(np.float64), rtol=1e-5, err_msg=value)


def at(poly: Poly, values: Mapping[str, Any]) -> Any:
    total: Any = 0
    for monomial, coefficient in poly.terms.items():
        part: Any = coefficient
        for variable, power in monomial:
            part = part * values[variable] ** power
        total = total + part
    return total


def quotients(prover: Prover, sizes: Mapping[str, int]) -> dict[str, int]:
    """The numbers of chunks at these sizes."""
    found: dict[str, int] = {}
    for (number, divisor), quotient in prover.space.quotients.items():
        (name,) = quotient.variables()
        found[name] = at(number, {**sizes, **found}) // divisor
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_symbolic_proof_covers_the_elements_at_every_size(name: str) -> None:
    proof = static(MODELS[name]())
    assert proof.analysis is not None
    if proof.analysis.signature.fixed_seq is not None:
        return
    prover = Prover(proof.analysis)
    prover.follow()
    checked = 0
    for value, tensor in prover.values.items():
        for one in proof.analysis.runs[:8]:
            found = one.values.get(value)
            sizes = {**assignment(one.sizes), **quotients(prover, assignment(one.sizes))}
            if not isinstance(found, Elements | Known):
                continue
            if any(at(limit, sizes) < 0 for limit in prover.space.limits):
                continue
            shape = tuple(at(size, sizes) for size in prover.space.shape(tensor))
            assert shape == found.shape, value.name
            if not isinstance(found, Elements):
                continue
            variables = [n for axis in tensor.axes for n in axis]
            full = [at(prover.space.bounds.sizes[n], sizes) for n in variables]
            grid: dict[str, Any] = dict(sizes)
            for i, variable in enumerate(variables):
                line = [-1 if j == i else 1 for j in range(len(full))]
                grid[variable] = np.arange(full[i]).reshape(line)
            bound = np.full(full, NONE, np.int64)
            for term in tensor.terms:
                holds = np.ones(full, np.bool_)
                for poly in term.where:
                    holds = holds & (np.asarray(at(poly, grid)) >= 0)
                bound = np.where(holds, np.maximum(bound, at(term.reach, grid)), bound)
            assert (view(found.reach, found.shape).reshape(full) <= bound).all(), value.name
            checked += 1
    assert checked
