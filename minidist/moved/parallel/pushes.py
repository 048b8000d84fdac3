from minidist.moved import now

now("minidist.parallel.server.pushes", __name__)
