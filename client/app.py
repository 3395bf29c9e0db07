"""The Flower ClientApp: unpack the message, hand it to `client.round`, pack the answer. Nothing else happens here.

Around all of it stands the gate (gate.py): it lets out what the allow-list declares, and writes the manifest of it.

Names of the records: "instructions" (a config record with one JSON text) and "arrays" (parcels) on the way in;
"report" and "arrays" on the way out, which the gate packs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client import border
from client.gate import GatedApp
from jointdiff import parcels

app = GatedApp()


@app.train()
def train(message: Message, _context: Context) -> Message:
    """Train on the site's images; weights go back."""
    return _answer(message)


@app.evaluate()
def evaluate(message: Message, _context: Context) -> Message:
    """Predict the site's test images; mergeable statistics go back."""
    return _answer(message)


@app.query("autoencoder")
def autoencoder(message: Message, _context: Context) -> Message:
    """Keep the frozen autoencoder of a latent run."""
    return _answer(message)


@app.query("describe")
def describe(message: Message, _context: Context) -> Message:
    """Say who this site is: class table and device."""
    return _answer(message)


@app.query("head")
def head(message: Message, _context: Context) -> Message:
    """Compute the statistics that solve the classifier head."""
    return _answer(message)


@app.query("explain")
def explain(message: Message, _context: Context) -> Message:
    """Make the site's gallery; grades alone go back."""
    return _answer(message)


@app.query("keys")
def keys(message: Message, _context: Context) -> Message:
    """Open a secure sum: public keys go back."""
    return _answer(message)


@app.query("shares")
def shares(message: Message, _context: Context) -> Message:
    """Deal shares of this site's secrets, sealed for each of the others."""
    return _answer(message)


@app.query("unmask")
def unmask(message: Message, _context: Context) -> Message:
    """Give the shares that take the masks off a sum."""
    return _answer(message)


def _answer(message: Message) -> Message:
    records = message.content.config_records
    text = str(records["instructions"]["json"]) if "instructions" in records else ""
    report, tensors = border.answer(text, lambda: _unpack(message.content))
    content = RecordDict({"report": ConfigRecord({"json": report.to_json()}), "arrays": _pack(tensors)})
    return Message(content, reply_to=message)


def _unpack(content: RecordDict) -> dict[str, np.ndarray]:
    arrays = content.array_records.get("arrays", ArrayRecord())
    return parcels.unpack_all(array.numpy() for array in arrays.values())


def _pack(tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in tensors.items()})
