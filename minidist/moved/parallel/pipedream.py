from minidist.moved import now

now("minidist.parallel.pipeline.pipedream", __name__)
