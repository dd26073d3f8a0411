"""What the files of a late-interaction model say of markers, lengths, expansion and the tokens left out."""

import string

import pytest

from shard.model_files.late_files import read_pylate, read_stanford

PUNCTUATION = tuple(string.punctuation)
PYLATE = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 24, "document_length": 180}


def test_a_model_of_sentence_transformers_own_kind_says_the_rest_in_its_modules():
    late = read_pylate({"model_type": "MultiVectorEncoder", "prompts": {"query": "q: ", "x": None}}, is_bare=False)
    assert dict(late.prompts) == {"query": "q: ", "document": "", "x": ""}
    assert (late.markers, late.lengths, late.skiplist) == ((), (), ())
    assert (late.says_expansion, late.expansion, late.is_bare, late.is_stanford) == (False, None, False, False)


def test_pylate_has_markers_lengths_a_fixed_expansion_and_leaves_punctuation_out():
    late = read_pylate(PYLATE, is_bare=True)
    assert late.prompts == (("query", "[Q] "), ("document", "[D] "))
    assert late.markers == ("[Q] ", "[D] ")
    assert late.lengths == (("document_length", 180),), "that of a query is the expansion's"
    assert late.says_expansion
    assert dict(late.expansion) == {"strategy": "fixed", "attend": False, "length": 24}
    assert late.skiplist == PUNCTUATION
    assert (late.is_bare, late.is_stanford) == (True, False)


def test_a_marker_stands_once_before_a_prompt_of_its_own():
    said = {"query": "[Q] find: ", "document": "text: "}
    late = read_pylate(PYLATE | {"prompts": said}, is_bare=True)
    assert dict(late.prompts) == {"query": "[Q] find: ", "document": "[D] text: "}


@pytest.mark.parametrize("prompts", [None, ["query"], "query: "])
def test_prompts_that_are_no_table_are_none(prompts):
    assert dict(read_pylate({"prompts": prompts}, is_bare=False).prompts) == {"query": "", "document": ""}


def test_without_a_length_of_its_own_a_query_is_filled_up_to_32_tokens():
    late = read_pylate({"query_prefix": None, "query_length": None, "document_length": "180"}, is_bare=True)
    assert dict(late.expansion)["length"] == 32
    assert (late.lengths, late.markers) == ((), ("",))


@pytest.mark.parametrize(
    ("said", "attends"),
    [
        ({"attend_to_expansion_tokens": True}, True),
        ({"attend_to_mask_tokens": True}, True),
        ({"attend_to_expansion_tokens": False, "attend_to_mask_tokens": True}, False),
        ({"do_query_expansion": True}, False),
    ],
)
def test_whether_added_tokens_are_attended_to_has_two_names(said, attends):
    assert dict(read_pylate(said, is_bare=True).expansion)["attend"] is attends


@pytest.mark.parametrize(
    ("said", "length"),
    [
        ({"query_length": 24}, 24),
        ({"document_length": 180}, 32),
        ({"query_prefix": ""}, 32),
        ({"document_prefix": ""}, 32),
        ({"skiplist_words": []}, 32),
        ({"do_query_expansion": None}, 32),
        ({"attend_to_expansion_tokens": None}, 32),
        ({"attend_to_mask_tokens": None}, 32),
    ],
)
def test_any_key_of_pylates_by_itself_fills_up_queries_as_sentence_transformers_has_it(said, length):
    late = read_pylate(said, is_bare=True)
    assert late.says_expansion
    assert dict(late.expansion) == {"strategy": "fixed", "attend": False, "length": length}


def test_queries_that_are_not_to_be_filled_up_keep_their_length():
    late = read_pylate(PYLATE | {"do_query_expansion": False}, is_bare=True)
    assert (late.says_expansion, late.expansion) == (True, None)
    assert late.lengths == (("query_length", 24), ("document_length", 180))


def test_an_expansion_that_is_said_as_a_whole_wins():
    whole = {"strategy": "min", "attend": True, "length": 16}
    late = read_pylate(PYLATE | {"query_expansion": whole, "do_query_expansion": False}, is_bare=True)
    assert (late.says_expansion, dict(late.expansion)) == (True, whole)
    assert dict(late.lengths) == {"query_length": 24, "document_length": 180}
    assert read_pylate(PYLATE | {"query_expansion": None}, is_bare=True).expansion is None


def test_the_words_left_out_are_those_that_a_model_names():
    assert read_pylate({"skiplist_words": ["a", 7]}, is_bare=True).skiplist == ("a", "7")
    assert read_pylate(PYLATE | {"skiplist_words": []}, is_bare=True).skiplist == ()
    assert read_pylate({"model_type": "ColBERT"}, is_bare=True).skiplist == PUNCTUATION
    assert read_pylate({"query_length": 24}, is_bare=True).skiplist == ()


def test_stanfords_colbert_without_a_word_has_its_usual_markers_and_lengths():
    late = read_stanford({})
    assert dict(late.prompts) == {"query": "[unused0] ", "document": "[unused1] "}
    assert late.markers == ("[unused0] ", "[unused1] ")
    assert (late.lengths, late.skiplist) == ((), PUNCTUATION)
    assert dict(late.expansion) == {"strategy": "fixed", "attend": False, "length": 32}
    assert (late.says_expansion, late.is_bare, late.is_stanford) == (True, True, True)


def test_stanfords_metadata_says_markers_lengths_attention_and_punctuation():
    metadata = {"query_token_id": "[Q]", "doc_token_id": "[D]", "query_maxlen": 48, "doc_maxlen": 300}
    late = read_stanford(metadata | {"attend_to_mask_tokens": True, "mask_punctuation": False})
    assert dict(late.prompts) == {"query": "[Q] ", "document": "[D] "}
    assert (late.lengths, late.skiplist) == ((("document_length", 300),), ())
    assert dict(late.expansion) == {"strategy": "fixed", "attend": True, "length": 48}
    assert dict(read_stanford({"query_maxlen": 0, "doc_maxlen": "9"}).expansion)["length"] == 32
    assert read_stanford({"doc_maxlen": "9"}).lengths == ()
    assert read_stanford({"query_token_id": None, "doc_token_id": ""}).markers == ("[unused0] ", "[unused1] ")
