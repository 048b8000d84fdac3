"""Exercise: in which order a backward visits the graph.

Every tensor remembers its parents: the tensors that it was made from. The backward starts at the
loss and must call each tensor's own backward *once*, and only when the tensor's gradient is
complete: after all tensors that were made from it.

        a            a was used twice: for b and for d.
       / \\           d - b - a is right: d and b both add to a's gradient before a goes on.
      b   |          d - a - b is wrong: a's backward would run before b has added its part.
       \\ /
        d            d = b + a is the loss

Depth-first search gives the order: visit a tensor's parents first, note the tensor when all of its
parents are noted; then reverse the notes. Written as a function that calls itself, it ends with a
RecursionError in a long chain, so use a stack of your own.

To do: write ``backward_order(root, parents)``. ``parents`` is a dictionary: parents["d"] = ["b",
"a"] (a leaf has an empty list; a name may occur twice: c = b * b). Return the list of all names
that ``root`` depends on, itself first, each once. Names that the root does not depend on do not
occur. Do not change ``parents``.

    minidist check backward_order mine.py
"""


def backward_order(root, parents):
    """All names that ``root`` depends on, each after everything that was made from it."""
    raise NotImplementedError("write backward_order")
