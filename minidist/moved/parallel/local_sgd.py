from minidist.moved import now

now("minidist.parallel.averaging.local_sgd", __name__)
