"""An attention's fused projection as three, which is what TensorRT multiplies in INT8.

Measured with TensorRT-RTX 1.7: it pulls the split into query, key and value through the reshape into the weights, for
which it dequantizes them, and so a quarter of a block's products runs in float; three products it joins by itself.
"""

from typing import Any, Final

import numpy as np

from export.onnx_graph import serialized

CHAIN: Final = ("MatMul", "Add", "Reshape", "Transpose")
PARTS: Final = ("query", "key", "value")
ORDER: Final = [2, 0, 3, 1, 4]  # (batch, tokens, 3, heads, width) to (3, batch, heads, tokens, width)


def split_projections(model: bytes) -> bytes:
    """The quantized ONNX model with every fused int8 projection split: the same integers, the same answers.

    `blocks.0.attention.qkv` becomes `blocks.0.attention.qkv.query`, `.key` and `.value`.
    """
    import onnx

    made = onnx.load_model_from_string(model)
    graph = made.graph
    producers = {output: node for node in graph.node for output in node.output}
    replaced: dict[str, list[Any]] = {}
    gone: set[str] = set()
    for node in graph.node:
        if node.op_type == CHAIN[0] and node.input[1] in producers and (found := _follow(graph, node)):
            dequantize = producers[node.input[1]]
            replaced[node.output[0]] = _three(graph, dequantize, *found)
            gone |= {output for one in (dequantize, *found[0], *found[1]) for output in one.output}
    instead = [replaced.get(node.output[0], [] if node.output[0] in gone else [node]) for node in graph.node]
    nodes = [node for some in instead for node in some]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    held = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(held)
    onnx.checker.check_model(made, full_check=True)
    return serialized(made)


def _follow(graph: Any, product: Any) -> tuple[list[Any], list[Any]] | None:
    """The nodes from the product to its transposition, and the three that pick from it; None for another pattern."""
    chain = [product]
    for kind in CHAIN[1:]:
        users = _users(graph, chain[-1].output[0])
        if [user.op_type for user in users] != [kind]:
            return None
        chain += users
    picks = _users(graph, chain[-1].output[0])
    order = [number for attribute in chain[-1].attribute for number in attribute.ints]
    constants = {initializer.name for initializer in graph.initializer}
    if order != ORDER or {pick.op_type for pick in picks} != {"Gather"} or chain[2].input[1] not in constants:
        return None
    picked = [_constant(graph, pick.input[1]) for pick in picks if pick.input[1] in constants]
    return (chain, picks) if picked == [0, 1, 2] else None


def _three(graph: Any, dequantize: Any, chain: list[Any], picks: list[Any]) -> list[Any]:
    """The nodes of query, key and value; their weights, scales and biases are added to the graph."""
    from onnx import helper, numpy_helper

    product, add, reshape, _ = chain
    bias = next(name for name in add.input if name != product.output[0])
    batch, tokens, _, heads, width = _constant(graph, reshape.input[1])
    shape = f"{product.name}.shape"
    graph.initializer.append(numpy_helper.from_array(np.array([batch, tokens, heads, width], np.int64), shape))
    nodes: list[Any] = []
    for index, (part, pick) in enumerate(zip(PARTS, picks, strict=True)):
        name = f"{product.name}.{part}"

        def thirds(whole: str, index: int = index, name: str = name) -> str:
            """A third of the constant's last axis under a name of its own."""
            own = f"{whole}.{name}"
            third = np.split(np.asarray(_constant(graph, whole)), 3, axis=-1)[index]
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(third), own))
            return own

        weights = helper.make_node("DequantizeLinear", [], [f"{name}.w"], name=f"{name}_DequantizeLinear", axis=1)
        weights.input.extend(thirds(one) for one in dequantize.input)
        nodes += [
            weights,
            helper.make_node("MatMul", [product.input[0], f"{name}.w"], [f"{name}.product"], name=name),
            helper.make_node("Add", [f"{name}.product", thirds(bias)], [f"{name}.sum"], name=f"{name}_Add"),
            helper.make_node("Reshape", [f"{name}.sum", shape], [f"{name}.heads"], name=f"{name}_Reshape"),
            helper.make_node(
                "Transpose", [f"{name}.heads"], [pick.output[0]], name=f"{name}_Transpose", perm=[0, 2, 1, 3]
            ),
        ]
    return nodes


def _users(graph: Any, output: str) -> list[Any]:
    return [node for node in graph.node if output in node.input]


def _constant(graph: Any, name: str) -> Any:
    from onnx import numpy_helper

    (held,) = [one for one in graph.initializer if one.name == name]
    return numpy_helper.to_array(held)
