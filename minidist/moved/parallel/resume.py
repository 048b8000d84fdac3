from minidist.moved import now

now("minidist.parallel.state", __name__)
