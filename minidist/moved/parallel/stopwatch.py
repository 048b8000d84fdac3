from minidist.moved import now

now("minidist.parallel.pipeline.pricing", __name__)
