"""Peak memory of the server over the number of hospitals: `python tests/benchmarks/server_memory.py`.

The whole way of a round's replies (message, spool, checks, merge, the server's average, the state on disk) with a
model of random weights, each case in a process of its own. What is printed is the peak's growth over what is there
before the round (weights, average, the optimiser's moments), in models' sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jointdiff.run_keys import STRATEGIES

RULES = STRATEGIES
LAYERS = 50  # of a megabyte each where the model has fifty, as networks have them


def one_case(strategy: str, num_hospitals: int, megabytes: int) -> dict[str, float]:
    """Merge one round of `num_hospitals` replies and return the peak growth in bytes and the seconds."""
    import numpy as np
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

    from jointdiff.config import Config, RunConfig
    from jointdiff.ema import moving_average
    from jointdiff.protocol import TRAIN, RoundInstructions, RoundReport
    from jointdiff.record import RunRecord
    from server.hospitals import Hospitals
    from server.merging import merge, outliers
    from server.optimizers import initial_moments
    from server.questions import Questions
    from server.replies import check_update, to_arrays
    from server.run_state import RunState, write_state
    from simulations.local import LocalGrid

    count = megabytes * 2**20 // 4
    generator = np.random.default_rng(0)
    weights = {f"layer-{k}": generator.standard_normal(count // LAYERS, dtype=np.float32) for k in range(LAYERS)}

    def hospital(message: Message, _context: object) -> Message:
        asked = RoundInstructions.from_json(str(message.content["instructions"]["json"]))
        own = np.random.default_rng(asked.hospital_index)
        # Layer by layer: what is measured is the server's memory, not that of a hospital in the same process.
        arrays = {}
        for name, w in weights.items():
            layer = {name: w + own.standard_normal(w.shape, dtype=np.float32)}
            arrays |= {f"{name}-{parcel}": array for parcel, array in to_arrays(layer).items()}
        report = RoundReport(asked.hospital, num_images=100).to_json()
        content = RecordDict({"report": ConfigRecord({"json": report}), "arrays": ArrayRecord(arrays)})
        return Message(content, reply_to=message)

    class Grid(LocalGrid):
        def _answer(self, message: Message) -> Message:  # a network's messages are in another process: no copy here
            return hospital(message, None)

    with tempfile.TemporaryDirectory() as folder:
        run = RunConfig(strategy=strategy, num_hospitals=num_hospitals, run_name="memory")
        names = [f"hospital-{k + 1}" for k in range(num_hospitals)]
        questions = Questions(Hospitals(Grid(), names), Config(run=run), RunRecord(Path(folder), Config(run=run)))
        moments = {name: array + np.float32(1e-3) for name, array in initial_moments(strategy, weights).items()}
        average = {name: array.copy() for name, array in weights.items()}
        before, began = _from_here(), time.perf_counter()
        with questions.ask(
            TRAIN, 1, weights, minimum=num_hospitals,
            check=lambda _, tensors: check_update(tensors, like=weights),
            check_all=lambda replies, spool: outliers(replies, spool, weights),
        ) as answers:  # fmt: skip
            weights, moments = merge(answers.good, answers.spool, run, weights=weights, moments=moments)
        average = moving_average(average, weights, 2, 0.25)
        write_state(Path(folder), RunState(1, weights, average, moments))
    return {"growth": _memory("VmHWM") - before, "seconds": time.perf_counter() - began}


def _from_here() -> int:
    """Forget the peak so far, and return the bytes in memory now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def main() -> None:
    """Print a Markdown table: one row per rule, one column per number of hospitals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--hospitals", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(one_case(options.case[0], int(options.case[1]), options.megabytes)))
        return
    print(f"Peak growth in models of {options.megabytes} MB (seconds)\n")
    print("| rule | " + " | ".join(f"{n} hospitals" for n in options.hospitals) + " |")
    print("|---" * (1 + len(options.hospitals)) + "|")
    for rule in RULES:
        cells = []
        for count in options.hospitals:
            command = [sys.executable, __file__, "--megabytes", str(options.megabytes), "--case", rule, str(count)]
            found = json.loads(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            )
            cells.append(f"{found['growth'] / 2**20 / options.megabytes:.2f} ({found['seconds']:.0f})")
        print(f"| {rule} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
