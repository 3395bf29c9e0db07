"""The protocol among parties in one process: the sum comes out, dropouts included, and nothing else does."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from jointdiff import quorum, secure_sum
from jointdiff.fixed_point import for_sums, for_updates
from jointdiff.secure_sum import PublicKeys, Session


class Party:
    def __init__(self, name: str) -> None:
        self.name = name
        self.masking, self.seed = secure_sum.new_secret(), secure_sum.new_secret()
        self.public = PublicKeys(secure_sum.public_key(secure_sum.new_secret()), secure_sum.public_key(self.masking))


def parties(count: int) -> tuple[list[Party], Session]:
    made = [Party(f"hospital-{k + 1}") for k in range(count)]
    return made, Session("nonce", "train", quorum.threshold(count), {p.name: p.public for p in made})


def masked(party: Party, session: Session, values, participants, largest=9):
    return secure_sum.mask(
        values, session, name=party.name, participants=participants, largest=largest, seed=party.seed,
        private_key=party.masking,
    )  # fmt: skip


def opened(total, session, everyone, survivors, largest=9):
    """Unmask with secrets that went through shares held by the survivors alone."""
    at = [session.position(p.name) for p in survivors]

    def through_shares(secret: bytes) -> bytes:
        shares = secure_sum.split(secret, session.threshold, len(session.roster))
        return secure_sum.combine({position: shares[position - 1] for position in at}, session.threshold)

    return secure_sum.unmask(
        total,
        session,
        participants=[p.name for p in everyone],
        largest=largest,
        seeds={p.name: through_shares(p.seed) for p in survivors},
        keys={p.name: through_shares(p.masking) for p in everyone if p not in survivors},
    )


def summed(parts):
    return {name: np.sum([part[name] for part in parts], axis=0, dtype=parts[0][name].dtype) for name in parts[0]}


@pytest.mark.parametrize("make", [for_updates, for_sums])
@pytest.mark.parametrize(("count", "dropped"), [(3, []), (3, [1]), (5, []), (5, [0]), (5, [4]), (12, [0, 3, 10, 11])])
def test_the_unmasked_sum_is_that_of_the_survivors_bit_for_bit(make, count, dropped):
    everyone, session = parties(count)  # twelve: the order of the names is not that of the numbers
    code, rng = make(count), np.random.default_rng(1)
    plain = [code.encode({"b": rng.normal(size=(3, 5)), "a": rng.normal(size=()), "c": rng.normal(size=70)})
             for _ in everyone]  # fmt: skip
    names = [p.name for p in everyone]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # wrapping is meant
        sent = [masked(p, session, values, names) for p, values in zip(everyone, plain, strict=True)]
        left = [k for k in range(count) if k not in dropped]
        total = summed([sent[k] for k in left])
        found = opened(total, session, everyone, [everyone[k] for k in left])
    wanted = summed([plain[k] for k in left])
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert all(not np.array_equal(total[name], wanted[name]) for name in wanted)


def test_what_is_sent_says_nothing_of_what_is_hidden():
    everyone, session = parties(3)
    names = [p.name for p in everyone]
    zeros = {"x": np.zeros(50_000, np.uint32)}
    sent = [masked(p, session, zeros, names)["x"] for p in everyone]
    # Nor do all that the server could form with the sums of two, or with the masks of one dropped out taken off.
    one_opened = [sent[0] + sent[1], sent[0] - sent[1]]
    for array in (*sent, *one_opened):
        counts = np.bincount(array.view(np.uint8), minlength=256)
        chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert abs(chi_square - 255) < 6 * np.sqrt(2 * 255)


def test_the_key_of_a_hospital_that_was_merely_late_does_not_open_its_tensors():
    everyone, session = parties(3)
    names = [p.name for p in everyone]
    x = {"x": np.arange(1000, dtype=np.uint32)}
    late = everyone[0]
    array = masked(late, session, x, names)
    info = session.mask_info(names, 9)
    stripped = array
    for other in everyone[1:]:  # what the server can do that was given the key, taking the hospital for dropped out
        key = secure_sum.agree(late.masking, other.public.masking, info)
        added, subtracted = ([], [key]) if late.name < other.name else ([key], [])
        stripped = secure_sum._shifted(stripped, added, subtracted)
    assert np.mean(stripped["x"] == x["x"]) < 0.01
    assert np.array_equal(secure_sum._shifted(stripped, [], [late.seed])["x"], x["x"])  # only the seed hides it


@pytest.mark.parametrize("told", ["another nonce", "another roster", "other participants", "another unit of weights"])
def test_masks_do_not_cancel_where_hospitals_were_told_different_things(told):
    everyone, session = parties(4)
    names = [p.name for p in everyone]
    other = {
        "another nonce": (replace(session, nonce="another"), names, 9),
        "another roster": (replace(session, roster={**session.roster, "hospital-4": Party("").public}), names, 9),
        "other participants": (session, names[:3], 9),
        "another unit of weights": (session, names, 10),
    }[told]
    x = for_updates(4).encode({"x": np.ones(1000)})
    sent = [masked(everyone[0], other[0], x, other[1], other[2])] + [masked(p, session, x, names) for p in everyone[1:]]
    found = opened(summed(sent), session, everyone, everyone)
    with pytest.raises(ValueError, match="do not cancel"):
        for_updates(4).decode(found, 4)


def test_fewer_shares_than_the_threshold_give_nothing_back():
    secret = secure_sum.new_secret()
    shares = {k + 1: share for k, share in enumerate(secure_sum.split(secret, 3, 5))}
    assert secure_sum.combine(shares, 3) == secret
    assert secure_sum.combine({k: shares[k] for k in (2, 4, 5)}, 3) == secret
    with pytest.raises(ValueError, match="2 shares of a secret are left; 3 are needed"):
        secure_sum.combine({k: shares[k] for k in (2, 4)}, 3)
    assert secure_sum.combine({k: shares[k] for k in (2, 4)}, 2) != secret
    assert secret not in shares.values()


def test_a_share_of_a_key_that_was_changed_is_noticed():
    everyone, session = parties(3)
    names = [p.name for p in everyone]
    with pytest.raises(ValueError, match="hospital-3's key do not give its key"):
        secure_sum.unmask(
            {}, session, participants=names, largest=0, seeds={n: bytes(32) for n in names[:2]},
            keys={"hospital-3": everyone[0].masking},
        )  # fmt: skip
    with pytest.raises(ValueError, match="either a survivor or dropped out"):
        secure_sum.unmask({}, session, participants=names, largest=0, seeds={n: bytes(32) for n in names[:2]}, keys={})


def test_sealed_shares_open_for_whom_they_are_meant_and_unchanged():
    a, b = secure_sum.new_secret(), secure_sum.new_secret()
    key = secure_sum.agree(a, secure_sum.public_key(b), b"shares")
    box = secure_sum.seal(key, b"secret", b"1 to 2")
    assert secure_sum.unseal(secure_sum.agree(b, secure_sum.public_key(a), b"shares"), box, b"1 to 2") == b"secret"
    assert b"secret" not in box and secure_sum.seal(key, b"secret", b"1 to 2") != box
    for wrong in (
        (key, box, b"1 to 3"),
        (bytes(32), box, b"1 to 2"),
        (key, box[:-1] + b"x", b"1 to 2"),
        (key, b"", b""),
    ):
        with pytest.raises(ValueError, match="cannot be opened"):
            secure_sum.unseal(*wrong)


def test_a_roster_of_too_few_or_with_one_key_twice_is_refused():
    everyone, session = parties(3)
    session.check(3)
    with pytest.raises(ValueError, match="3 hospitals take part; it must be 4"):
        session.check(4)
    twice = {**session.roster, "hospital-2": everyone[0].public}
    with pytest.raises(ValueError, match="same public key"):
        replace(session, roster=twice).check(3)


@pytest.mark.parametrize("text", ["%", "QUJD", 7, None])
def test_what_is_no_key_is_refused(text):
    with pytest.raises(ValueError, match=r"base64|bytes, not 32"):
        secure_sum.to_bytes(text)


def test_weights_are_relative_to_the_largest_count():
    assert [secure_sum.relative_weight(n, 8) for n in (8, 2, 0)] == [1, 0.25, 0]
    assert secure_sum.relative_weight(0, 0) == 1
    with pytest.raises(ValueError, match="said to count 3, but this one counts 4"):
        secure_sum.relative_weight(4, 3)
    assert [secure_sum.counted(w, num_images=9, num_labels=4) for w in ("images", "labels", "equal")] == [9, 4, 1]


@pytest.mark.parametrize("count", range(2, 40))
def test_no_two_groups_of_hospitals_are_large_enough_to_open_two_lists_of_survivors(count):
    assert 2 * quorum.threshold(count) > count >= quorum.threshold(count)
