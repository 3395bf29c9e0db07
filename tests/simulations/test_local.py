from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from safetensors.numpy import load_file

from jointdiff.config import Config
from jointdiff.data import hospital_data
from jointdiff.events import read_events
from jointdiff.head import head_statistics, solve_head
from jointdiff.model import JointModel
from jointdiff.preparation import initial_weights
from jointdiff.training import head_is_solved_after, train_round
from server.rounds import run_federation
from simulations.local import LocalGrid, run_local


def _last(folder) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoints" / "last.safetensors")


@pytest.mark.parametrize("method", ["joint", "supervised"])
def test_one_hospital_federated_is_local_training_bit_for_bit(tiny_run, tiny_files, method):
    preset = tiny_files / f"{method}-no-average.yaml"
    preset.write_text(
        "ema-decay: 0.0\n" + ("head: gradient\ndiffusion-weight: 0.0\n" if method == "supervised" else "")
    )
    run = tiny_run(num_hospitals=1, num_rounds=3, preset=str(preset))
    folder = run_local(run)

    config = _config(folder)
    model, data, device, state = JointModel(config.model), hospital_data(run, 0), torch.device("cpu"), None
    model.load_state_dict({name: torch.from_numpy(array) for name, array in initial_weights(config).items()})
    for number in (0, 1, 2, 3):
        if number:
            _, state = train_round(
                model, data, config, round_number=number, hospital_index=0, device=device, state=state
            )
        if head_is_solved_after(number, config):
            head = solve_head(head_statistics(model, data, config, device), config)
            model.load_state_dict({**model.state_dict(), **head})
    local = model.state_dict()
    federated = _last(folder)
    assert federated.keys() == local.keys()
    for name in local:
        assert np.array_equal(federated[name], local[name].numpy()), name


def _config(folder) -> Config:
    return Config.from_dict(read_events(folder / "events.jsonl")[0]["config"])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_run):
    first, again, other = (
        _last(run_local(tiny_run(num_rounds=1, run_name=name, seed=seed)))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_the_number_of_nodes_changes_nothing(tiny_run):
    one = run_local(tiny_run(num_rounds=1, run_name="one"))
    two = run_federation(LocalGrid(num_nodes=2), tiny_run(num_rounds=1, run_name="two"))
    assert all(np.array_equal(_last(one)[name], _last(two)[name]) for name in _last(one))


def test_global_random_state_is_neither_used_nor_touched(tiny_run):
    torch.manual_seed(1)
    first = _last(run_local(tiny_run(num_rounds=1, run_name="a")))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = _last(run_local(tiny_run(num_rounds=1, run_name="b")))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_callback_sees_every_event_in_order(tiny_run):
    seen: list[dict] = []
    folder = run_local(tiny_run(num_rounds=1), seen.append)
    assert seen == read_events(folder / "events.jsonl")


def test_a_site_gets_a_copy_and_cannot_change_what_others_get(tiny_run):
    def greedy(message, context):
        message.content.array_records["arrays"].clear()
        return Message(message.content, reply_to=message)

    grid = LocalGrid(greedy)
    content = RecordDict({"arrays": ArrayRecord([np.ones(3)])})
    message = Message(content, dst_node_id=next(iter(grid.get_node_ids())), message_type="train")
    (reply,) = grid.send_and_receive([message])
    assert len(content["arrays"]) == 1 and len(reply.content["arrays"]) == 0


def test_sites_home_lets_a_sites_life_span_runs(tiny_run, tmp_path):
    sites = tmp_path / "sites"
    for name in ("one", "two"):
        run_local(tiny_run(num_rounds=1, run_name=name, sites_home=str(sites)))
    assert sorted(p.name for p in (sites / "hospital-1" / "state").iterdir()) == ["one", "two"]
