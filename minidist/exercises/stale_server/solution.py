"""A server with bounded staleness: one right answer."""


class Clock:
    def __init__(self, workers, staleness):
        self.steps, self.staleness, self.waiting = [0] * workers, staleness, set()

    def near(self, worker):
        return self.steps[worker] - min(self.steps) <= self.staleness

    def may_begin(self, worker):
        if not self.near(worker):
            self.waiting.add(worker)
        return self.near(worker)

    def finished(self, worker):
        self.steps[worker] += 1
        free = sorted(one for one in self.waiting if self.near(one))
        self.waiting -= set(free)
        return free
