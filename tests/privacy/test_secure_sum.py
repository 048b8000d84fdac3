"""Secure aggregation: exact sums of messages that say nothing, and who is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

pytest.importorskip("cryptography", reason='pip install "minidist[privacy]"')

from minidist import LocalWorld, launch
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import METHODS
from minidist.privacy import (
    FederatedAveraging,
    FixedPoint,
    RoundEnded,
    SecureClient,
    SecureFederatedAveraging,
    SecureServer,
    Stranger,
    secure_sum,
)
from tests.parallel.checks import Setting, check_device, check_predictions
from tests.privacy.test_federated import SOME, gap, on, whole

LENGTH, ROUND = 4000, 7
BELOW_1E_6 = 377  # a chi-squared variable with 255 degrees of freedom is larger once in 10⁶ times


def values_of(number, modulus_bits=32):
    """What a client has to send: far from uniform."""
    random = np.random.default_rng(number)
    return random.integers(0, 9, LENGTH).astype(np.uint32) & np.uint32(2**modulus_bits - 1)


def round_of(numbers=(2, 5, 11, 30), modulus_bits=32):
    """Clients, their public keys, and a server that has begun."""
    clients = {n: SecureClient(n, bytes([n]) * 32) for n in numbers}
    publics = {n: client.public for n, client in clients.items()}
    server = SecureServer(bytes([99]) * 32)
    server.begin(ROUND, publics, LENGTH, modulus_bits)
    return clients, publics, server


def messages_of(clients, publics, server, modulus_bits=32, round=ROUND):
    return {
        n: client.message(values_of(n, modulus_bits), round, publics, server.public, modulus_bits)
        for n, client in clients.items()
    }


def chi_squared(words, bits=32):
    """Of the lowest 8 and the highest 8 of these bits, against uniform: the larger one."""
    found = []
    for shift in (0, bits - 8):
        counts = np.bincount((words >> shift) & 255, minlength=256)
        expected = len(words) / 256
        found.append(((counts - expected) ** 2 / expected).sum())
    return max(found)


def check_sum(numbers, modulus_bits):
    clients, publics, server = round_of(numbers, modulus_bits)
    for message in messages_of(clients, publics, server, modulus_bits).values():
        server.receive(message)
    expected = sum(values_of(n, modulus_bits).astype(np.int64) for n in numbers) % 2**modulus_bits
    assert np.array_equal(server.total(), expected)


@pytest.mark.parametrize(
    ("numbers", "modulus_bits"), [((0, 1), 32), ((2, 5, 11, 30), 32), (range(7), 20), ((4, 3), 4)]
)
def test_the_sum_is_exact(numbers, modulus_bits):
    check_sum(numbers, modulus_bits)


def check_uniform(modulus_bits=32):
    clients, publics, server = round_of(modulus_bits=modulus_bits)
    messages = messages_of(clients, publics, server, modulus_bits)
    for message in messages.values():
        assert chi_squared(message[10:], modulus_bits) < BELOW_1E_6
        assert message[10:].max() < 2**modulus_bits
    # Nor does the sum of some, of whom the others are not known.
    some = sum(messages[n][10:] for n in (2, 5, 11)) & np.uint32(2**modulus_bits - 1)
    assert chi_squared(some, modulus_bits) < BELOW_1E_6


@pytest.mark.parametrize("modulus_bits", [32, 20])
def test_any_one_message_is_uniform(modulus_bits):
    check_uniform(modulus_bits)
    assert chi_squared(values_of(2)) > 1e5, "the test finds what is not"


def test_a_mask_is_another_one_in_another_round_and_for_another_pair():
    clients, publics, server = round_of()
    first = messages_of(clients, publics, server)
    second = messages_of(clients, publics, server, round=ROUND + 1)
    for n in clients:
        assert np.mean(first[n][10:] == second[n][10:]) < 1e-3
    keys = {
        clients[i]._keys.agree(publics[j], "mask", ROUND, *sorted((i, j)))
        for i in clients
        for j in clients
        if i != j
    }
    assert len(keys) == 6, "one for each pair, and both of it find the same"


def test_a_client_that_drops_out_ends_the_round():
    clients, publics, server = round_of()
    messages = messages_of(clients, publics, server)
    del messages[5]
    for message in messages.values():
        server.receive(message)
    with pytest.raises(RoundEnded, match=r"round 7 has ended without a sum: client 5 dropped out"):
        server.total()
    assert chi_squared(server._sum) < BELOW_1E_6, "what it has added says nothing"


def changed(message, place, by=1):
    other = message.copy()
    other[place] += by
    return other


@pytest.mark.parametrize(
    ("send", "error"),
    [
        (lambda m, c, p, s: changed(m[5], 0), "a message of round 8 in round 7"),
        (lambda m, c, p, s: changed(m[5], 1), "of client 6, with which no key was agreed"),
        (lambda m, c, p, s: changed(m[5], 1, 6), "client 11 was not signed by"),
        (lambda m, c, p, s: changed(m[5], 2), "client 5 was not signed by"),
        (lambda m, c, p, s: changed(m[5], 10), "client 5 was not signed by"),
        (lambda m, c, p, s: changed(m[5], -1), "client 5 was not signed by"),
        (lambda m, c, p, s: m[5][:-1], r"uint32 of \(4009,\), not uint32 of \(4010,\)"),
        (lambda m, c, p, s: m[5].astype(np.int64), "a message is int64"),
        (lambda m, c, p, s: s.receive(m[5]) or m[5], "client 5 has sent already"),
        (
            lambda m, c, p, s: (stranger := SecureClient(5)).message(
                values_of(5), ROUND, p | {5: stranger.public}, s.public
            ),
            "client 5 was not signed by",
        ),
        (
            lambda m, c, p, s: c[5].message(values_of(5), ROUND - 1, p, s.public),
            "a message of round 6 in round 7",
        ),
    ],
)
def test_what_is_not_of_this_round_is_refused_and_not_added(send, error):
    clients, publics, server = round_of()
    messages = messages_of(clients, publics, server)
    with pytest.raises(Stranger, match=error):
        server.receive(send(messages, clients, publics, server))
    for client, message in messages.items():
        if client in server.missing:
            server.receive(message)
    assert np.array_equal(server.total(), sum(values_of(n) for n in clients))


def test_a_client_refuses_a_list_in_which_it_is_somebody_else_or_alone():
    clients, publics, server = round_of()
    for wrong in (publics | {2: publics[5]}, {5: publics[5]}):
        with pytest.raises(Stranger, match="client 2: the round's list has another key for it"):
            clients[2].message(values_of(2), ROUND, wrong, server.public)
    with pytest.raises(ValueError, match="the sum over 1 client is that client's values"):
        clients[2].message(values_of(2), ROUND, {2: publics[2]}, server.public)
    with pytest.raises(ValueError, match="at least two must take part"):
        server.begin(ROUND, {2: publics[2]}, LENGTH)


# Fixed point


def test_fixed_point_rounds_clips_and_adds_up_exactly():
    fixed = FixedPoint(limit=2.0, bits=10, modulus_bits=16)
    values = np.random.default_rng(0).uniform(-2, 2, (fixed.most, 300))
    total = sum(fixed.encode(row) for row in values)
    assert fixed.most == 64  # (2¹⁵ - 1) // (2⁹ - 1)
    assert np.abs(fixed.decode(total) - values.sum(0)).max() <= fixed.most * 2.0 / 511 / 2
    assert list(fixed.decode(fixed.encode(np.array([5.0, -5.0, 0.0])))) == [2.0, -2.0, 0.0]
    extreme = sum(fixed.encode(np.full(1, -2.0)) for _ in range(fixed.most))
    assert fixed.decode(extreme)[0] == pytest.approx(-2.0 * fixed.most)
    with pytest.raises(ValueError, match=r"the sum of 65 values of 10 bits may overflow 2\^16: at"):
        fixed.check(65)
    one_more = extreme + fixed.encode(np.full(1, -2.0))
    assert fixed.decode(one_more)[0] > 0, "which would have come out with the wrong sign"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: FixedPoint(limit=0), "limit must be positive, not 0"),
        (lambda: FixedPoint(bits=33), "bits=33 and modulus_bits=32"),
        (lambda: FixedPoint(bits=1), "bits=1"),
        (lambda: FixedPoint().encode(np.array([np.nan])), "a value is not finite"),
    ],
)
def test_fixed_point_refuses(make, error):
    with pytest.raises(ValueError, match=error):
        make()


# The method

SECURE = partial(SecureFederatedAveraging, **SOME)


def test_secure_averaging_is_averaging_up_to_rounding_and_the_same_bits_on_any_ranks():
    expected = on(1, partial(FederatedAveraging, **SOME))[0][1]
    first = on(1, SECURE)[0]
    m, fixed = 4, FixedPoint()
    rounding = 3 * m * fixed.limit / fixed.levels / 2  # of three rounds
    assert 0 < gap(first[1], expected) < 2 * rounding  # the second round begins a little elsewhere
    for ranks in (2, 4):
        for _, got in on(ranks, SECURE):
            assert gap(got, first[1]) == 0


@pytest.mark.parametrize(("ranks", "batch"), [(2, 60), (3, 23)])
def test_measured_equals_formula(ranks, batch, monkeypatch):
    monkeypatch.setitem(METHODS, "secure", SECURE)
    setting = Setting(batch=batch, steps=3)
    launch(lambda comm: check_predictions(comm, "secure", setting), ranks, LocalWorld())


def test_gives_on_a_device_what_the_host_gives(monkeypatch):
    import strict

    from minidist.engine import array as arrays

    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    monkeypatch.setitem(METHODS, "secure", SECURE)
    check_device("secure", "strict", 3)


def method_on(comm, **options):
    options = SOME | options
    return SecureFederatedAveraging(
        mlp((12, 9, 7, 5)), CrossEntropy(), SGD(0.1), comm, 3, **options
    )


def test_a_drop_out_ends_the_round_on_every_rank_and_the_next_may_go_on():
    def run(comm):
        with defaults(dtype="float64"):
            method, straight = method_on(comm), method_on(comm)
            drawn = method.drawn(method.samples(method.parts(whole())))
            method.drops = {drawn[1]}
            before = method.parameters()
            with pytest.raises(RoundEnded, match=f"client {drawn[1]} dropped"):
                method.step(whole())
            assert method.steps == 0
            assert all(np.array_equal(v, before[n]) for n, v in method.parameters().items())
            method.drops = ()
            return method.step(whole()) == straight.step(whole())

    assert launch(run, 3, LocalWorld()) == [True] * 3


def test_values_beyond_the_limit_are_counted():
    def run(comm, limit):
        method = method_on(comm, fixed=FixedPoint(limit=limit))
        for _ in range(2):  # the count is that of the last round
            method.step(whole())
        return method.clipped

    assert launch(lambda comm: run(comm, 1.0), 2, LocalWorld()) == [0, 0]
    size = mlp((12, 9, 7, 5)).init(0).flat.size
    for count in launch(lambda comm: run(comm, 1e-4), 2, LocalWorld()):
        assert 0 < count < 2 * size, "two clients a rank"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"fraction": 0.1}, "the sum over 1 client is that client's values"),
        ({"fixed": FixedPoint(bits=31), "fraction": 1.0}, "the sum of 6 values of 31 bits may"),
        ({"drops": [6]}, "gone has client 6"),
    ],
)
def test_rounds_that_cannot_be_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        launch(lambda comm: method_on(comm, **options).step(whole()), 2, LocalWorld())


# Mutants


def signs_equal(monkeypatch):
    true = secure_sum.mask_of
    # For the higher of a pair the mask is subtracted: negated before, it is added.
    seen = set()

    def mask(key, length):
        made = true(key, length)
        if key in seen:
            return (0 - made).astype(np.uint32)
        seen.add(key)
        return made

    monkeypatch.setattr(secure_sum, "mask_of", mask)


def no_masks(monkeypatch):
    monkeypatch.setattr(secure_sum, "mask_of", lambda key, length: np.zeros(length, np.uint32))


def short_masks(monkeypatch):
    """Of 24 bits: the highest 8 of a value are seen."""
    true = secure_sum.mask_of
    monkeypatch.setattr(secure_sum, "mask_of", lambda key, length: true(key, length) >> 8)


def one_mask_for_all_values(monkeypatch):
    true = secure_sum.mask_of
    monkeypatch.setattr(
        secure_sum, "mask_of", lambda key, length: np.full(length, true(key, 1)[0], np.uint32)
    )


def masks_without_the_round(monkeypatch):
    true = secure_sum.KeyPair.agree
    monkeypatch.setattr(
        secure_sum.KeyPair,
        "agree",
        lambda self, public, what, round, *pair: true(self, public, what, *pair),
    )


def tags_of_nothing(monkeypatch):
    monkeypatch.setattr(secure_sum, "tag_of", lambda key, message: np.zeros(8, np.uint32))


MUTANTS = [
    (signs_equal, lambda: check_sum((2, 5, 11, 30), 32)),
    (no_masks, check_uniform),
    (short_masks, check_uniform),
    (one_mask_for_all_values, check_uniform),
    (
        masks_without_the_round,
        test_a_mask_is_another_one_in_another_round_and_for_another_pair,
    ),
    (
        tags_of_nothing,
        lambda: test_what_is_not_of_this_round_is_refused_and_not_added(
            lambda m, c, p, s: changed(m[5], 10), "its key did not sign"
        ),
    ),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
def test_mutants_are_rejected(mutant, check, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()
