from minidist.moved import now

now("minidist.parallel.gradient_compression.compressors", __name__)
