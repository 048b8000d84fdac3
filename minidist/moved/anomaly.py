from minidist.moved import now

now("minidist.inspect.anomalies", __name__)
