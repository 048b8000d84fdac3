from minidist.moved import now

now("minidist.parallel.server.look_ahead", __name__)
