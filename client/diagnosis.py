"""From a SuperNode that does not work to one sentence that names the cause.

What Flower prints is the second witness only: it says "Connection attempt failed" without a cause, one code for an
unknown key and for a site that is still counted as online, and "terminated gracefully" for a revoked key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from client import connection, key_admission
from client.connection import ConnectionProblem
from client.key_admission import Admission
from client.site_config import FederationAddress
from jointdiff.errors import ConfigError

# What Flower 1.41 and 1.42 print -> a cause of `connection.PROBLEMS`; the first that fits counts.
_PRINTED = (
    (re.compile(r"certificate has expired"), "expired"),
    (re.compile(r"certificate is not yet valid"), "not-yet-valid"),
    (re.compile(r"Hostname mismatch|IP address mismatch"), "hostname"),
    (re.compile(r"CERTIFICATE_VERIFY_FAILED"), "wrong-ca"),
    (re.compile(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE"), "plain-http"),
    (re.compile(r"\[code: 2004\]"), "identity"),
    (re.compile(r"401 Unauthorized|Invalid SuperNode authentication"), "clock"),
    (re.compile(r"Name or service not known|Temporary failure in name resolution|getaddrinfo failed"), "name"),
    (re.compile(r"Connection refused"), "refused"),
)


def diagnose(address: FederationAddress) -> ConnectionProblem | None:
    """Look for what keeps this site from the federation, stage by stage; None = nothing does."""
    try:
        health = connection.ask_health(address)
        if found := connection.clock_problem(address, health.ahead_s):
            return found
        admission = key_admission.ask(address)
    except ConnectionProblem as problem:
        return problem
    except ConfigError:
        return None  # the key cannot be read: whoever starts with it has said so
    if admission is Admission.UNKNOWN_KEY:
        return ConnectionProblem("key", address)
    if admission is Admission.CLOCK:
        return ConnectionProblem("clock", address, "far from")
    return None


def from_output(lines: Iterable[str], address: FederationAddress) -> ConnectionProblem | None:
    """Return the cause that a SuperNode's output names; None where it names none."""
    text = "\n".join(lines)
    for pattern, cause in _PRINTED:
        if match := pattern.search(text):
            detail = "far from" if cause == "clock" else match[0]
            return ConnectionProblem(cause, address, detail)
    return None
