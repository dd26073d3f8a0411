"""Pairs within a prompt → tokens, cut where the request says. As a whole: ``integration/test_generative_rerankers``."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from emb_model_provider.errors import InvalidRequestError
from shard.encoder import Reading
from shard.encoders import asked_pairs, text_tokenizer
from shard.encoders.asked_pairs import AskedTokenizer, template_writer, write_qwen3
from shard.encoders.text_tokenizer import TokenizerFacts
from tests.support.tiny_tokenizers import wordpiece_vocabulary, write_wordpiece_tokenizer


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    write_wordpiece_tokenizer(directory, wordpiece_vocabulary())
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def write(instruction, query, document):
    return f"the {query} the {document} the end"


def read(raw, document, prefers, asked):
    facts = TokenizerFacts(raw.get_vocab_size(), prefers, frozenset())
    tokenizer = AskedTokenizer(raw, facts, 12, write)
    (one,) = tokenizer.tokenize_pairs(["weather"], [document], Reading(outputs=("scores",), cut_side=asked))
    return one


@pytest.mark.parametrize("document", ["1 2 3 4 5 6 7 8 9 " * 2, "1 2 3 4 5 6 7 8 9 " * 2000])
def test_a_document_is_cut_at_its_end_where_a_request_says_so_whatever_the_tokenizer_prefers(raw, document):
    cut = read(raw, document, prefers="start", asked="end")
    assert cut == read(raw, document, prefers="end", asked=None)
    assert cut.ids != read(raw, document, prefers="start", asked=None).ids


def test_the_prompt_of_qwen3_is_that_of_its_model_card():
    card = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer \
can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: %s
<Query>: a
<Document>: b<|im_end|>
<|im_start|>assistant
<think>

</think>

"""
    usual = "Given a web search query, retrieve relevant passages that answer the query"
    assert write_qwen3(None, "a", "b") == card % usual
    assert write_qwen3("Find papers", "a", "b") == card % "Find papers"
    assert write_qwen3("", "a", "b") == card % ""


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("instruction", [None, "", "find"])
def test_a_template_is_given_the_messages_that_sentence_transformers_gives_it(raw, structured, instruction):
    template = "{{ messages | tojson }}{% if add_generation_prompt %}!{% endif %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template)
    write = template_writer(tokenizer, {"add_generation_prompt": True}, structured=structured)
    said = [("system", "find")] if instruction else []
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
        for role, text in (*said, ("query", "a"), ("document", "b"))
    ]
    written = write(instruction, "a", "b")
    assert (json.loads(written[:-1]), written[-1]) == (messages, "!")


def asked(raw, limit, *, write=write, prefers="end"):
    return AskedTokenizer(raw, TokenizerFacts(raw.get_vocab_size(), prefers, frozenset()), limit, write)


def pair(tokenizer, query, document, **options):
    (one,) = tokenizer.tokenize_pairs([query], [document], Reading(outputs=("scores",), **options))
    return one


def whole(raw, text):
    return tuple(raw.encode(text, add_special_tokens=False).ids)


def test_a_prompt_that_is_too_long_loses_what_stands_before_its_own_end(raw):
    """By hand: of ids 0 … n, the end has three, and a limit of m keeps the first m - 3 and them."""
    ids = whole(raw, "the 1 the 2 3 4 5 the the is of")
    write = lambda _instruction, query, document: f"the {query} the {document} the the is of"  # noqa: E731
    for limit in range(5, 14):
        one = pair(asked(raw, limit, write=write), "1", "2 3 4 5")
        assert one.ids == (ids if limit >= len(ids) else (*ids[: limit - 4], *ids[-4:]))
        assert (one.original_tokens, one.outputs, one.counted) == (len(ids), ("scores",), True)
        assert pair(asked(raw, 99, write=write), "1", "2 3 4 5", max_tokens=limit) == one
        from_start = pair(asked(raw, limit, write=write, prefers="start"), "1", "2 3 4 5")
        assert from_start.ids == ids[-limit:]
    for limit in (1, 3, 4):
        with pytest.raises(InvalidRequestError, match=f"limit of {limit} tokens leaves no room.*ends with 4"):
            pair(asked(raw, limit, write=write), "1", "2")


def test_each_instruction_has_an_end_of_its_own_however_many_there_are(raw, monkeypatch):
    monkeypatch.setattr(asked_pairs, "_KNOWN_ENDS", 1)
    tokenizer = asked(raw, 6, write=lambda instruction, query, document: f"{query} {document} the {instruction}")
    for instruction in ("is of", None, "the", "is of", "of"):
        ids = whole(raw, f"1 2 3 4 5 6 7 8 the {instruction}")
        end = len(whole(raw, f"the {instruction}"))
        assert pair(tokenizer, "1", "2 3 4 5 6 7 8", prompt=instruction).ids == (*ids[: 6 - end], *ids[-end:])
    assert len(tokenizer._ends) == 1
    short = pair(tokenizer, "1", "2", prompt="of")
    assert short.ids == whole(raw, "1 2 the of")


def test_what_two_prompts_share_before_their_texts_is_not_their_end(raw):
    """By hand: prompts around the two fillers share "the" far from their ends, and end with one token."""
    write = lambda _instruction, query, document: f"the the {query} the the the the {document} of"  # noqa: E731
    ids = whole(raw, "the the 1 the the the the 2 3 4 5 of")
    assert pair(asked(raw, 10, write=write), "1", "2 3 4 5").ids == (*ids[:9], ids[-1])


def test_a_document_that_is_not_read_to_its_end_is_not_counted(raw):
    tokenizer = asked(raw, 50)
    assert pair(tokenizer, "1", "2 " * 60).counted
    long = pair(tokenizer, "1", "2 " * 20_000)
    assert (long.counted, long.truncated) == (False, True)
    assert long.ids == pair(tokenizer, "1", "2 " * 60).ids


def test_of_a_very_long_document_as_much_is_read_as_fills_the_prompt(raw, monkeypatch):
    for name, few in (("_LONG_CHARS", 8), ("_LONG_CHARS_PER_TOKEN", 2), ("_TRIED_CHARS_PER_TOKEN", 1)):
        monkeypatch.setattr(text_tokenizer, name, few)
    one = pair(asked(raw, 40), "1", "2 " * 200)
    end = whole(raw, "the end")
    assert not one.counted
    assert one.ids == (*whole(raw, f"the 1 the {'2 ' * 200}")[: 40 - len(end)], *end)


def test_single_texts_are_refused(raw):
    with pytest.raises(InvalidRequestError, match="send pairs"):
        asked(raw, 9).tokenize(["a"])
    with pytest.raises(InvalidRequestError, match="only be cut at the end"):
        pair(asked(raw, 9), "a", "b", cut_side="start")
