"""A site's part in a secure sum (jointdiff/secure_sum.py): keys, shares, masked tensors, unmasking; each step once.

Between the steps the secrets lie in one file of the site, readable by its owner alone. The next session writes over it,
and it is deleted before the shares leave: nothing is left then that could answer a second time. A site that lost its
file, or crashed in the middle of a step that it had noted down, drops out of this sum and takes part in the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff import fixed_point, quorum, secure_sum, storage
from jointdiff.config import RunConfig
from jointdiff.errors import RefusedError
from jointdiff.protocol import RoundInstructions, RoundReport
from jointdiff.secure_sum import PublicKeys, Session, to_bytes, to_text

FILE = "secure-sum.json"
Tensors = dict[str, np.ndarray]
_KEYS, _SHARED, _MASKED = "keys", "shared", "masked"  # what has been done


class SecureSum:
    """One site's side of the session that the instructions name."""

    def __init__(self, ask: RoundInstructions, run: RunConfig, site_folder: Path) -> None:
        """Read nothing yet.

        Raises:
            RefusedError: The run has no secure sums.
        """
        if not run.secure_aggregation:
            raise RefusedError("This run is one without secure-aggregation: there are no keys and no shares to give.")
        self._ask = ask
        self._run = run
        self._path = Path(site_folder) / "state" / ask.run_name / FILE

    def show_keys(self) -> dict[str, Any]:
        """Open a session with fresh keys, and return the public ones."""
        with self._refusing():
            sealing, masking = secure_sum.new_secret(), secure_sum.new_secret()
            keys = PublicKeys(secure_sum.public_key(sealing), secure_sum.public_key(masking)).to_json()
            self._write({"done": _KEYS, "sealing": to_text(sealing), "masking": to_text(masking), "public": keys})
        return {"keys": keys}

    def deal_shares(self) -> dict[str, Any]:
        """Return, for every other hospital, sealed shares of this one's masking key and of its seed."""
        with self._refusing():
            kept, me = self._read(_KEYS), self._ask.hospital
            roster = self._ask.payload["roster"]
            session = self._session({"of": self._ask.payload["of"], "roster": roster})
            session.check(quorum.least_summands(self._run.num_hospitals, self._run.min_hospitals))
            if session.roster.get(me) != PublicKeys.from_json(kept["public"]):
                raise ValueError("the list of keys does not hold this hospital's own")
            seed = secure_sum.new_secret()
            count = len(session.roster)
            key_shares = secure_sum.split(to_bytes(kept["masking"]), session.threshold, count)
            seed_shares = secure_sum.split(seed, session.threshold, count)
            pairs = dict(
                zip(sorted(session.roster), (a + b for a, b in zip(key_shares, seed_shares, strict=True)), strict=True)
            )
            self._write(
                {**kept, "done": _SHARED, "of": session.kind, "roster": roster, "seed": to_text(seed),
                 "own": to_text(pairs.pop(me))}
            )  # fmt: skip
            sealing = to_bytes(kept["sealing"])
            sealed = {
                other: secure_sum.seal(self._pair_key(session, sealing, other), pair, session.seal_info(me, other))
                for other, pair in pairs.items()
            }
        return {"sealed": {other: to_text(box) for other, box in sealed.items()}}

    def check_ready(self) -> None:
        """Check that this site has dealt its shares and masked nothing yet.

        Raises:
            RefusedError: It is at another step.
        """
        with self._refusing():
            self._read(_SHARED)

    def mask_change(self, sent: Mapping[str, np.ndarray], trained: Tensors, report: RoundReport) -> Tensors:
        """Return this site's weighted change of the weights, masked.

        Args:
            sent: The weights that the server sent.
            trained: After local training.
            report: Counts the images and labels that the weight is made of.
        """
        with self._refusing():
            count = secure_sum.counted(self._run.weighting, num_images=report.num_images, num_labels=report.num_labels)
            weight = secure_sum.relative_weight(count, int(self._ask.payload["largest"]))
            change = {name: trained[name].astype(np.float64) - sent[name] for name in trained}
            limit = float(self._ask.payload["norm_limit"])
            norm = float(np.sqrt(sum(float((array**2).sum()) for array in change.values())))
            if 0 < limit < norm:
                raise ValueError(
                    f"the norm of this hospital's change is {norm:.3g}, more than the {limit:.3g} that the changes of "
                    "the round before make believable: has the training diverged?"
                )
            weighted = {name: weight * array for name, array in change.items()}
            return self._masked(fixed_point.for_updates(self._run.num_hospitals).encode(weighted))

    def mask_sums(self, sums: Mapping[str, np.ndarray]) -> Tensors:
        """Return this site's sums for the head, masked."""
        with self._refusing():
            return self._masked(fixed_point.for_sums(self._run.num_hospitals).encode(sums))

    def _masked(self, encoded: Tensors) -> Tensors:
        kept, me, payload = self._read(_SHARED), self._ask.hospital, self._ask.payload
        session = self._session(kept)
        if session.kind != self._ask.kind:
            raise ValueError("the keys and shares were made for a sum of another kind")
        sealing = to_bytes(kept["sealing"])
        received = {me: kept["own"]}
        for other, box in payload["sealed"].items():
            if other == me or other not in session.roster:
                raise ValueError("there are shares of a hospital that has shown no key")
            key = self._pair_key(session, sealing, other)
            pair = secure_sum.unseal(key, to_bytes(box, 0), session.seal_info(other, me))
            received[other] = to_text(pair)
        self._check_number(len(received))
        masked = secure_sum.mask(
            encoded,
            session,
            name=me,
            participants=sorted(received),
            largest=int(payload["largest"]),
            seed=to_bytes(kept["seed"]),
            private_key=to_bytes(kept["masking"]),
        )
        self._write({"done": _MASKED, "received": received})
        return masked

    def reveal(self) -> dict[str, Any]:
        """Return a share of the seed of every survivor, and of the key of every other: once, then nothing is left."""
        with self._refusing():
            received = self._read(_MASKED)["received"]
            survivors = set(self._ask.payload["survivors"])
            if not survivors <= received.keys() or self._ask.hospital not in survivors:
                raise ValueError("the list of survivors names others than have dealt shares, or not this hospital")
            self._check_number(len(survivors))
            pairs = {name: to_bytes(pair, 2 * secure_sum.SECRET_BYTES) for name, pair in received.items()}
            self._path.unlink()
        size = secure_sum.SECRET_BYTES
        return {
            "seeds": {name: to_text(pair[size:]) for name, pair in pairs.items() if name in survivors},
            "keys": {name: to_text(pair[:size]) for name, pair in pairs.items() if name not in survivors},
        }

    def _check_number(self, count: int) -> None:
        least = quorum.least_summands(self._run.num_hospitals, self._run.min_hospitals)
        if count < least:
            raise ValueError(f"{count} hospitals are left in the sum; below {least} this one sends and reveals nothing")

    def _session(self, kept: Mapping[str, Any]) -> Session:
        return Session(
            nonce=str(self._ask.payload["session"]),
            kind=str(kept["of"]),
            threshold=quorum.threshold(self._run.num_hospitals),
            roster={str(name): PublicKeys.from_json(keys) for name, keys in kept["roster"].items()},
        )

    @staticmethod
    def _pair_key(session: Session, sealing: bytes, other: str) -> bytes:
        return secure_sum.agree(sealing, session.roster[other].sealing, b"shares" + session.digest())

    def _read(self, done: str) -> dict[str, Any]:
        """Return what the last step of this session kept.

        Raises:
            RefusedError: There is none, or it is of another session or step.
        """
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            kept = {}
        if kept.get("session") != self._ask.payload["session"] or kept.get("done") != done:
            raise RefusedError(
                f"This hospital is not at the step '{self._ask.kind}' of this secure sum: each step of a sum is done "
                "once, and one that was missed is not made up for. It takes part in the next sum."
            )
        return dict(kept)

    def _write(self, kept: Mapping[str, Any]) -> None:
        text = json.dumps({"session": self._ask.payload["session"], **kept})
        storage.write_atomic(self._path, text, private=True)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what is wrong with the payload or the values into a refusal; nothing has left then."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = str(error) if isinstance(error, ValueError) else "the message lacks something, or is of another form"
            raise RefusedError(f"No part in this secure sum: {what}.") from error
