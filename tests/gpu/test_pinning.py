"""A model runs on the device that its entry names, and on no other."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.processes import environment
from tests.support.server import Server
from tests.support.tiny_models import make_sentence_transformers


def pids_on_cards() -> dict[int, str]:
    """Return the processes that hold memory of a card, and the card's number on the bus."""
    ask = ["nvidia-smi", "--format=csv,noheader", "--query-compute-apps=pid,gpu_bus_id"]
    rows = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.split("\n")
    return {int(pid): bus.strip() for pid, _, bus in (row.partition(",") for row in rows if row.strip())}


def opened_cards(pid: int) -> set[str]:
    """Return the device files of cards that a process has open; loading CUDA's library alone opens none."""
    links = (str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink())
    return {link for link in links if re.fullmatch(r"/dev/nvidia\d+", link)}


@pytest.mark.timeout(240)
def test_a_model_is_where_its_entry_says_and_sees_no_other_card(device, tmp_path):
    cards = torch.cuda.device_count()
    number = cards - 1  # the last: whatever ignores the entry takes the first
    asked = device if device == "cpu" else f"cuda:{number}"
    directory = make_sentence_transformers(tmp_path / "model")
    mapping = {"m": {"name": str(directory), "device": asked, "precision": "fp32"}}
    with Server(tmp_path, env={"EMB_PROVIDER_MODEL_MAPPING": json.dumps(mapping)}) as server:
        server.wait_ready(200)
        pid = server.shard_pid("m")
        vectors = np.array(server.embed("m", ["吃完海鲜可以喝牛奶吗", "the weather is lovely today"]))
        assert np.isfinite(vectors).all()
        visible = environment(pid)["CUDA_VISIBLE_DEVICES"]
        if device == "cpu":
            assert visible == ""
            assert server.get("/v1/models/m").json["device"] == "cpu"
            assert not opened_cards(pid)
            return
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        assert visible == (chosen.split(",")[number] if chosen else str(number))
        assert server.get("/v1/models/m").json["device"] == "cuda:0"  # the only one that it sees
        if found := pids_on_cards():  # empty in containers with process ids of their own
            ask = ["nvidia-smi", "--format=csv,noheader", "--query-gpu=gpu_bus_id", f"--id={visible}"]
            bus = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
            assert found.get(pid, bus) == bus
        assert opened_cards(pid)
