from minidist.moved import now

now("minidist.parallel.data_parallel.buckets", __name__)
