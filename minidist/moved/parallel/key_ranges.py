from minidist.moved import now

now("minidist.parallel.server.key_ranges", __name__)
