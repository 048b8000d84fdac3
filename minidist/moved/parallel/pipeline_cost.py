from minidist.moved import now

now("minidist.parallel.pipeline.cost", __name__)
