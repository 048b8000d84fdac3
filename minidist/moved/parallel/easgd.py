from minidist.moved import now

now("minidist.parallel.averaging.easgd", __name__)
