from minidist.moved import now

now("minidist.parallel.data_parallel.symmetric", __name__)
