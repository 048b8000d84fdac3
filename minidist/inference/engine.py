"""Continuous batching: requests join and leave the batch at every step.

    step        1   2   3   4   5   6   7   8
    request A   ▓   ░   ░   ░                      ▓ prompt, ░ one token
    request B   ▓   ░   ░   ░   ░   ░   ░
    request C           ▓   ░   ░                  arrives later; does not wait for A or B to end
    request D                   ▓   ░   ░   ░      waits until A leaves the batch

A step is one forward of all sequences in the batch: new ones with their whole prompt, the others
with the token that was drawn last. A batch of eight takes little more time than one sequence,
because each weight is read once for all of them.

A request joins the batch if it has less than ``at_once`` sequences, and there are enough free
blocks of the cache for the request's longest possible answer. So no running request must be evicted
(vLLM admits more requests, and sometimes evicts and recomputes one). Requests are admitted in the
order in which they arrived. One that can never be admitted is refused when it is submitted.

A request's random draws depend only on the request: greedy and seeded answers are those of
``minidist.models.sample`` (unless two logits are equal up to rounding).

Source: Yu et al., "Orca", OSDI 2022, section 3.1 ("iteration-level scheduling").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Integral

from minidist.engine.array import Array, module_of, read
from minidist.engine.seeds import generator
from minidist.engine.versions import ChangedError
from minidist.inference.blocks import BlockPool
from minidist.inference.ragged import Part, forward
from minidist.inference.requests import Answer, Refused, Request
from minidist.models.gpt import Block, Embed, Head, pick
from minidist.nn.attention import CausalSelfAttention
from minidist.nn.evaluating import as_in_evaluation
from minidist.nn.layers import Sequential


@dataclass(frozen=True)
class Event:
    """A token of a request; ``reason`` is "" until its last token."""

    number: int
    token: int
    reason: str = ""


class _Running:
    """A sequence in the batch."""

    def __init__(self, number: int, answer: Answer, table: list[int], turn: int) -> None:
        self.number, self.answer, self.turn = number, answer, turn
        self.part = Part(answer.request.prompt, 0, table)
        self.draw = generator(answer.request.seed, "sample")


class Engine:
    """Answers requests with an initialised GPT, which may be quantized.

    ``at_once``: the largest number of sequences in the batch. ``blocks`` blocks of ``block``
    positions: the size of the cache; by default enough for ``at_once`` whole contexts.
    ``waiting``: the largest number of waiting requests; further ones are refused (None: no limit).
    Raises ValueError for numbers that are too small, TypeError for a model that is no such GPT.
    """

    def __init__(
        self,
        model: Sequential,
        at_once: int = 8,
        blocks: int | None = None,
        block: int = 16,
        waiting: int | None = None,
    ) -> None:
        if not _whole(at_once) or at_once < 1:
            raise ValueError(f"Engine: at least one sequence at once, not {at_once!r}")
        if waiting is not None and (not _whole(waiting) or waiting < 0):
            raise ValueError(
                f"Engine: {waiting!r} requests may wait: a whole number of at least 0, or None"
            )
        embed, attention, d = parts_of_gpt(model)
        self.context, self.vocabulary = embed.position.declared[0], embed.weight.declared[0]
        self.at_once, self.waiting = at_once, waiting
        self.places = [at_once]  # sequences of each group: see MeshEngine
        self.model = self.share(model)
        flat, mine = self.model.flat.data, _attention(self.model)
        groups = mine[0].groups if mine else attention[0].groups
        if blocks is None:
            blocks = at_once * -(-self.context // max(1, block))
        self.pool = BlockPool(len(mine), groups, d, blocks, block, module_of(flat), flat.dtype)
        self.answers: dict[int, Answer] = {}  # of all requests that were accepted
        self._queue: deque[int] = deque()
        self._running: list[_Running] = []
        self._next = 0
        self._written: list[int] = []  # versions of the weights that computed the cache

    def share(self, model: Sequential) -> Sequential:
        """The part of the model that this rank computes."""
        return model

    @property
    def busy(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._queue or self._running)

    def check(self, request: Request) -> None:
        """Raise Refused, with the reason, if this engine can never answer the request.

        Raises TypeError for anything but a Request.
        """
        if not isinstance(request, Request):
            raise TypeError(f"Engine: submit a Request, not a {type(request).__name__}")
        request.check(self.vocabulary, self.context, self.pool.blocks * self.pool.block)

    def submit(self, request: Request) -> int:
        """Put a request into the queue; returns its number. Raises Refused: see ``check``, and if
        too many are waiting."""
        self.check(request)
        if self.waiting is not None and len(self._queue) >= self.waiting:
            raise Refused(f"{len(self._queue)} requests are waiting already: try again later")
        number = self._next
        self._next += 1
        self.answers[number] = Answer(request)
        self._queue.append(number)
        return number

    def cancel(self, number: int) -> bool:
        """End a request, and keep its tokens so far. False if it had ended before.

        Raises KeyError for an unknown number.
        """
        answer = self.answers.get(number)
        if answer is None:
            raise KeyError(f"there is no request {number}")
        if answer.reason:
            return False
        answer.reason = "cancelled"
        if number in self._queue:
            self._queue.remove(number)
        for one in [one for one in self._running if one.number == number]:
            self._leave(one)
        return True

    def step(self) -> list[Event]:
        """Admit requests and compute one token of each; returns these tokens, which may be none.

        Raises ChangedError: see ``check_weights``.
        """
        self.check_weights()
        self._admit()
        if not self._running:
            return []
        by_part = {id(one.part): one for one in self._running}
        with self.computing():
            parts, logits = forward(self.model, [one.part for one in self._running], self.pool)
        order = [by_part[id(part)] for part in parts]
        events = [
            self._take(one, token)
            for one, token in zip(order, self._draw(order, logits), strict=True)
        ]
        return sorted(events, key=lambda event: event.number)

    def computing(self) -> AbstractContextManager[None]:
        """A context without a tape, with the model in evaluation mode."""
        return as_in_evaluation(self.model)

    def check_weights(self) -> None:
        """Raise ChangedError if the weights were written after the cache was computed."""
        written = [version.last for version in self.model.flat.versions]
        if self._running and written != self._written:
            raise ChangedError(
                f"the model's parameters were written while {len(self._running)} requests are "
                "being answered; their cached keys and values are of the old parameters: answer or "
                "cancel them first"
            )
        self._written = written

    def _admit(self, turn: int = 0) -> None:
        """Fill the free places of a group, in the order in which the requests arrived."""
        taken = sum(one.turn == turn for one in self._running)
        for _ in range(self.places[turn] - taken):
            if not self._queue:
                return
            answer = self.answers[self._queue[0]]
            if self.pool.needed(answer.request.positions) > self.pool.free:
                return  # later requests wait too, so that no request waits for ever
            table = self.pool.take(answer.request.positions)
            self._running.append(_Running(self._queue.popleft(), answer, table, turn))

    def _draw(self, order: Sequence[_Running], logits: Array) -> list[int]:
        """The next token of each sequence, from logits (sequences, vocabulary)."""
        asked = [one.answer.request for one in order]
        return [
            pick(row, request.temperature, request.top_k, one.draw.random())
            for one, request, row in zip(order, asked, read(logits, 0.0), strict=True)
        ]

    def _take(self, one: _Running, token: int) -> Event:
        """Append a token to its sequence, which then continues or leaves the batch."""
        answer, request = one.answer, one.answer.request
        answer.tokens.append(token)
        if token == request.stop:
            answer.reason = "stop"
        elif len(answer.tokens) == request.count:
            answer.reason = "count"
        if answer.reason:
            self._leave(one)
        else:
            part = one.part
            one.part = Part([token], part.start + len(part.tokens), part.table)
        return Event(one.number, token, answer.reason)

    def _leave(self, one: _Running) -> None:
        self._running.remove(one)
        self.pool.give_back(one.part.table)


def parts_of_gpt(model: Sequential) -> tuple[Embed, list[CausalSelfAttention], int]:
    """(embedding, attention layers, features of a head) of a GPT.

    Raises TypeError if the model is no GPT, or its layers need caches of different shapes.
    """
    embed, *inner, head = model.blocks.values()
    if not (isinstance(embed, Embed) and isinstance(head, Head) and inner) or not all(
        isinstance(one, Block) for one in inner
    ):
        raise TypeError("Engine: the model must be a GPT: Embed, at least one block, Head")
    attention = _attention(model)
    packed = {(a.groups, a.qkv.cost((1, 1, 1)).shape[-1] // (a.heads + 2 * a.groups))
              for a in attention}  # fmt: skip
    if len(packed) != 1 or any(a.rotary_base is not None for a in attention):
        raise TypeError(
            "Engine: all attention layers must have the same number of heads, and no rotary "
            f"positions; found (groups, d): {sorted(packed)}"
        )
    return embed, attention, packed.pop()[1]


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _attention(model: Sequential) -> list[CausalSelfAttention]:
    return [one.attention for one in model.blocks.values() if isinstance(one, Block)]


def generate(model: Sequential, requests: Sequence[Request], at_once: int = 8) -> list[Answer]:
    """Answer all requests, ``at_once`` at a time; answers in the order of the requests.

    Raises Refused, before anything is computed, if one of them cannot be answered.

    >>> from minidist.models import gpt
    >>> model = gpt(11, 8, 12, 1, 2).init(0)
    >>> [answer.reason for answer in generate(model, [Request((1, 2), 3), Request((4,), 2)])]
    ['count', 'count']
    """
    engine = Engine(model, at_once)
    numbers = [engine.submit(request) for request in requests]
    while engine.busy:
        engine.step()
    return [engine.answers[number] for number in numbers]
