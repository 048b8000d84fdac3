"""An engine on several ranks: layers cut over a tensor axis, blocks over the stages of a pipeline.

Every rank keeps the same books: it is told of the same requests in the same order, lets them in by
the same rule and gives them the same blocks of its own cache, which has its own layers' and its own
heads' keys and values. So only numbers are sent, no decisions.

    tensor axis   each layer is a part; sums over the ranks, in each layer, as in training. The
                  logits are gathered, and every rank draws the same token.
    stages        rows go from stage to stage, and tokens back from the last one. The batch is cut
                  into as many turns as there are stages, or all but one stage would wait:

                  stage 0    A  B  A' B' A" B"          A, B: half of the sequences each
                  stage 1       A  B  A' B' A"          A' needs A's tokens, which have come

A step is one token of each sequence. With stages its tokens are those that have come back: the
first step gives none, and each later one gives what the step before has drawn.

For Σl + c - 1 = n rows (a request of l tokens and c new ones), Σc = r tokens, t ranks of the tensor
axis, width w, V tokens, L layers and e bytes a number, a rank sends, however requests are batched

    along the tensor axis    2(t - 1)/t · nwe   for the embedding, and twice that for each block
                             (t - 1)/t · rVe    the logits
    along the stages         nwe to the next one; the last one 8r bytes to each other

``cost.py`` has it exactly. Narayanan et al., arXiv 2104.04473, section 3 (which axis goes where);
Pope et al., "Efficiently scaling transformer inference", arXiv 2211.05102, section 3.
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
    """An ``Engine`` on the ranks of ``mesh`` with this rank's place along dp; each must make it.

    ``model``: initialised, the same on every rank. Requests and cancellations must be the same on
    all of these ranks, in the same order; they all call ``step`` together, as long as ``busy``.
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
        self._flying: dict[int, list[_Running]] = {}  # by turn: whose tokens are still to come
        self._drawn: dict[int, list[int]] = {}  # by turn, on the last stage
        self._leaving: dict[int, list[Sending]] = {}  # by turn

    def share(self, model: Sequential) -> Sequential:
        from minidist.inference.share import share_of

        return share_of(model, self.mesh["tp"], self.stage, self.stages)

    @property
    def busy(self) -> bool:
        return super().busy or bool(self._flying)

    def step(self) -> list[Event]:
        """As ``Engine.step``; with stages, the tokens are those of the step before."""
        if self.stages == 1:
            return super().step()
        self.check_weights()
        events: list[Event] = []
        with self.computing():
            for turn in range(self.stages):
                events += self._arrive(turn)
                self._let_in(turn)
                self._depart(turn)
        if not self.busy:
            for turn in list(self._leaving):
                self._wait(turn)
        return sorted(events, key=lambda event: event.number)

    def _depart(self, turn: int) -> None:
        """This stage's blocks on a turn's sequences, and what it sends on."""
        running = [one for one in self._running if one.turn == turn]
        if not running:
            return
        self._wait(turn)
        step = Step([one.part for one in running], self.pool, self.pool.xp)
        by_part = {id(one.part): one for one in running}
        order = self._flying[turn] = [by_part[id(part)] for part in step.order]
        x, last = None, self.stages - 1
        if self.stage:
            xp, dtype = self.pool.xp, self.model.flat.data.dtype
            x = Tensor(xp.empty((1, len(step.tokens), self.width), dtype))
            self.pipe.recv(x.data, self.stage - 1, ROWS)
        y = through(self.model.blocks.values(), step, x).data
        if self.stage < last:
            rows = self.pool.xp.ascontiguousarray(y)
            self._leaving[turn] = [self.pipe.isend(rows, self.stage + 1, ROWS)]
        else:
            self._drawn[turn] = self._draw(order, y[0])
            tokens = np.array(self._drawn[turn], np.int64)
            self._leaving[turn] = [self.pipe.isend(tokens, to, TOKENS) for to in range(last)]

    def _arrive(self, turn: int) -> list[Event]:
        """The tokens of a turn that departed in the step before."""
        order = self._flying.pop(turn, [])
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
            if not one.answer.reason  # it was cancelled meanwhile
        ]

    def _wait(self, turn: int) -> None:
        """What a turn has sent has arrived long ago: its tokens are back. Its memory may go."""
        for sending in self._leaving.pop(turn, []):
            sending.wait()
