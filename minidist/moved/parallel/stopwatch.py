from minidist.moved import now

now("minidist.parallel.pipeline.stopwatch", __name__)
