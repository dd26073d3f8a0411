"""Texts, pairs and ids → tokens: held against the tokenizers library's own truncation and templates."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import PreTokenizer, Whitespace
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from transformers import CLIPTokenizer

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from shard.encoder import Reading
from shard.encoders.in_parts import Helpers
from shard.encoders.safe_places import find_safe_places
from shard.encoders.special_frame import Frame, find_frame
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts, share_room
from tests.support.tiny_tokenizers import (
    characters,
    wordpiece_vocabulary,
    write_unigram_tokenizer,
    write_wordpiece_tokenizer,
)

WORDS = ["吃完海鲜", "可以", "喝", "牛奶吗?", "The", "weather", "is", "lovely", "today.", "🙂", "10", "ms", "é", "x-y"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    bert, xlm = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("xlm")
    write_wordpiece_tokenizer(bert, wordpiece_vocabulary())
    write_unigram_tokenizer(xlm, ["<s>", "<pad>", "</s>", "<unk>", "▁", *characters()], 512)
    return {
        "bert": Tokenizer.from_file(str(bert / "tokenizer.json")),
        "xlm-r": Tokenizer.from_file(str(xlm / "tokenizer.json")),
    }


def ours(tokenizer, max_tokens=12, cut_side="end", **options):
    facts = TokenizerFacts(tokenizer.get_vocab_size(), cut_side, frozenset())
    return TextTokenizer(tokenizer, facts, max_tokens, **options)


def test_a_vocabulary_without_any_letter_that_is_tried_and_without_special_tokens_has_an_empty_frame():
    tokenizer = Tokenizer(BPE({"好": 0}, []))
    assert find_frame(tokenizer.encode("a"), texts=1) == Frame(((), ()), ((), ()), (0,))
    assert ours(tokenizer).tokenize(["好"])[0].ids == (0,)


def test_tokens_are_the_same_with_helpers(raw):
    texts = [" ".join(WORDS[: 1 + number % len(WORDS)] * 9) for number in range(64)]
    assert ours(raw["bert"], helpers=Helpers(3)).tokenize(texts) == ours(raw["bert"]).tokenize(texts)


@cache
def copied(tokenizer_id):
    return Tokenizer.from_str(_ALIVE[tokenizer_id].to_str())


_ALIVE = {}


def theirs(tokenizer, max_tokens, cut_side):
    _ALIVE[id(tokenizer)] = tokenizer
    copy = copied(id(tokenizer))
    copy.no_padding()
    copy.enable_truncation(max_tokens, direction={"end": "right", "start": "left"}[cut_side])
    return copy


def text_of(count, seed):
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) for _ in range(count))


KINDS = pytest.mark.parametrize("kind", ["bert", "xlm-r"])
SIDES = pytest.mark.parametrize("side", ["end", "start"])


@KINDS
@SIDES
@pytest.mark.parametrize("limit", [3, 7, 12])
def test_a_text_is_cut_on_the_side_and_at_the_length_that_the_request_names(raw, kind, side, limit):
    texts = [text_of(count, count) for count in range(1, 12)]
    found = ours(raw[kind]).tokenize(texts, Reading(cut_side=side, max_tokens=limit))
    expected = theirs(raw[kind], limit, side).encode_batch(texts)
    whole = [len(raw_ids(raw[kind], text)) for text in texts]
    assert [list(one.ids) for one in found] == [one.ids for one in expected]
    assert [one.original_tokens for one in found] == whole
    assert [one.truncated for one in found] == [length > limit for length in whole]


def raw_ids(tokenizer, text):
    return theirs(tokenizer, 1_000_000, "end").encode(text).ids


def test_what_a_tokenizers_file_says_of_cutting_and_filling_up_changes_nothing(raw):
    set_up = Tokenizer.from_str(raw["bert"].to_str())
    set_up.enable_truncation(4)
    set_up.enable_padding(length=16)
    texts = ["lovely weather today", "a"]
    assert ours(set_up).tokenize(texts) == ours(raw["bert"]).tokenize(texts)


@pytest.mark.parametrize("is_split", [True, False])
def test_the_name_of_a_special_token_in_a_text_is_one_or_letters_as_the_models_tokenizer_has_it(raw, is_split):
    facts = TokenizerFacts(raw["bert"].get_vocab_size(), "end", frozenset(), split_special_tokens=is_split)
    (one,) = TextTokenizer(raw["bert"], facts, 12).tokenize(["[SEP]"])
    assert (one.ids.count(raw["bert"].token_to_id("[SEP]")) == 1) is is_split


def test_a_request_cannot_make_texts_longer_than_the_model_takes(raw):
    (found,) = ours(raw["bert"], 9).tokenize([text_of(30, 1)], Reading(max_tokens=5000))
    assert len(found.ids) == 9


@SIDES
@pytest.mark.parametrize("limit", [3, 7, 12, None])
@pytest.mark.parametrize("count", [1, 4, 9, 30])
def test_a_prompt_is_as_long_as_it_is_within_the_limit_without_what_ends_every_text(raw, side, limit, count):
    """sentence-transformers' ``_get_prompt_length``: that of what a cut leaves, without one trailing special token."""
    facts = TokenizerFacts(raw["bert"].get_vocab_size(), side, frozenset(raw["bert"].encode("").ids))
    tokenizer = TextTokenizer(raw["bert"], facts, 12)
    prompt = text_of(count, count)
    for _ in range(2):  # the second time it is remembered
        (one,) = tokenizer.tokenize(["weather"], Reading(prompt=prompt, max_tokens=limit))
        assert one.prompt_tokens == len(theirs(raw["bert"], limit or 12, side).encode(prompt).ids) - 1 < len(one.ids)


