"""An engine on several ranks: layers cut over a tensor axis, blocks over the stages of a pipeline.

All ranks make the same decisions: they get the same requests in the same order, admit them by the
same rule, and use the same blocks of their caches. (A rank's cache has the keys and values of its
own layers and heads.) So only activations and tokens are sent.

    tensor axis   each layer is cut, with sums over the ranks in each layer, as in training. The
                  logits are gathered, and every rank draws the same token.
    stages        rows pass from stage to stage, and the last stage sends tokens back. The batch is
                  cut into one group for each stage; with one group only one stage would work:

                  stage 0    A  B  A' B' A" B"          A, B: half of the sequences each
                  stage 1       A  B  A' B' A"          A' needs A's tokens, which are back by then

A step gives one token of each sequence. With stages these were drawn in the step before, so the
first step gives none.

For Σ(l + c - 1) = n rows (a request with a prompt of l tokens and c new ones), Σc = r tokens, t
ranks of the tensor axis, width w, V tokens, L layers and e bytes a number, a rank sends, for any
batching

    along the tensor axis    2(t - 1)/t · nwe   for the embedding, and twice that for each block
                             (t - 1)/t · rVe    the logits
    along the stages         nwe to the next one; the last one 8r bytes to each other

``cost.py`` has the exact formula. Narayanan et al., arXiv 2104.04473, section 3 (order of the
axes); Pope et al., "Efficiently scaling transformer inference", arXiv 2211.05102, section 3.
"""

from __future__ import annotations

import numpy as np

from minidist.collectives.partition import chunk_lengths
from minidist.comm.comm import Request as Sending
from minidist.engine.tensor import Tensor
from minidist.inference.engine import Engine, Event, _Running
from minidist.inference.ragged import Step, through
from minidist.nn.layers import Sequential
from minidist.parallel.mesh.mesh import Mesh

ROWS, TOKENS = 1, 2  # tags


class MeshEngine(Engine):
    """An ``Engine`` on the ranks of one replica: those with this rank's coordinate along dp.

    Every rank must make it, with the same initialised ``model``, and get the same requests and
    cancellations in the same order. All call ``step`` together, as long as ``busy``.
    """

    def __init__(
        self,
        model: Sequential,
        mesh: Mesh,
        at_once: int = 8,
        blocks: int | None = None,
        block: int = 16,
        waiting: int | None = None,
    ) -> None:
        self.mesh, self.pipe = mesh, mesh["pp"]
        self.stage, self.stages = self.pipe.rank, self.pipe.size
        super().__init__(model, at_once, blocks, block, waiting)
        self.places = chunk_lengths(at_once, self.stages)
        self.width = model.blocks["0"].weight.declared[1]
        self._pending: dict[int, list[_Running]] = {}  # by group: sequences without their tokens
        self._drawn: dict[int, list[int]] = {}  # by group, on the last stage
        self._sends: dict[int, list[Sending]] = {}  # by group

    def share(self, model: Sequential) -> Sequential:
        from minidist.inference.share import share_of

        return share_of(model, self.mesh["tp"], self.stage, self.stages)

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._pending)

    def step(self) -> list[Event]:
        """As ``Engine.step``; with stages, the tokens of the step before."""
        if self.stages == 1:
            return super().step()
        self.check_weights()
        events: list[Event] = []
        with self.computing():
            for turn in range(self.stages):
                events += self._receive(turn)
                self._admit(turn)
                self._compute(turn)
        if not self.busy:
            for turn in list(self._sends):
                self._wait(turn)
        return sorted(events, key=lambda event: event.number)

    def _compute(self, turn: int) -> None:
        """Compute this stage's blocks for a group's sequences, and send the result on."""
        running = [one for one in self._running if one.turn == turn]
        if not running:
            return
        self._wait(turn)
        step = Step([one.part for one in running], self.pool, self.pool.xp)
        by_part = {id(one.part): one for one in running}
        order = self._pending[turn] = [by_part[id(part)] for part in step.order]
        x, last = None, self.stages - 1
        if self.stage:
            xp, dtype = self.pool.xp, self.model.flat.data.dtype
            x = Tensor(xp.empty((1, len(step.tokens), self.width), dtype))
            self.pipe.recv(x.data, self.stage - 1, ROWS)
        y = through(self.model.blocks.values(), step, x).data
        if self.stage < last:
            rows = self.pool.xp.ascontiguousarray(y)
            self._sends[turn] = [self.pipe.isend(rows, self.stage + 1, ROWS)]
        else:
            self._drawn[turn] = self._draw(order, y[0])
            tokens = np.array(self._drawn[turn], np.int64)
            self._sends[turn] = [self.pipe.isend(tokens, to, TOKENS) for to in range(last)]

    def _receive(self, turn: int) -> list[Event]:
        """Receive the tokens of a group that was computed in the step before."""
        order = self._pending.pop(turn, [])
        if not order:
            return []
        if self.stage == self.stages - 1:
            drawn = self._drawn.pop(turn)
        else:
            tokens = np.empty(len(order), np.int64)
            self.pipe.recv(tokens, self.stages - 1, TOKENS)
            drawn = tokens.tolist()
        return [
            self._take(one, token)
            for one, token in zip(order, drawn, strict=True)
            if not one.answer.reason  # not if it was cancelled meanwhile
        ]

    def _wait(self, turn: int) -> None:
        """Complete a group's sends, which have arrived, because its tokens are back."""
        for sending in self._sends.pop(turn, []):
            sending.wait()
