from minidist.moved import now

now("minidist.parallel.server.stale_parameter_server", __name__)
