import pytest

from emb_model_provider.modelmap import BatchLimits
from shard.batching.costs import SlicePlan
from shard.batching.lane import Lane
from shard.engine import Engine
from tests.support.fake_encoder import FakeEncoder
from tests.support.plans import make_plan
from tests.support.recorder import Recorder


@pytest.fixture
def make_engine():
    engines = []

    def make(
        encoder: FakeEncoder, plan: SlicePlan | None = None, *, lanes: int = 1, **limits
    ) -> tuple[Engine, Recorder]:
        recorder = Recorder()
        engine = Engine(
            encoder, [Lane() for _ in range(lanes)], lanes, BatchLimits(**limits), plan or make_plan(), recorder
        )
        engines.append((engine, encoder))
        engine.start()
        return engine, recorder

    yield make
    for engine, encoder in engines:
        encoder.gate.set()
        engine.stop()