def test_without_a_special_token_at_its_end_all_of_a_prompt_counts(raw):
    tokenizer = ours(raw["bert"])
    for prompt in ("a b ", "a b c d "):  # each has a length of its own
        (one,) = tokenizer.tokenize(["x"], Reading(prompt=prompt))
        assert one.prompt_tokens == len(raw["bert"].encode(prompt).ids)


def test_a_limit_without_room_for_any_text_is_refused(raw):
    with pytest.raises(InvalidRequestError, match="2 are special tokens"):
        ours(raw["bert"]).tokenize(["a"], Reading(max_tokens=2))


@KINDS
@SIDES
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(5, 16))
def test_a_pair_is_framed_typed_and_cut_as_the_library_does(raw, kind, side, first, second, limit):
    pair = (text_of(first, first), text_of(second, second + 100))
    (found,) = ours(raw[kind], limit, side).tokenize_pairs([pair[0]], [pair[1]])
    expected = theirs(raw[kind], limit, side).encode(*pair)
    assert list(found.ids) == expected.ids
    assert list(found.type_ids or [0] * len(found.ids)) == expected.type_ids
    assert found.original_tokens == len(theirs(raw[kind], 1_000_000, side).encode(*pair).ids)


@pytest.mark.parametrize("types", [(2, 1, 3, 0, 4), (0, 0, 0, 0, 1), (0, 0, 1, 1, 1), (0, 0, 0, 1, 0), (0, 0, 0, 0, 0)])
@pytest.mark.parametrize("words", [2, 30])
def test_every_special_token_and_every_text_has_the_type_that_the_template_gives_it(types, words):
    begin, first, between, second, end = types
    tokenizer = Tokenizer(WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"<s>:{begin} $A:{first} </s>:{between}",
        pair=f"<s>:{begin} $A:{first} </s>:{between} $B:{second} </s>:{end}",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    text = " a" * words
    (one,), (pair,) = ours(tokenizer).tokenize([text]), ours(tokenizer).tokenize_pairs([text], [text])
    for found, expected in [(one, (text,)), (pair, (text, text))]:
        encoding = theirs(tokenizer, 12, "end").encode(*expected)
        assert list(found.ids) == encoding.ids
        assert found.type_ids == (tuple(encoding.type_ids) if any(encoding.type_ids) else None)
    assert ours(tokenizer).accept_ids(one.ids).type_ids == one.type_ids


@SIDES
@pytest.mark.parametrize("template", ["$A </s>", "<s> $A", "<s> <l> $A </s>", "<s> $A <l> </s>", "$A"])
def test_a_frame_may_be_longer_on_one_side_than_on_the_other(side, template):
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(["<s>", "<l>", "</s>", *"abcdefgh"])}))
    tokenizer.pre_tokenizer = Whitespace()
    special = [(one, tokenizer.token_to_id(one)) for one in ("<s>", "<l>", "</s>")]
    tokenizer.post_processor = TemplateProcessing(single=template, pair=f"{template} $B", special_tokens=special)
    mine = ours(tokenizer, 6, side)
    for text in ("a b", "a b c d e f g h"):
        (found,) = mine.tokenize([text])
        assert list(found.ids) == theirs(tokenizer, 6, side).encode(text).ids
        for framed in (True, False):
            ids = raw_ids(tokenizer, text) if framed else tokenizer.encode(text, add_special_tokens=False).ids
            read = mine.accept_ids(ids)
            assert (read.ids, read.original_tokens) == (found.ids, found.original_tokens)


