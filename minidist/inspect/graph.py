"""Draw the tape of a tensor: Graphviz DOT text, to paste into any DOT viewer or ``dot -Tsvg``.

An arrow goes from an op to its inputs, in the direction of the gradients. Boxes are ops, with the
shape of their result; ellipses are the leaves, where gradients are stored. Draw before
``backward``, because it frees the tape.
"""

from __future__ import annotations

from minidist.engine.tensor import Node, Tensor


def to_dot(tensor: Tensor) -> str:
    r"""The tape from ``tensor`` down to the leaves, as DOT.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> print(to_dot((x * x).sum()))
    digraph tape {
      n0 [shape=box, label="sum\\n()"];
      n1 [shape=box, label="multiply\\n(2,)"];
      n2 [shape=ellipse, label="leaf\\n(2,)"];
      n0 -> n1;
      n1 -> n2;
      n1 -> n2;
    }
    """
    if tensor.node is None:
        raise RuntimeError("to_dot: this tensor has no tape: none of its inputs requires gradients")
    found: dict[Node, int] = {tensor.node: 0}
    order = [tensor.node]
    arrows = []
    for node in order:  # the list grows meanwhile; no recursion, so a deep tape is no problem
        for parent in node.parents:
            if parent is None:
                continue
            if parent not in found:
                found[parent] = len(order)
                order.append(parent)
            arrows.append(f"  n{found[node]} -> n{found[parent]};")
    boxes = [
        f"  n{number} [shape={'ellipse' if node.leaf is not None else 'box'}, "
        f'label="{node.name}\\n{node.shape}"];'
        for node, number in found.items()
    ]
    return "\n".join(["digraph tape {", *boxes, *arrows, "}"])
