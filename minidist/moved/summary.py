from minidist.moved import now

now("minidist.inspect.summaries", __name__)
