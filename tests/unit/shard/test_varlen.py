"""What the kernels of a CUDA device are asked for: by what they are documented to do, it is the right thing."""

import pytest
import torch

from shard.encoders.graph import varlen
from shard.encoders.graph.attention import Rule
from shard.encoders.graph.varlen import Bounds, attend_varlen

LENGTHS = [5, 1, 7]
HEADS, SIZE = 4, 8


def by_hand(queries, keys, values, scale, sees):
    """Attend within one text, shapes (tokens, heads, size); ``sees`` (query, key) → whether the one sees the other."""
    places = torch.arange(len(queries))
    visible = sees(places[:, None], places)
    keys, values = (one.repeat_interleave(queries.shape[1] // one.shape[1], 1) for one in (keys, values))
    scores = torch.einsum("qhs,khs->hqk", queries, keys) * scale
    return torch.einsum("hqk,khs->qhs", torch.softmax(scores.masked_fill(~visible, -torch.inf), -1), values)


def each(starts, sees, scale, *tensors):
    bounds = list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
    return torch.cat(
        [
            by_hand(*(one[begin:end] for one in tensors), scale, sees(number))
            for number, (begin, end) in enumerate(bounds)
        ]
    )


def flash(queries, keys, values, *positional, **options):
    """As flash attention has it: so many keys to the left and right of a query's own place, -1 for all."""
    starts, key_starts, *lengths, dropout, causal, debug = positional
    assert (lengths, dropout, debug) == ([max(LENGTHS)] * 2, 0.0, False)
    assert torch.equal(starts, key_starts)
    left, right = (one if one >= 0 else 1000 for one in (options["window_size_left"], options["window_size_right"]))
    seen = options["seqused_k"]

    def sees(number):
        most = 1000 if seen is None else int(seen[number])
        return lambda query, key: (query - key <= left) & (key - query <= (0 if causal else right)) & (key < most)

    return each(starts, sees, options["scale"], queries, keys, values), None


def efficient(queries, keys, values, *positional, scale):
    """As torch's memory-efficient attention has it, which wants as many heads of keys as of queries."""
    bias, starts, key_starts, *lengths, dropout, kind = positional
    assert (bias, lengths, dropout) == (None, [max(LENGTHS)] * 2, 0.0)
    assert torch.equal(starts, key_starts)
    assert queries.shape == keys.shape == values.shape

    def sees(_number):
        return lambda query, key: (query >= key) if kind == 1 else (query >= 0) & (key >= 0)

    return each(starts, sees, scale, queries[0], keys[0], values[0])[None], None


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setattr(varlen, "_flash", flash)
    monkeypatch.setattr(varlen, "_efficient", efficient)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    varlen._takes_flash.cache_clear()
    yield
    varlen._takes_flash.cache_clear()


def attended(dtype, *, causal=False, window=None, seen=None, key_heads=HEADS):
    """Return what is found and what it should be."""
    torch.manual_seed(3)
    shapes = [(1, heads, sum(LENGTHS), SIZE) for heads in (HEADS, key_heads, key_heads)]
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    starts = torch.tensor([0, 5, 6, 13], dtype=torch.int32)
    bounds = Bounds(starts, max(LENGTHS), None if seen is None else torch.tensor(seen, dtype=torch.int32))
    found = attend_varlen(*tensors, Rule(0.3, causal, window, 0), bounds)

    def sees(number):
        most = 1000 if seen is None else seen[number]
        reach = 1000 if window is None else window

        def one(query, key):
            return ((query - key).abs() < reach) & (key < most) & ((key <= query) | (not causal))

        return one

    return found, each(starts, sees, 0.3, *(one[0].transpose(0, 1) for one in tensors))[None]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("seen", [None, [3, 1, 7]])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_in_16_bit_each_token_sees_what_its_layer_lets_it_see_of_its_own_text(causal, window, seen, key_heads):
    found, expected = attended(torch.bfloat16, causal=causal, window=window, seen=seen, key_heads=key_heads)
    torch.testing.assert_close(found, expected, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize(("dtype", "card"), [(torch.float32, (9, 0)), (torch.float16, (7, 5))])
def test_in_fp32_and_on_cards_before_ampere_the_other_kernel_does_the_same(monkeypatch, causal, key_heads, dtype, card):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: card)
    monkeypatch.setattr(varlen, "_flash", None)
    found, expected = attended(dtype, causal=causal, key_heads=key_heads)
    torch.testing.assert_close(found, expected, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "card", "wish"),
    [
        (torch.float16, (8, 0), {"window": 3, "seen": torch.empty(3, dtype=torch.int32, device="meta")}),
        (torch.float16, (7, 5), {}),
        (torch.float32, (9, 0), {}),
    ],
)
def test_torchs_own_kernels_take_what_they_are_handed(monkeypatch, dtype, card, wish):
    """As far as one can tell without a card: by their names, places and shapes, and not by what they compute."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: card)
    monkeypatch.setattr(varlen, "_flash", torch.ops.aten._flash_attention_forward.default)
    monkeypatch.setattr(varlen, "_efficient", torch.ops.aten._efficient_attention_forward.default)
    query, key, value = (torch.empty(1, heads, 13, SIZE, dtype=dtype, device="meta") for heads in (4, 2, 2))
    bounds = Bounds(torch.empty(4, dtype=torch.int32, device="meta"), max(LENGTHS), wish.get("seen"))
    found = attend_varlen(query, key, value, Rule(0.3, True, wish.get("window"), 0), bounds)
    assert (found.shape, found.dtype) == ((1, 13, 4, SIZE), dtype)


@pytest.mark.parametrize("wish", [{"window": 3}, {"seen": [3, 1, 7]}])
def test_what_the_other_kernel_cannot_do_is_refused(wish):
    with pytest.raises(NotImplementedError, match="sees all of a text"):
        attended(torch.float32, **wish)