@SIDES
@pytest.mark.parametrize("order", [[0], [0, 1], [1, 0], [1]], ids=str)
def test_special_tokens_are_told_from_texts_in_whatever_order_post_processors_stand(side, order):
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(["<s>", "</s>", *"abcdefgh"])}))
    tokenizer.pre_tokenizer = Whitespace()
    special = [("<s>", 0), ("</s>", 1)]
    template = TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=special)
    # What comes after a template numbers its pieces anew, special tokens too.
    tokenizer.post_processor = Sequence([[template, ByteLevel()][number] for number in order])
    mine = ours(tokenizer, 7, side)
    for text in ("a b", "a b c d e f g h"):
        expected = theirs(tokenizer, 7, side).encode(text).ids
        assert list(mine.tokenize([text])[0].ids) == expected
        assert list(mine.accept_ids(tokenizer.encode(text, add_special_tokens=False).ids).ids) == expected
    assert list(mine.tokenize_pairs(["a b"], ["c"])[0].ids) == theirs(tokenizer, 7, side).encode("a b", "c").ids


def test_a_tokenizer_without_a_token_for_latin_letters_reads_others_all_the_same():
    tokenizer = Tokenizer(BPE({"<s>": 0, "吃": 1}, []))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    assert tokenizer.encode("a").ids == [0]
    mine = ours(tokenizer)
    assert mine.tokenize(["吃吃"])[0].ids == (0, 1, 1)
    assert len(mine.tokenize_pairs(["吃"], ["吃"])[0].ids) == 3


def test_what_has_no_token_at_all_is_refused_alone_and_as_a_pair():
    tokenizer = ours(Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    assert [one.ids for one in tokenizer.tokenize_pairs(["a", ""], ["", "a"])] == [(0,), (0,)]
    for read in (lambda: tokenizer.tokenize(["a", ""]), lambda: tokenizer.tokenize_pairs(["a", ""], ["", ""])):
        with pytest.raises(InvalidRequestError, match="nothing that this model has a token for"):
            read()


def test_of_a_pair_the_first_text_has_the_prompt_before_it(raw):
    tokenizer = ours(raw["bert"])
    assert tokenizer.tokenize_pairs(["a"], ["b"], Reading(prompt="x ")) == tokenizer.tokenize_pairs(["x a"], ["b"])


def test_two_texts_in_the_place_of_one_are_not_read_as_a_pair(raw):
    with pytest.raises(InvalidRequestError, match="must be a string"):
        ours(raw["bert"]).tokenize([("a", "b")])


@SIDES
def test_a_model_that_has_room_for_its_special_tokens_alone_is_given_those(raw, side):
    (one,) = ours(raw["bert"], 2, side).tokenize(["lovely"])
    assert list(one.ids) == theirs(raw["bert"], 2, side).encode("lovely").ids


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 200))
def test_the_longer_of_two_texts_is_cut_first(first, second, room):
    if first + second <= room:
        return
    kept = share_room(first, second, room)
    assert sum(kept) == room
    assert kept[0] <= first
    assert kept[1] <= second
    if min(first, second) <= room // 2:
        assert min(first, second) in kept


# --- very long texts ------------------------------------------------------------------------------------------


@KINDS
@SIDES
@pytest.mark.parametrize("alphabet", [WORDS, ["好", "吃完海鲜", "北京"], ["a"]])
def test_a_very_long_text_has_the_tokens_that_it_would_have_if_read_to_its_end(raw, kind, side, alphabet):
    source = random.Random(5)
    joiner = "" if alphabet is not WORDS else " "
    text = joiner.join(source.choice(alphabet) for _ in range(20_000))
    tokenizer = ours(raw[kind], 64)
    (found,) = tokenizer.tokenize([text], Reading(cut_side=side))
    assert list(found.ids) == theirs(raw[kind], 64, side).encode(text).ids
    total = len(raw_ids(raw[kind], text))
    assert found.truncated is (total > 64)
    assert found.original_tokens == total if found.counted else 64 < found.original_tokens < total


