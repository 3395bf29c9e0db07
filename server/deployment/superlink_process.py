"""Flower's SuperLink with more patience for its own database: `python -m server.deployment.superlink_process OPTIONS`.

Flower gives a lock on its SQLite database 5 seconds and then answers 500, upon which its SuperExec dies and takes the
run along. On a machine whose disk is busy that has happened, and no option of Flower's changes it. OPTIONS are its own.
"""

from __future__ import annotations

from flwr.supercore import sql_mixin

BUSY_TIMEOUT_MS = 60_000


def with_patience(pragmas: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return Flower's settings of SQLite with another busy_timeout, and the others as they are."""
    return tuple((name, str(BUSY_TIMEOUT_MS) if name == "busy_timeout" else value) for name, value in pragmas)


def main() -> None:
    """Become Flower's SuperLink."""
    names = vars(sql_mixin)
    names["SQLITE_PRAGMAS"] = with_patience(names["SQLITE_PRAGMAS"])
    from flwr.superlink.cli import flower_superlink

    flower_superlink()


if __name__ == "__main__":
    main()
