"""The way to the federation: name, port, TLS, health, clock, key, admission."""

from __future__ import annotations

from client import connection, keys
from client.key_admission import Admission
from client.preflight.facts import FIX, PASS, UNKNOWN, WARN, Facts, Line
from client.preflight.reach import STAGES
from client.site_config import FederationAddress
from jointdiff.certificate_checks import WARN_DAYS
from jointdiff.errors import ConfigError

_AHEAD_WARN_S, _BEHIND_WARN_S = 2.0, 60.0


def name(facts: Facts) -> Line:
    """The server's name leads to an address."""
    if line := _before("name", facts):
        return line
    address = _address(facts)
    proxy = connection.proxy_of(address)
    if proxy:
        return Line(
            WARN, f"{address.host} is reached through the proxy of this machine's environment.",
            "That is fine if the lines below pass. Name the server in NO_PROXY to go straight.",
        )  # fmt: skip
    return Line(PASS, f"{address.host} is {', '.join(facts.reach.addresses or [])}")


def port(facts: Facts) -> Line:
    """Somebody listens there."""
    return _before("port", facts) or Line(PASS, f"{_address(facts).server} answers")


def tls(facts: Facts) -> Line:
    """The server's certificate is of our authority, for this name, and good for a while."""
    if line := _before("tls", facts):
        return line
    secured = facts.reach.secured
    assert secured is not None
    days = int(secured.days_left)
    text = f"{secured.version}, signed by {_address(facts).ca.name}, valid for {days} more days"
    if days < WARN_DAYS:
        return Line(WARN, text, "The coordinator renews it with `jointdiff-server certificates renew`.")
    return Line(PASS, text)


def health(facts: Facts) -> Line:
    """The federation behind the front door is up."""
    return _before("health", facts) or Line(PASS, "/health answers 200")


def clock(facts: Facts) -> Line:
    """This machine's clock agrees with the server's: Flower refuses what is signed at another time."""
    if line := _before("health", facts):
        return Line(UNKNOWN, line.text if line.status == UNKNOWN else "Not come to: the server gave no time.")
    found = facts.reach.health
    assert found is not None
    if problem := connection.clock_problem(_address(facts), found.ahead_s):
        return Line(FIX, problem.text, problem.remedy)
    if found.ahead_s is None:
        return Line(UNKNOWN, "The server's answer carries no date.")
    side = "ahead of" if found.ahead_s > 0 else "behind"
    text = f"{abs(found.ahead_s):.0f} s {side} the server's"
    if found.ahead_s > _AHEAD_WARN_S or found.ahead_s < -_BEHIND_WARN_S:
        return Line(
            WARN, f"{text}; Flower forgives {connection.MAX_AHEAD_S:.0f} s ahead, {connection.MAX_BEHIND_S:.0f} behind",
            "timedatectl set-ntp true",
        )  # fmt: skip
    return Line(PASS, text)


def key(facts: Facts) -> Line:
    """The private key has the form that Flower takes, and its owner alone can read it."""
    path = _address(facts).key
    if not path.is_file():
        return Line(FIX, f"There is no private key {path}.", "jointdiff-client keygen")
    shown = f"fingerprint {keys.fingerprint_of(path)}"
    if found := keys.warnings(path):
        return Line(FIX, f"{found[0].rpartition(': ')[0]}; {shown}", found[0].rpartition(": ")[2])
    return Line(PASS, shown)


def admission(facts: Facts) -> Line:
    """The federation knows this site's key."""
    if line := _before("admission", facts):
        return line
    found = facts.reach.admission
    if found is Admission.ADMITTED:
        return Line(PASS, "the federation knows this site's key")
    if found is Admission.UNKNOWN_KEY:
        problem = connection.ConnectionProblem("key", _address(facts))
        return Line(FIX, problem.text, problem.remedy)
    if found is Admission.CLOCK:
        return Line(UNKNOWN, "The server refuses the time of the signature: see the clock.")
    return Line(
        UNKNOWN, "This server does not tell without starting the node.", "`jointdiff-client start` says it at once."
    )


def _address(facts: Facts) -> FederationAddress:
    if facts.config.federation is None:
        raise ConfigError(
            f"{facts.config.path} has no section `federation`: add `server: HOST:PORT`, as the coordinator says."
        )
    return facts.config.federation


def _before(stage: str, facts: Facts) -> Line | None:
    """Return the line of a stage that failed, or was not come to because one before it failed."""
    _address(facts)
    found = facts.reach
    if found.problem is None:
        return None
    if found.stage == stage:
        return Line(FIX, found.problem.text, found.problem.remedy)
    if STAGES.index(found.stage) < STAGES.index(stage):
        return Line(UNKNOWN, "Not come to: mend the line above first.")
    return None
