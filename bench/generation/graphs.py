"""What a quantised file holds in few bits, read from the file itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

__all__ = ["describe_graph"]


def describe_graph(path: Path) -> str:
    """One line: products in few bits, how the embedding is stored, what is left in floats, size."""
    import onnx  # noqa: PLC0415 - only where there are files to look at

    graph = onnx.load(path, load_external_data=False).graph
    products: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            values = {attribute.name: attribute.i for attribute in node.attribute}
            products[
                f"{values['bits']} bits in blocks of {values['block_size']}, "
                f"accuracy_level {values.get('accuracy_level', 0)}"
            ] += 1
    weights = {x.name for x in graph.initializer if len(x.dims) == 2}
    plain = sum(
        node.op_type in ("MatMul", "Gemm") and any(name in weights for name in node.input)
        for node in graph.node
    )
    lookups = [node for node in graph.node if node.op_type == "GatherBlockQuantized"]
    scales = {node.input[2] for node in graph.node if node.op_type == "MatMulNBits"}
    # The codes are reshaped on the way, the scales are not.
    tied = any(node.input[2] in scales for node in lookups)
    embedding = (
        f"the embedding too{', one copy with the head' if tied else ', a copy of its own'}"
        if lookups
        else "the embedding in floats"
    )
    parts = [f"{count} products of {how}" for how, count in products.items()]
    parts += [embedding, f"{plain} products in floats"]
    return f"{'; '.join(parts)}; {_size(path) / 1e6:.1f} MB"


def _size(path: Path) -> int:
    """With the weights beside it."""
    return sum(found.stat().st_size for found in path.parent.glob(f"{path.name}*"))
