"""What secure aggregation costs beside plain averaging: `python tests/benchmarks/secure_aggregation.py`.

The default model on phantoms, 3 and 5 hospitals, all of them in this one process: bytes on the wire per hospital and
round, and seconds per round of all parties together. One local step, so that little else than the exchange is left. A
network's latency comes on top: a secure round asks each hospital for nine answers, a plain one for three.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

from jointdiff.config import parse_run_config
from simulations.local import run_local


def one_case(num_hospitals: int, secure: bool, num_rounds: int) -> dict[str, float]:
    """Run a federation and return medians over its rounds."""
    began: dict[int, tuple[float, float]] = {}
    wall: list[float] = []
    cpu: list[float] = []
    replies: list[dict[str, Any]] = []

    def take(event: dict[str, Any]) -> None:
        now = (time.perf_counter(), time.process_time())
        if event["event"] == "round_started":
            began[event["round"]] = now
        elif event["event"] == "evaluated":
            wall.append(now[0] - began[event["round"]][0])
            cpu.append(now[1] - began[event["round"]][1])
        elif event["event"] == "hospital_replied" and event["round"]:
            replies.append(event)

    with tempfile.TemporaryDirectory() as home:
        settings = {
            "num-hospitals": num_hospitals, "num-rounds": num_rounds, "local-steps": 1, "explain": 0, "home": home,
            "device": "cpu", "secure-aggregation": secure,
        }  # fmt: skip
        run_local(parse_run_config(settings), callback=take)
    share = num_hospitals * num_rounds
    return {
        "messages": len(replies) / share,
        "to": sum(event["bytes_in"] for event in replies) / share,
        "from": sum(event["bytes_out"] for event in replies) / share,
        "wall": statistics.median(wall),
        "cpu": statistics.median(cpu),
    }


def main() -> None:
    """Print a Markdown table, plain and secure side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hospitals", type=int, nargs="+", default=[3, 5])
    options = parser.parse_args()
    print(
        "Per hospital and round: answers, bytes to and from it. Per round, all parties: seconds of the clock, of CPU.\n"
    )
    print("| hospitals | | answers | bytes to | bytes from | s | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for count in options.hospitals:
        for secure in (False, True):
            found = one_case(count, secure, options.rounds)
            cells = f"{found['messages']:.0f} | {found['to']:,.0f} | {found['from']:,.0f}"
            times = f"{found['wall']:.2f} | {found['cpu']:.2f}"
            print(f"| {count} | {'secure' if secure else 'plain'} | {cells} | {times} |", flush=True)


if __name__ == "__main__":
    main()
