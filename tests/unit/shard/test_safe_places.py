"""Which tokenizers have safe places, and which place is taken; that these are safe is ``test_text_tokenizer``'s."""

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from shard.encoders.safe_places import SafePlaces, find_safe_places

SPLIT = pre_tokenizers.WhitespaceSplit()
BERT = pre_tokenizers.BertPreTokenizer()
#: SentencePiece's map of characters, in its own form: the size of a tree, and one without any in it.
SENTENCEPIECE = normalizers.Precompiled(bytes([4, 0, 0, 0, 0, 0, 0, 0]))


def places_of(pre_tokenizer, normalizer=None, *added: str) -> SafePlaces | None:
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_tokens([AddedToken(one) for one in added])
    return find_safe_places(tokenizer)


def test_the_last_place_before_and_the_first_after_are_taken_each_where_it_is_wished_if_it_can_be():
    places = places_of(SPLIT)
    text = "ab cd ef gh"
    assert [places.before(text, wished) for wished in (2, 3, 4, 7, 8, 99)] == [None, None, 2, 5, 5, 8]
    assert [places.after(text, wished) for wished in (0, 2, 3, 5, 6, 9)] == [2, 2, 5, 5, 8, None]


def test_a_place_is_not_looked_for_far_away():
    text = "a b" + "c" * 20_000 + "d e"
    places = places_of(SPLIT)
    assert places.before(text, 11_000) is None
    assert places.after(text, 9_000) is None
    assert (places.before(text, 9_000), places.after(text, 11_000)) == (1, 20_004)


@pytest.mark.parametrize("text", ["a b", "Z z", "1 9", "a 9", "北 京", "好 a", "\u4e00 \u9fff"])
def test_a_blank_between_letters_digits_and_ideographs_is_a_place(text):
    assert places_of(SPLIT).before(text, 9) == places_of(SPLIT).after(text, 0) == 1


@pytest.mark.parametrize("text", ["a  b", "a. b", "a .b", "a\u0301 b", "a \u0301b", "a\nb", "好\u3000吃"])
def test_no_place_is_beside_what_a_normaliser_might_join(text):
    assert places_of(SPLIT).before(text, 99) is None


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer"),
    [
        (BERT, None),
        (SPLIT, None),
        (pre_tokenizers.Whitespace(), None),
        (pre_tokenizers.Metaspace(split=True), None),
        (pre_tokenizers.Metaspace(split=True, prepend_scheme="first"), None),  # later words have a blank's mark
        (pre_tokenizers.Sequence([SPLIT, pre_tokenizers.Metaspace(prepend_scheme="always")]), None),
        (SPLIT, normalizers.Sequence([SENTENCEPIECE, normalizers.Replace(Regex(" {2,}"), " ")])),  # XLM-R's
        (SPLIT, normalizers.NFC()),
        (SPLIT, normalizers.NFKC()),
        (SPLIT, normalizers.NFKD()),
        (SPLIT, normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])),
        (SPLIT, normalizers.Replace(Regex(" {2,}"), " ")),
    ],
)
def test_a_tokenizer_that_splits_at_blanks_and_looks_no_further_has_places(pre_tokenizer, normalizer):
    assert places_of(pre_tokenizer, normalizer).before("a b", 9) == 1


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer", "added"),
    [
        (pre_tokenizers.ByteLevel(), None, ()),
        (pre_tokenizers.Metaspace(split=False), None, ()),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(), SPLIT]), None, ()),
        (pre_tokenizers.Sequence([SPLIT, pre_tokenizers.Metaspace(prepend_scheme="first")]), None, ()),
        (pre_tokenizers.Sequence([SPLIT, BERT, pre_tokenizers.Metaspace(prepend_scheme="first")]), None, ()),
        (SPLIT, normalizers.Prepend("_"), ()),
        (SPLIT, normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]), ()),
        (SPLIT, normalizers.Replace(" ", ""), ()),
        (SPLIT, None, ("New York",)),
    ],
)
def test_one_of_which_that_is_not_known_has_none(pre_tokenizer, normalizer, added):
    assert places_of(pre_tokenizer, normalizer, *added) is None


@pytest.mark.parametrize(
    ("normalizer", "place"),
    [
        (normalizers.BertNormalizer(handle_chinese_chars=True), 1),
        (normalizers.BertNormalizer(handle_chinese_chars=False), None),
        (normalizers.NFC(), None),
    ],
)
def test_between_ideographs_are_places_only_where_each_is_a_word(normalizer, place):
    assert places_of(BERT, normalizer).before("北京", 9) == place


@pytest.mark.parametrize("text", ["かな", "北\u0301", "\u0301北", "。北", "北。", "北a", "a北", "北"])
def test_no_place_is_between_an_ideograph_and_what_is_none(text):
    places = places_of(BERT, normalizers.BertNormalizer(handle_chinese_chars=True))
    assert (places.before(text, 9), places.after(text, 0)) == (None, None)
