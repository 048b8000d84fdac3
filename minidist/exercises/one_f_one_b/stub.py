"""Exercise: the 1F1B schedule of a pipeline.

A model is cut into p stages, one a rank. A batch is cut into m microbatches, which follow one
another through the stages: forward F from stage 0 to p - 1, backward B back again. GPipe runs all
forwards first, so stage 0 keeps the activations of all m microbatches. 1F1B ("one forward, one
backward") begins a backward as soon as it can: for p = 4, m = 6

    stage 0   F0 F1 F2 F3 .. .. .. B0 F4 B1 F5 B2 .. B3 .. B4 .. B5
    stage 1      F0 F1 F2 .. .. B0 F3 B1 F4 B2 F5 B3 .. B4 .. B5
    stage 2         F0 F1 .. B0 F2 B1 F3 B2 F4 B3 F5 B4 .. B5
    stage 3            F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5

Each stage has three phases:

    warm-up     min(m, p - 1 - stage) forwards
    steady      one forward, then one backward, until no forward is left
    cool-down   the backwards that are left

At most p - stage microbatches are in flight on a stage: forward done, backward not. The time is
that of GPipe, since the bubble is the same: 1F1B saves memory, not time.

To do: write ``schedule(stage, stages, microbatches)``: the list of what this stage does, in order,
such as [("F", 0), ("B", 0), ("F", 1), ("B", 1)]. Each microbatch has one F and one B on each stage.

Narayanan et al., "Efficient large-scale language model training on GPU clusters using Megatron-LM",
arXiv 2104.04473, section 2.2.

    minidist check one_f_one_b mine.py
"""


def schedule(stage, stages, microbatches):
    """What a stage does, in order: ("F", microbatch) or ("B", microbatch)."""
    raise NotImplementedError("write schedule")
