"""Seconds and bytes of a round over real processes beside the same run in simulation.

`python tests/benchmarks/deployment_cost.py [--rounds 4] [--local-steps 30]`: the simulation; certificates, SuperLink,
front door and three sites on this machine. Hospitals hold other phantoms in the two, of the same number.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from jointdiff.events import read_events
from tests.deployment.federation import BIN, Party, federation

SITES = ("one", "two", "three")
NUM_IMAGES = 1200  # of each: the simulation's 3,000 training and 600 test phantoms over three hospitals
Events = list[dict[str, Any]]


def deployed(folder: Path, keys: str) -> Events:
    with federation(folder) as found:
        for seed, name in enumerate(SITES):
            site = found.site(name, "kind=phantom", "min-cell-count=0")
            path = site.home / "site.yaml"
            text = path.read_text(encoding="utf-8")
            path.write_text(
                text.replace("kind: phantom", f"kind: phantom\n  seed: {seed}\n  num-images: {NUM_IMAGES}"),
                encoding="utf-8",
            )
            found.admit(name)
            site.do("start")
        found.wait_until_connected(*SITES)
        found.server.do("run", "-c", f"classes=healthy,lesion run-name=deployed {keys}", seconds=3600)
        return found.events("deployed")


def simulated(folder: Path, keys: str) -> Events:
    home = folder / "simulation"
    home.mkdir()
    words = [str(BIN / "jointdiff-simulate"), "3_hospitals", "--run-config"]
    words.append(f"num-labels=0 run-name=simulated home={home} {keys}")
    environment = Party("jointdiff-simulate", home).environment()
    subprocess.run(words, env=environment, cwd=home, check=True, stdout=subprocess.DEVNULL, timeout=3600)
    return read_events(home / "runs" / "simulated" / "events.jsonl")


def row(name: str, events: Events) -> str:
    """One line of the table: medians over the rounds, without the first, which starts everything."""
    began = [e for e in events if e["event"] == "round_started"]
    ended = [e for e in events if e["event"] == "evaluated"]
    times = [
        (datetime.fromisoformat(b["time"]) - datetime.fromisoformat(a["time"])).total_seconds()
        for a, b in zip(began, ended, strict=True)
    ][1:]
    replies = [e for e in events if e["event"] == "hospital_replied" and e["round"] > 1]
    hospitals = len({e["hospital"] for e in replies})
    share = hospitals * (len(began) - 1) * 2**20
    down, up = (sum(e[key] for e in replies) / share for key in ("bytes_in", "bytes_out"))
    work = sum(e["duration_s"] for e in replies) / (hospitals * (len(began) - 1))
    spread = f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
    return f"| {name} | {spread} | {work:.1f} | {down:.2f} | {up:.2f} |"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--local-steps", type=int, default=30)
    options = parser.parse_args()
    keys = f"num-rounds={options.rounds} local-steps={options.local_steps} explain=0 device=cpu"
    print("| run | seconds per round | a hospital works in it | MB to a hospital | MB from it |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        print(row("simulation", simulated(Path(folder), keys)), flush=True)
        print(row("deployment", deployed(Path(folder), keys)), flush=True)


if __name__ == "__main__":
    main()
