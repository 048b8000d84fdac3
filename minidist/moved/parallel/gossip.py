from minidist.moved import now

now("minidist.parallel.averaging.gossip", __name__)
