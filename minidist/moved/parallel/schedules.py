from minidist.moved import now

now("minidist.parallel.pipeline.schedules", __name__)
