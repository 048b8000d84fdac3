"""The backward of a broadcast: one right answer."""


def unbroadcast(grad, shape):
    missing = grad.ndim - len(shape)
    grad = grad.sum(axis=tuple(range(missing)))
    repeated = [axis for axis, length in enumerate(shape) if length == 1 and grad.shape[axis] != 1]
    return grad.sum(axis=tuple(repeated), keepdims=True)
