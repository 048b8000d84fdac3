from minidist.moved import now

now("minidist.plots.pipeline", __name__)
