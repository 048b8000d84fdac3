from minidist.moved import now

now("minidist.parallel.gradient_compression.power_sgd", __name__)
