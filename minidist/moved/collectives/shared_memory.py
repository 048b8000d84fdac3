from minidist.moved import now

now("minidist.collectives.shared.shared_memory", __name__)
