"""The exercises, in the order in which a course would set them; each stands alone."""

EXERCISES = [
    "matmul_backward",
    "broadcast_backward",
    "backward_order",
    "cross_entropy",
    "adam",
    "central",
    "ring",
    "halving_doubling",
    "uneven_shards",
    "buckets",
    "zero1",
    "zero2",
    "top_k",
    "stale_server",
    "one_f_one_b",
    "tensor_parallel",
    "checkpoint",
]
