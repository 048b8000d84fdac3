"""Exercise: the backward of a matrix product.

Forward: y = a @ b, with a (n, k), b (k, m) and y (n, m). In the backward, ``grad`` (n, m) arrives:
the slope of the loss with respect to y. What are the slopes with respect to a and to b?

Look at one number first: y[i, j] = sum over l of a[i, l] * b[l, j]. So a[i, l] reaches the loss
through y[i, 0], ..., y[i, m - 1], each with the factor b[l, j]:

    d loss / d a[i, l] = sum over j of grad[i, j] * b[l, j]

Write that as a product of two matrices, then do the same for b. The shapes leave little choice:

    grad (n, m)   a (n, k)   b (k, m)   ->   grad_a (n, k)   grad_b (k, m)

To do: write ``backward(grad, a, b)``, which returns (grad_a, grad_b). All are NumPy arrays. Do not
change grad, a or b: other parts of the program still use them.

    minidist check matmul_backward mine.py
"""


def backward(grad, a, b):
    """The gradients of a and b, given the gradient of y = a @ b."""
    raise NotImplementedError("write backward")
