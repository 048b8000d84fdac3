from minidist.moved import now

now("minidist.parallel.pipeline.executor", __name__)
