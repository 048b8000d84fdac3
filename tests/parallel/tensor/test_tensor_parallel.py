"""Tensor and sequence parallelism: serial's numbers, the paper's bytes and memory, and mutants."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch, nn, ops
from minidist.data import Dataset
from minidist.engine.array import defaults
from minidist.engine.tensor import Tensor
from minidist.models import gpt, mlp
from minidist.nn import CrossEntropy
from minidist.optim import LAMB, LARS, SGD
from minidist.parallel import MeshParallel, Serial
from minidist.parallel.evaluation import evaluate
from minidist.parallel.tensor import TensorParallel, layers, part, plan_for, show, vocabulary
from minidist.parallel.tensor.ends import VocabularyCrossEntropy
from minidist.parallel.tensor.part import TensorPart
from tests.parallel.tensor.checks import (
    IGNORE,
    MLP,
    Task,
    adamw,
    check_equals_serial,
    check_predictions,
    gpt_loss,
    serial,
    small_gpt,
    small_mlp,
    texts,
    train,
)

WORLD = LocalWorld(Machine(latency=1e-5, bandwidth=1e8, reduce_bandwidth=3e8, flops=1e8))


def weighted_loss():
    return CrossEntropy(IGNORE, 0.1, 1e-2, np.linspace(0.5, 2, 13))


CASES = {
    "1 rank": (1, Task()),
    "2 ranks": (2, Task(optimizer=adamw)),
    "3 ranks, uneven": (3, Task()),
    "4 ranks, microbatches": (4, Task(optimizer=adamw, options={"microbatches": 2})),
    "nothing overlaps": (2, Task(options={"overlap": False})),
    "groups of ranks": (2, Task(model=partial(small_gpt, groups=2))),
    "fewer heads of keys": (4, Task(model=partial(small_gpt, groups=2), optimizer=adamw)),
    "one head of keys, rotary": (4, Task(model=partial(small_gpt, groups=1, rotary=True))),
    "sequence": (2, Task(optimizer=adamw, options={"sequence": True})),
    "sequence, kept": (2, Task(options={"sequence": True, "keep": True})),
    "sequence, plain": (4, Task(options={"sequence": True, "keep": True, "overlap": False})),
    "sequence, shared keys": (
        4,
        Task(model=partial(small_gpt, groups=2), options={"sequence": True, "microbatches": 2}),
    ),
    "attention again": (2, Task(model=partial(small_gpt, recompute=True))),
    "attention again, by sequence": (
        4,
        Task(
            model=partial(small_gpt, recompute=True, groups=2, rotary=True),
            options={"sequence": True},
        ),
    ),
    "some layers whole": (
        2,
        Task(options={"plan": {"1.attention.*": "whole", "embedding*": "whole"}}),
    ),
    "weighted classes": (2, Task(loss=weighted_loss)),
    "mlp": (3, Task(**MLP)),
    "mlp, microbatches": (2, Task(**MLP, optimizer=adamw, options={"microbatches": 3})),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_serial_and_its_formula(name):
    ranks, task = CASES[name]

    def run(comm):
        check_equals_serial(comm, TensorParallel, task)
        check_predictions(comm, TensorParallel, task)

    launch(run, ranks, WORLD)


@pytest.mark.parametrize(
    "optimizer", [lambda: LARS(0.5, weight_decay=0.1, trust=0.02), lambda: LAMB(0.02)]
)
@pytest.mark.parametrize("sequence", [False, True])
def test_layer_wise_rules_see_whole_parameters(optimizer, sequence):
    task = Task(optimizer=optimizer, options={"sequence": sequence})
    launch(lambda comm: check_equals_serial(comm, TensorParallel, task), 2)
    launch(lambda comm: check_predictions(comm, TensorParallel, task), 2, WORLD)


def test_any_cut_begins_with_serial_values():
    def run(comm):
        model = small_gpt()
        method = TensorParallel(model, gpt_loss(), SGD(0.1), comm, seed=4)
        return method.parameters()

    expected = small_gpt().init(4).state()
    for ranks in (2, 3):
        for got in launch(run, ranks):
            assert all(np.array_equal(got[name], values) for name, values in expected.items())


def bytes_sent(ranks, blocks, **options):
    """Bytes that a rank sends in a step on b = 4 samples of s = 8 tokens, h = 16, in float64."""
    task = Task(model=partial(small_gpt, layers=blocks), batch=4, options=options)

    def run(comm):
        with defaults(dtype="float64"):
            method = TensorParallel(task.model(), task.loss(), SGD(0.1), comm, **options)
            before = comm.trace.sent.nbytes
            method.step(task.batches()[0])
            return comm.trace.sent.nbytes - before

    return launch(run, ranks)


@pytest.mark.parametrize("t", [2, 4])
def test_bytes_of_a_layer_are_the_papers(t):
    """8bsh(t - 1)/t elements, also along the sequence; 10bsh(t - 1)/t where gathered again."""
    b, s, h = 4, 8, 16
    for options, factor in (
        ({}, 8),
        ({"sequence": True, "keep": True}, 8),
        ({"sequence": True}, 10),
    ):
        more, less = bytes_sent(t, 2, **options), bytes_sent(t, 1, **options)
        # Norms and biases of a block are summed over the sequence: 6 vectors of h.
        summed = 2 * 6 * h * (t - 1) // t if options.get("sequence") else 0
        for got, base in zip(more, less, strict=True):
            assert got - base == 8 * (factor * b * s * h * (t - 1) // t + summed), options


def block_bytes(t, recompute=False, **options):
    """Bytes that a block saves, of 2-byte numbers, with s = 64: one block of attention weights."""
    s, b, h, a = 64, 2, 32, 4

    def run(comm):
        model = gpt(16, s, h, 1, a, dropout=0.1, recompute_attention=recompute)
        made = TensorPart(model, CrossEntropy(), comm, **options).model.blocks["1"]
        length = s // t if options.get("sequence") else s
        return made.cost((b, length, h), itemsize=2).saved_bytes

    return launch(run, t)[0], s, b, h, a


@pytest.mark.parametrize("t", [1, 2, 4])
def test_activations_of_a_layer_are_the_papers(t):
    """arXiv 2205.05198: sbh(10 + 24/t + 5as/(ht)) bytes, and sbh(34 + 5as/h)/t by sequence.

    Two things differ. Attention here has no dropout of its own and so saves the weights alone, of
    which theirs are 2 bytes of 5 (and here all lie in one block of 64 rows). And a norm saves one
    number more for each row.
    """
    got, s, b, h, a = block_bytes(t)
    norms = 2 * s * b * 2
    assert got == s * b * h * (10 + 24 / t + 2 * a * s / (h * t)) + norms
    got, *_ = block_bytes(t, sequence=True)
    assert got == (s * b * h * (34 + 2 * a * s / h) + norms) / t
    if t > 1:  # and with the two gathered inputs kept, these are whole
        got, *_ = block_bytes(t, sequence=True, keep=True)
        extra = 2 * 2 * s * b * h * (1 - 1 / t)
        assert got == (s * b * h * (34 + 2 * a * s / h) + norms) / t + extra


def test_attention_computed_again_saves_34_bytes_an_element():
    """arXiv 2205.05198, table 2: sbh(34)/t with selective recomputation, whatever the length."""
    for t in (1, 2):
        got, s, b, h, _ = block_bytes(t, recompute=True, sequence=t > 1)
        assert got == (34 * s * b * h + 2 * s * b * 2) / t


def test_evaluation_and_gradient_norm():
    def run(comm):
        with defaults(dtype="float64"):
            task = Task()
            method = TensorParallel(
                task.model(), task.loss(), task.optimizer(), comm, 3, clip=0.3, sequence=True
            )
            losses, _ = train(method, task)
            model = task.model().init(0).load(method.parameters())
            alone = comm.split(comm.rank)
            expected = evaluate(model, task.loss(), task.data(), alone, model=model)
            got = method.evaluate(task.data(), chunk=16)
            assert got == pytest.approx(expected, rel=1e-12)
            oracle = serial(comm, task)
            oracle.update = lambda: None  # keep the gradient as it is
            oracle.step(task.batches()[0])
            other = TensorParallel(task.model(), task.loss(), task.optimizer(), comm, 3)
            other.update = lambda: None
            other.step(task.batches()[0])
            norm = float(np.linalg.norm(oracle.model.flat.grad))
            assert other.gradient_norm() == pytest.approx(norm, rel=1e-12)
        return losses

    assert len({tuple(losses) for losses in launch(run, 2)}) == 1


@pytest.mark.parametrize("options", [{}, {"sequence": True}])
def test_state_goes_on_with_another_cut(options):
    task = Task(optimizer=adamw)

    def go_on(comm, saved, first, last, **options):
        with defaults(dtype="float64"):
            if comm.size == 1:
                method = serial(comm, task)
            else:
                method = TensorParallel(
                    task.model(), task.loss(), adamw(), comm, task.seed, clip=task.clip, **options
                )
            if saved is not None:
                method.load(saved)
            return [method.step(task.batches()[n]) for n in range(first, last)], method.state()

    straight, end = launch(partial(go_on, saved=None, first=0, last=5), 1)[0]
    saved = launch(partial(go_on, saved=None, first=0, last=0), 1)[0][1]  # serial's seed is 3
    _, saved = launch(partial(go_on, saved=saved, first=0, last=2, **options), 4)[2]
    assert saved.keys() == end.keys()
    for ranks, more in ((1, {}), (2, {}), (2, {"sequence": True}), (3, {})):
        losses, _ = launch(partial(go_on, saved=saved, first=2, last=5, **more), ranks)[0]
        assert losses == pytest.approx(straight[2:], rel=1e-12)


def test_the_plan_can_be_read():
    assert show(mlp((12, 8, 6, 5)), 2).splitlines()[1:] == [
        "1.weight   (12, 8)  columns   (12, 4)",
        "1.bias     (8,)     columns   (4,)",
        "3.weight   (8, 6)   rows      (4, 6)",
        "3.bias     (6,)     whole     (6,)",
        "5.weight   (6, 5)   columns   (6, 3) (6, 2)",
        "5.bias     (5,)     columns   (3,) (2,)",
    ]
    plan = plan_for(small_gpt(), 2)
    assert plan["embedding.weight"] == "vocabulary" and plan["0.position"] == "whole"
    assert plan["1.attention.qkv.weight"] == "heads" and plan["2.down.weight"] == "rows"
    assert plan_for(mlp((12, 8, 2)), 3)["3.weight"] == "rows"


HEADS = {"*.qkv.*": "heads", "*.out.weight": "rows"}


@pytest.mark.parametrize(
    ("model", "ranks", "options", "message"),
    [
        (small_gpt, 2, {"plan": {"nothing*": "whole"}}, "no parameter is named 'nothing"),
        (small_gpt, 2, {"plan": {"*up*": "diagonal"}}, "'diagonal': choose one of whole"),
        (small_gpt, 2, {"plan": {"1.up.*": "whole"}}, "1.down.weight takes a part"),
        (small_gpt, 2, {"plan": {"1.down.*": "whole"}}, "1.down.weight gets a part"),
        (
            small_gpt,
            2,
            {"plan": {"1.attention.out*": "whole"}},
            "attention with 1.attention.qkv.weight is cut by",
        ),
        (small_gpt, 2, {"plan": {"1.up.bias": "whole"}}, "1.up.bias goes with the columns"),
        (small_gpt, 2, {"plan": {"1.norm1.weight": "rows"}}, "1.norm1.weight is cut by rows"),
        (small_gpt, 5, {"plan": HEADS}, "heads of keys cannot be cut for 5 ranks"),
        (
            partial(small_gpt, groups=2),
            3,
            {"plan": HEADS},
            "4 heads of 4 features with 2 heads of keys",
        ),
        (
            partial(small_gpt, vocabulary=3),
            4,
            {"plan": {"emb*": "vocabulary"}},
            "cannot be cut by vocabulary for 4 ranks",
        ),
        (small_mlp, 2, {"sequence": True}, "block 0 is a Flatten"),
        (small_gpt, 2, {"sequence": True, "plan": {"1.attention.*": "whole"}}, "needs 1.attent"),
        (small_gpt, 2, {"sequence": True, "plan": {"emb*": "whole"}}, "needs the table"),
        (small_gpt, 3, {"sequence": True}, "8 positions do not divide by 3 ranks"),
    ],
)
def test_what_cannot_be_cut_is_refused(model, ranks, options, message):
    def run(comm):
        method = TensorParallel(model(), gpt_loss(), SGD(0.1), comm, **options)
        method.step(Task().batches()[0])

    with pytest.raises(ValueError, match=message):
        launch(run, ranks)


def test_a_loss_that_needs_whole_outputs_is_refused():
    def run(comm):
        TensorParallel(mlp((12, 8, 6, 5)), nn.MeanSquaredError(), SGD(0.1), comm)

    with pytest.raises(ValueError, match="MeanSquaredError needs all of it"):
        launch(run, 2)


@pytest.mark.parametrize(
    ("kind", "ranks", "options"),
    [(TensorParallel, 2, {}), (MeshParallel, 4, {"mesh": {"pp": 2, "tp": 2}})],
)
def test_probabilities_of_cut_classes_are_refused_by_name_and_the_way_out_trains(
    kind, ranks, options
):
    random = np.random.default_rng(2)
    chances = random.random((8, 5))
    data = Dataset("mine", random.random((8, 12)), chances / chances.sum(1, keepdims=True))
    batch, plan = data.batch(np.arange(8)), {"5.weight": "whole", "5.bias": "whole"}

    def refused(comm):
        method = kind(mlp((12, 8, 6, 5)), CrossEntropy(), SGD(0.1), comm, 3, **options)
        before, said = comm.trace.sent.messages, []
        for act in (lambda: method.step(batch), lambda: method.evaluate(data)):
            with pytest.raises(ValueError, match=r"targets of mine are float64.*need all") as error:
                act()
            said.append(str(error.value))
        assert comm.trace.sent.messages == before
        return said

    for in_step, in_evaluation in launch(refused, ranks):  # on every rank
        assert in_step.startswith(f"{kind.__name__}.step: ")
        assert in_evaluation.startswith(f"{kind.__name__}.evaluate: ")
        assert f"plan={plan}" in in_step

    def trained(comm, kind, **options):
        with defaults(dtype="float64"):
            method = kind(mlp((12, 8, 6, 5)), CrossEntropy(), SGD(0.1), comm, 3, **options)
            return method.step(batch), *method.evaluate(data)

    (expected,) = launch(partial(trained, kind=Serial), 1)
    for got in launch(partial(trained, kind=kind, plan=plan, **options), ranks):
        assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5, 3.0, 1.5, 0.0, 4.0]])
def test_cross_entropy_of_cut_logits(smoothing, z_loss, weight):
    random = np.random.default_rng(0)
    logits, targets = random.standard_normal((2, 4, 7)) * 50, random.integers(0, 7, (2, 4))
    targets[0, 1] = IGNORE
    loss = CrossEntropy(IGNORE, smoothing, z_loss, weight)
    whole = Tensor(logits, requires_grad=True)
    expected = loss(whole, targets)
    expected.backward()

    def run(comm):
        cut = plan_cut(7, comm.size)
        from minidist.parallel.tensor.axis import Axis

        own = VocabularyCrossEntropy(loss, Axis(comm.rank, comm.size, comm), cut)
        z = Tensor(cut.take(logits, comm.rank), requires_grad=True)
        got = own(z, targets)
        got.backward()
        assert np.array_equal(own.predictions(z.data), logits.argmax(-1))
        assert got.item() == pytest.approx(expected.item(), rel=1e-12)
        np.testing.assert_allclose(z.grad, cut.take(whole.grad, comm.rank), rtol=1e-9, atol=1e-13)
        with pytest.raises(ValueError, match=r"target 7 is not in \[0, 7\)"):
            own(z, np.full((2, 4), 7), 1)

    launch(run, 3)


def plan_cut(classes, ranks):
    from minidist.parallel.tensor.cut import even

    return even("columns", 2, classes, ranks)


# Mutants: bugs that large code bases had


def bias_on_every_rank(monkeypatch):
    def forward(self, x):
        return ops_reduce(self, ops.linear(x, self.weight, self.bias))

    from minidist.ops import collectives as messages

    def ops_reduce(self, y):
        return messages.reduce_from(y, self.axis.group)

    monkeypatch.setattr(layers.RowParallel, "forward", forward)


def smoothing_with_the_local_vocabulary(monkeypatch):
    right = vocabulary.vocabulary_cross_entropy

    def wrong(logits, targets, comm, first, classes, *rest):
        return right(logits, targets, comm, first, classes // comm.size, *rest)

    monkeypatch.setattr("minidist.parallel.tensor.ends.vocabulary_cross_entropy", wrong)


def logits_gathered_before_the_loss(monkeypatch):
    """Then every rank's softmax counts all classes t times: the loss grows by log t."""
    from minidist.ops import collectives as messages

    right = vocabulary.vocabulary_cross_entropy

    def wrong(logits, targets, comm, first, classes, *rest):
        lengths = [classes // comm.size + (r < classes % comm.size) for r in range(comm.size)]
        whole = messages.gather(logits, comm, -1, lengths)
        return right(whole, targets, comm, comm.rank * classes, classes, *rest)

    monkeypatch.setattr("minidist.parallel.tensor.ends.vocabulary_cross_entropy", wrong)


def norms_not_summed(monkeypatch):
    monkeypatch.setattr(part.TensorPart, "complete", lambda self, model, names=None: None)


def whole_weights_counted_t_times(monkeypatch):
    monkeypatch.setattr(part.TensorPart, "elsewhere", frozenset())


def clipped_by_the_norm_of_a_slice(monkeypatch):
    monkeypatch.setattr(part.TensorPart, "square_of_all", lambda self, square: None)


def input_gradient_not_summed(monkeypatch):
    monkeypatch.setattr(layers, "overlapped", lambda x, w, b, comm: ops.linear(x, w, b))


def another_dropout_on_each_rank(monkeypatch):
    def forward(self, x):
        return ops.dropout(x, self.rate, f"{self.path} {self.axis.rank}")

    monkeypatch.setattr(layers.CutDropout, "forward", forward)


def loss_scaled_by_the_axis(monkeypatch):
    right = VocabularyCrossEntropy.forward
    monkeypatch.setattr(
        VocabularyCrossEntropy,
        "forward",
        lambda self, z, targets, count=None: right(self, z, targets, count * self.axis.size),
    )


def keys_of_another_group(monkeypatch):
    from minidist.parallel.tensor import axis

    monkeypatch.setattr(
        axis.Axis, "sharers", lambda self, count: self.comm.split(self.rank % count)
    )


FEW_TOKENS = Task(model=partial(small_gpt, vocabulary=14), data=partial(texts, vocabulary=7))


@pytest.mark.parametrize(
    ("mutant", "ranks", "task"),
    [
        (bias_on_every_rank, 2, Task()),
        (smoothing_with_the_local_vocabulary, 2, FEW_TOKENS),
        (logits_gathered_before_the_loss, 2, Task()),
        (norms_not_summed, 2, Task(options={"sequence": True})),
        (whole_weights_counted_t_times, 2, Task()),
        (clipped_by_the_norm_of_a_slice, 2, Task()),
        (input_gradient_not_summed, 2, Task()),
        (another_dropout_on_each_rank, 2, Task(options={"sequence": True})),
        (another_dropout_on_each_rank, 2, Task(**MLP)),
        (loss_scaled_by_the_axis, 2, Task()),
        (keys_of_another_group, 4, Task(model=partial(small_gpt, groups=2))),
    ],
)  # fmt: skip
def test_mutants_are_rejected(mutant, ranks, task, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match="serial"):
        launch(lambda comm: check_equals_serial(comm, TensorParallel, task), ranks)


def test_logits_gathered_twice_make_the_loss_larger_by_log_t(monkeypatch):
    task = Task(steps=1, loss=lambda: CrossEntropy(IGNORE), model=partial(small_gpt, dropout=0.0))

    def run(comm):
        with defaults(dtype="float64"):
            return train(TensorParallel(task.model(), task.loss(), SGD(0.1), comm, 3), task)[0][0]

    right = launch(run, 2)[0]
    logits_gathered_before_the_loss(monkeypatch)
    assert launch(run, 2)[0] - right == pytest.approx(np.log(2), rel=1e-9)


def test_serial_z_loss_and_its_memory():
    from minidist.inspect.meter import measure_saved

    z = Tensor(np.random.default_rng(0).standard_normal((2, 4, 7)), requires_grad=True)
    loss = CrossEntropy(IGNORE, z_loss=0.25)
    targets = np.array([[0, 1, IGNORE, 2], [3, IGNORE, 4, 5]])
    plain = CrossEntropy(IGNORE)(z, targets, 6).item()
    kept = targets != IGNORE
    extra = 0.25 * (np.log(np.exp(z.data).sum(-1)) ** 2 * kept).sum() / 6
    with measure_saved() as meter:
        assert loss(z, targets, 6).item() == pytest.approx(plain + extra, rel=1e-12)
    assert meter.peak == loss.cost((2, 4, 7), 8).saved_bytes
