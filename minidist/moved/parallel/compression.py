from minidist.moved import now

now("minidist.parallel.gradient_compression.compression", __name__)
