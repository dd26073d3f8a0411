import gc
from types import SimpleNamespace
from weakref import WeakSet

import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.encoder import Tokenized
from shard.encoders.cuda import recording
from shard.encoders.cuda.flat_texts import Layout
from shard.encoders.cuda.recording import Recording, layouts, record


@given(st.integers(8, 9000), st.booleans())
def test_layouts_grow_and_one_has_room_for_the_longest_text(longest, typed):
    found = list(layouts(longest, typed=typed))
    assert [layout.tokens for layout in found] == sorted(layout.tokens for layout in found)
    assert len(set(found)) == len(found)
    for layout in found:
        assert layout.longest <= min(layout.tokens, longest)
        assert layout.texts > 1
    assert any(layout.has_room_for(Layout(longest, 1, longest, typed)) for layout in found)


@given(st.integers(8, 9000))
def test_no_layout_lets_attention_start_many_more_blocks_than_it_has_tokens(longest):
    for layout in layouts(longest, typed=False):
        blocks = layout.texts * -(-layout.longest // 128)
        assert blocks <= max(layout.tokens / 3, 32)


class FakeRecorder:
    """Records nothing; ``fails_at`` and ``pays_below`` are tokens."""

    graphs = ()

    def __init__(self, fails_at, pays_below):
        self._fails_at = fails_at
        self._pays_below = pays_below

    def record(self, layout):
        if layout.tokens >= self._fails_at:
            raise torch.AcceleratorError("operation not permitted when stream is capturing")
        return Recording(layout, None, None, None)

    def pays(self, one):
        return one.layout.tokens < self._pays_below


def recorded(monkeypatch, *, fails_at=10**9, pays_below=10**9):
    monkeypatch.setattr(recording, "_Recorder", lambda *_: FakeRecorder(fails_at, pays_below))
    return record(None, torch.device("cpu"), Tokenized((1, 2), 2), 256, typed=False)


def test_a_pass_takes_the_smallest_recording_that_it_fits_into(monkeypatch):
    found = recorded(monkeypatch)
    assert found.find(Layout(3, 1, 3, typed=False)).layout == Layout(32, 8, 32, typed=False)
    assert found.find(Layout(32, 1, 32, typed=False)).layout.tokens == 48, "a token must be spare"
    assert found.find(Layout(200, 10, 190, typed=False)).layout == Layout(384, 12, 256, typed=False)
    assert found.find(Layout(40_000, 200, 256, typed=False)) is None


def test_recording_ends_with_the_first_pass_that_is_hardly_quicker_so(monkeypatch):
    found = recorded(monkeypatch, pays_below=1024)
    assert found.find(Layout(1000, 20, 60, typed=False)).layout.tokens == 1024
    assert found.find(Layout(1030, 20, 60, typed=False)) is None


def test_what_cannot_be_recorded_is_left_to_be_called(monkeypatch):
    assert recorded(monkeypatch, fails_at=0).find(Layout(3, 1, 3, typed=False)) is None
    assert recorded(monkeypatch, fails_at=64).find(Layout(40, 1, 40, typed=False)) is not None


class FakeStreams:
    """The card's streams, by name, as torch tells its threads of them; ``current`` is that of this one."""

    def __init__(self, monkeypatch, graph):
        self.current = "usual"
        cuda = {"current_stream": lambda _device: self.named(self.current), "CUDAGraph": graph}
        cuda["stream"] = lambda stream: Entered(self, stream.name)
        cuda |= {"Stream": lambda _device: self.named("side"), "graph_pool_handle": lambda: (0, 1)}
        for name, fake in (cuda | dict.fromkeys(("synchronize", "empty_cache"), lambda *_: None)).items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)

    def named(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda _other: None)


class Entered:
    """As torch's: the stream before it is the current one again if it is left, and only then."""

    def __init__(self, streams, name):
        self._streams = streams
        self._name = name

    def __enter__(self):
        self._before, self._streams.current = self._streams.current, self._name

    def __exit__(self, *_exception):
        self._streams.current = self._before


class UnrecordableGraph:
    """What torch makes of a pass that cannot be instantiated: it says so at the very end."""

    def capture_begin(self, *_pool, **_options):
        pass

    def capture_end(self):
        raise torch.AcceleratorError("CUDA error: out of memory")


def test_a_thread_is_back_at_its_stream_after_a_pass_that_could_not_be_recorded(monkeypatch):
    # One lane would compute on another stream than the other, and each write over the block that the other reads.
    streams = FakeStreams(monkeypatch, UnrecordableGraph)
    asked = []
    found = record(
        lambda _texts: asked.append(streams.current), torch.device("cpu"), Tokenized((1, 2), 2), 64, typed=False
    )
    assert asked == ["side", "side"]
    assert found.find(Layout(3, 1, 3, typed=False)) is None
    assert streams.current == "usual"


LIVING = WeakSet()


class LastGraph(UnrecordableGraph):
    """Of a pass that can be recorded if it is the first."""

    def __init__(self):
        LIVING.add(self)

    def capture_end(self):
        if len(LIVING) > 1:
            super().capture_end()


def test_the_graph_of_a_pass_that_could_not_be_recorded_does_not_go_before_those_that_were(monkeypatch):
    # With it would go what they all work in.
    FakeStreams(monkeypatch, LastGraph)
    monkeypatch.setattr(recording._Recorder, "pays", lambda _self, _recording: True)
    found = record(lambda _texts: (None, None), torch.device("cpu"), Tokenized((1, 2), 2), 64, typed=False)
    gc.collect()
    assert found.find(Layout(3, 1, 3, typed=False)) is not None
    assert found.find(Layout(40, 1, 40, typed=False)) is None
    assert len(LIVING) == 2
    del found
    gc.collect()
    assert not LIVING