@KINDS
@SIDES
def test_a_pair_with_a_very_long_second_text_too(raw, kind, side):
    first, second = text_of(40, 1), text_of(20_000, 2)
    (found,) = ours(raw[kind], 51, side).tokenize_pairs([first], [second])
    assert list(found.ids) == theirs(raw[kind], 51, side).encode(first, second).ids
    assert not found.counted


@KINDS
@SIDES
def test_most_of_a_very_long_text_is_never_tokenised(raw, kind, side):
    (found,) = ours(raw[kind], 64, side).tokenize([text_of(50_000, 3)])
    assert not found.counted
    assert found.original_tokens < 20_000


def test_of_two_very_long_texts_the_longer_one_keeps_the_odd_token():
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}))
    tokenizer.pre_tokenizer = Whitespace()
    (found,) = ours(tokenizer, 3).tokenize_pairs(["a " * 9_000], ["b " * 20_000])
    assert found.ids == (0, 1, 1)


def test_a_text_is_counted_to_its_end_up_to_a_length_that_grows_with_what_is_kept(raw):
    text = "the " * 8_000
    assert [ours(raw["bert"], limit).tokenize([text])[0].counted for limit in (500, 1_000)] == [False, True]


@SIDES
def test_a_very_long_text_of_which_a_part_has_as_many_tokens_as_are_kept_is_longer_than_that(side):
    tokenizer = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    text = " ".join(["a" * 255] * 200)  # the part that is tried first has 64 of these words
    (found,) = ours(tokenizer, 64, side).tokenize([text])
    assert len(found.ids) == 64
    assert found.truncated


@KINDS
@settings(max_examples=25, deadline=None)
@given(st.text(st.sampled_from("ab1 好北\u0301\u200d\u3000,.[]MASK\r\n\téß"), max_size=200), st.integers(0, 200))
def test_tokens_before_and_after_a_safe_place_are_those_of_the_whole(raw, kind, text, wished):
    places = find_safe_places(raw[kind])
    for place in {places.before(text, wished), places.after(text, wished)} - {None}:
        parts = [
            theirs(raw[kind], 10**6, "end").encode(part, add_special_tokens=False)
            for part in (text[:place], text[place:])
        ]
        whole = theirs(raw[kind], 10**6, "end").encode(text, add_special_tokens=False)
        assert [*parts[0].ids, *parts[1].ids] == whole.ids


def test_a_tokenizer_of_another_kind_has_no_safe_places():
    from tokenizers.models import BPE

    assert find_safe_places(Tokenizer(BPE())) is None


# --- ids and spelling -----------------------------------------------------------------------------------------


def test_ids_may_be_cut_on_either_side(raw):
    tokenizer = ours(raw["bert"], 6)
    start, end = (tokenizer.accept_ids(list(range(200, 220)), Reading(cut_side=side)) for side in ("start", "end"))
    assert start.ids[1:-1] == (216, 217, 218, 219)
    assert end.ids[1:-1] == (200, 201, 202, 203)
    assert start.original_tokens == end.original_tokens == 22


def test_no_ids_at_all_are_no_input(raw):
    for tokenizer in (ours(raw["bert"]), ours(raw["bert"], decode=lambda ids: "a")):
        with pytest.raises(InvalidRequestError, match="at least one id"):
            tokenizer.accept_ids([])


def test_each_input_knows_what_its_request_wants_of_it(raw):
    tokenizer, reading = ours(raw["bert"]), Reading(outputs=("sparse",), raw=True)
    (text,), (pair,) = tokenizer.tokenize(["a"], reading), tokenizer.tokenize_pairs(["a"], ["b"], reading)
    for one in (text, pair, tokenizer.accept_ids([3], reading)):
        assert (one.outputs, one.raw) == (("sparse",), True)


def test_the_first_and_the_last_id_of_the_vocabulary_are_ids_and_their_neighbours_are_none(raw):
    tokenizer, size = ours(raw["bert"]), raw["bert"].get_vocab_size()
    assert tokenizer.accept_ids([0, size - 1]).ids[1:3] == (0, size - 1)
    for wrong in (-1, size):
        with pytest.raises(InvalidRequestError, match=f"Token id {wrong} is not"):
            tokenizer.accept_ids([wrong])


