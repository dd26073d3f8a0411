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
