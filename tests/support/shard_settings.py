"""What a shard of the supervisor is started from, for tests that start none."""

import itertools
from pathlib import Path
from types import SimpleNamespace

from emb_model_provider.messages.configs import LogConfig
from emb_model_provider.modelmap import Hubs, ModelSpec
from supervisor.plan import Placement
from supervisor.shards import ShardSetting


def make_setting() -> ShardSetting:
    """Return the setting of a model ``en`` in directories that are nowhere."""
    return ShardSetting(
        index=0,
        generations=itertools.count(1),
        spec=ModelSpec(id="en", name="hub/en"),
        placement=Placement("cpu", "", (), 1),
        hubs=Hubs(),
        log=LogConfig("INFO", "plain"),
        run_directory=SimpleNamespace(socket_path=lambda index, number: Path(f"/nowhere/s{index}-{number}.sock")),
        cache_dir=Path("/nowhere"),
        drain_s=1.0,
    )
