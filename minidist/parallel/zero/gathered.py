"""placeholder"""
from minidist.parallel.zero.accumulated import ReduceScatterUnits


class GatheredUnits(ReduceScatterUnits):
    pass
