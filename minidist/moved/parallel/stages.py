from minidist.moved import now

now("minidist.parallel.pipeline.stages", __name__)
