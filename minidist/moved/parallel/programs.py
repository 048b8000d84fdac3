from minidist.moved import now

now("minidist.parallel.pipeline.programs", __name__)