def test_ids_that_are_cut_have_as_many_types_as_are_left():
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "a": 1}))
    tokenizer.post_processor = TemplateProcessing(single="<s>:2 $A:1", special_tokens=[("<s>", 0)])
    found = ours(tokenizer, 3).accept_ids([1] * 9)
    assert (found.ids, found.type_ids, found.original_tokens) == ((0, 1, 1), (2, 1, 1), 10)


def test_ids_that_are_the_beginning_and_the_end_of_a_frame_at_once_are_a_text():
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "a": 1}))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])
    assert ours(tokenizer).accept_ids([0]).ids == (0, 0, 0)
    assert ours(tokenizer).accept_ids([0, 0]).ids == (0, 0)


def test_an_id_out_of_the_vocabulary_is_refused_with_a_word_on_langchain(raw):
    with pytest.raises(InvalidRequestError, match=r"vocabulary of \d+ tokens.*check_embedding_ctx_length=False"):
        ours(raw["bert"]).accept_ids([99_999])


def test_ids_of_another_vocabulary_are_read_as_the_text_that_they_are(raw):
    tokenizer = ours(raw["bert"], decode=lambda ids: "".join(map(chr, ids)))
    assert tokenizer.accept_ids([ord("好"), ord("a")]) == tokenizer.tokenize(["好a"])[0]


@KINDS
def test_tokens_are_spelled_with_their_places_in_the_text(raw, kind):
    text = "吃 a"
    (tokens,) = ours(raw[kind]).spell([text], None, add_special_tokens=True)
    assert tokens[0].special
    assert tokens[-1].special
    assert (tokens[0].start, tokens[0].stop) == (None, None)
    assert {text[one.start : one.stop].strip() for one in tokens[1:-1]} == {"吃", "a"}
    (bare,) = ours(raw[kind]).spell([text], None, add_special_tokens=False)
    assert bare == tokens[1:-1]


def test_spelled_tokens_are_not_cut(raw):
    (tokens,) = ours(raw["bert"], 5).spell(["好" * 50], None, add_special_tokens=True)
    assert len(tokens) == 52


def test_a_prompt_is_spelled_with_its_text(raw):
    tokenizer = ours(raw["bert"])
    with_prompt, without = (tokenizer.spell(["day"], prompt, add_special_tokens=False) for prompt in ("good ", None))
    assert with_prompt == tokenizer.spell(["good day"], None, add_special_tokens=False) != without


@pytest.mark.parametrize("wrong", [-1, 99_999, 2**40])
def test_ids_of_no_token_become_no_text(raw, wrong):
    with pytest.raises(InvalidRequestError, match="is not in this model's vocabulary"):
        ours(raw["bert"]).detokenize([[3], [3, wrong]], skip_special_tokens=True)


def test_ids_become_text_again(raw):
    tokenizer = ours(raw["bert"])
    ids = tokenizer.tokenize(["good day"])[0].ids
    with_special, without = (tokenizer.detokenize([ids], skip_special_tokens=skip)[0] for skip in (False, True))
    assert with_special.startswith("[CLS]")
    assert "[" not in without
    assert without.replace(" ", "").replace("##", "") == "goodday"


def test_ids_of_clip_become_the_text_that_transformers_makes_of_them():
    words = {token: number for number, token in enumerate(["a", "b", "a</w>", "b</w>", "ab</w>"])}
    clip = CLIPTokenizer(words, [("a", "b</w>")], unk_token="<end>", bos_token="<start>", eos_token="<end>")
    ids = [clip("ab a b")["input_ids"], clip("a")["input_ids"]]
    assert len(ids[0]) == 5
    tokenizer = ours(Tokenizer.from_str(clip.backend_tokenizer.to_str()))
    for skips in (False, True):
        expected = [clip.decode(one, skip_special_tokens=skips) for one in ids]
        assert tokenizer.detokenize(ids, skip_special_tokens=skips) == expected
    assert expected == ["ab a b", "a"]


def test_a_tokenizer_with_a_step_in_python_is_unsupported():
    tokenizer = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = PreTokenizer.custom(object())
    with pytest.raises(LoadError, match="its tokenizer has a step in Python") as caught:
        ours(tokenizer)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL
