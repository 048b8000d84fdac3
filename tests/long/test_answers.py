"""The answers that are computed again: each is about what its lesson says today."""

from __future__ import annotations

import pytest

from tests.long.answers import entries, equal, program, text

ENTRIES = entries()


@pytest.mark.parametrize(
    "entry", ENTRIES, ids=[f"{one['lesson']}.{one['number']}" for one in ENTRIES]
)
def test_what_is_claimed_stands_in_the_answer_and_the_program_can_be_made(entry):
    compile(program(entry), entry["lesson"], "exec")
    said = text(entry)
    assert all(claim in said for claim in entry["claims"]), said


def test_numbers_may_differ_as_the_claim_is_rounded_and_words_not_at_all():
    assert equal("30.2", "30.2487", 0) and not equal("30.2", "30.26", 0)
    assert equal("1,629", "1628.7", 0) and equal("84 %", "83.2", 1.0)
    assert equal("NaN", "NaN", 0) and not equal("NaN", "2.0", 0)
    assert not equal("a deadlock", "no deadlock", 0) and not equal("100 s", "99", 0)
