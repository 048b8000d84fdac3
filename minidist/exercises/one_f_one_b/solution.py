"""The 1F1B schedule: one right answer."""


def schedule(stage, stages, microbatches):
    warm_up = min(microbatches, stages - 1 - stage)
    steps = [("F", number) for number in range(warm_up)]
    for number in range(warm_up, microbatches):
        steps += [("F", number), ("B", number - warm_up)]
    return steps + [("B", number) for number in range(microbatches - warm_up, microbatches)]
