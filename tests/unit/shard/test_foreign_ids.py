"""Token ids that are not the model's own: decoded, refused, or a clear word at the start on what is missing."""

import sys
import tempfile

import pytest
import tiktoken
import tiktoken.load
from tiktoken_ext import openai_public

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from shard.foreign_ids import fetch_vocabulary, make_decode


@pytest.fixture
def bytes_as_ids(monkeypatch):
    """A real tiktoken encoding whose ids are bytes, in place of the one that it would download."""
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([one]): one for one in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: encoding)


def test_ids_of_cl100k_become_the_text_that_they_are(bytes_as_ids):
    assert make_decode("cl100k")(list("吃完 seafood".encode())) == "吃完 seafood"


def test_ids_cut_within_a_character_keep_the_rest_of_the_text(bytes_as_ids):
    assert make_decode("cl100k")(list("好a".encode())[1:]).endswith("a")


@pytest.mark.parametrize("wrong", [[256], [-1], [2**70]])
def test_what_is_no_id_of_cl100k_is_refused(bytes_as_ids, wrong):
    with pytest.raises(InvalidRequestError, match="not token ids of cl100k_base"):
        make_decode("cl100k")(wrong)


def test_the_models_own_ids_need_nothing():
    assert make_decode("native") is None
    fetch_vocabulary("native", offline=True)


def test_a_model_may_refuse_ids_with_a_word_on_langchain():
    with pytest.raises(InvalidRequestError, match="check_embedding_ctx_length=False"):
        make_decode("reject")([1, 2])


def test_without_tiktoken_the_start_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(LoadError, match=r"pip install \"emb-model-provider\[tiktoken\]\"") as caught:
        make_decode("cl100k")
    assert caught.value.reason is LoadReason.PACKAGE_MISSING


@pytest.mark.parametrize(("policy", "offline"), [("native", True), ("reject", True), ("cl100k", False)])
def test_a_vocabulary_is_missed_only_where_ids_are_of_it_and_it_may_not_be_fetched(
    bytes_as_ids, monkeypatch, tmp_path, policy, offline
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    fetch_vocabulary(policy, offline=offline)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Let tiktoken itself keep a vocabulary in ``tmp_path``/data-gym-cache, and have no other."""
    directory = tmp_path / "data-gym-cache"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(directory))
    monkeypatch.setattr(tiktoken.load, "read_file", lambda _url: b"a vocabulary")
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda url, **_: tiktoken.load.read_file_cached(url))
    openai_public.cl100k_base()
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    return str(directory)


@pytest.mark.parametrize(
    "named",
    [("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"), ("DATA_GYM_CACHE_DIR", ""), ("", "")],
    ids=["first", "second", "none"],
)
def test_offline_the_vocabulary_is_found_where_tiktoken_keeps_it(bytes_as_ids, monkeypatch, kept, named):
    right, wrong = named
    if right:
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
        monkeypatch.setenv(right, kept)
    if wrong:
        monkeypatch.setenv(wrong, "/nowhere")
    fetch_vocabulary("cl100k", offline=True)


@pytest.mark.parametrize("name", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
def test_offline_nothing_is_fetched_where_an_empty_name_keeps_tiktoken_from_looking(monkeypatch, kept, name):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: pytest.fail("the network is used"))
    monkeypatch.setenv(name, "")
    with pytest.raises(LoadError, match="is not in any directory") as caught:
        fetch_vocabulary("cl100k", offline=True)
    assert caught.value.reason is LoadReason.NO_NETWORK


def test_offline_without_the_vocabulary_the_start_says_how_to_bring_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: pytest.fail("the network is used"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(LoadError, match="TIKTOKEN_CACHE_DIR") as caught:
        fetch_vocabulary("cl100k", offline=True)
    assert caught.value.reason is LoadReason.NO_NETWORK


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), ValueError("Hash mismatch")], ids=repr)
def test_a_vocabulary_that_cannot_be_fetched_says_the_same(monkeypatch, error):
    def fail(_name):
        raise error

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(LoadError, match="TIKTOKEN_CACHE_DIR") as caught:
        fetch_vocabulary("cl100k", offline=False)
    assert caught.value.reason is LoadReason.NO_NETWORK
