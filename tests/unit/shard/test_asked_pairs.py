"""Pairs within a prompt → tokens, cut where the request says. As a whole: ``integration/test_generative_rerankers``."""

import pytest
from tokenizers import Tokenizer

from shard.encoder import Reading
from shard.encoders.asked_pairs import AskedTokenizer
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
