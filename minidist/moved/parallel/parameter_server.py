from minidist.moved import now

now("minidist.parallel.server.parameter_server", __name__)
