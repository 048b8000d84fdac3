"""Collectives for ranks of one machine, which see each other's memory and send no data.

Read ``symmetric_memory.py`` first: arrays that all ranks see are added where they are. Arrays that
only their own rank sees are copied by the kernel, from process to process: ``cross_memory.py``.
Where that is forbidden they are copied through memory that all see: ``shared_memory.py``.
"""
