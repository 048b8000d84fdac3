from minidist.moved import now

now("minidist.compare.report", __name__)
