from minidist.moved import now

now("minidist.parallel.pipeline.prover", __name__)
