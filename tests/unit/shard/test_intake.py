"""From requests to tokens or errors, with an encoder whose tokens are characters."""

import pytest
from tokenizers import decoders

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Detokenize, Encode, Failed, InputError, Texts, Tokenize, Tokens
from shard.batching.intake import is_small, read_options, spell, tokenize
from shard.encoder import Tokenized
from tests.support.fake_encoder import MAX_TOKENS, VOCABULARY_SIZE, FakeEncoder


def encoder_that(**facts) -> FakeEncoder:
    encoder = FakeEncoder()
    encoder.info = encoder.info.replace(**facts)
    return encoder


def refusal(encoder, request) -> Failed:
    outcome = tokenize(encoder, request)
    assert isinstance(outcome, Failed), outcome
    return outcome


# --- what a model gives ---------------------------------------------------------------------------------------


def test_an_output_that_the_model_lacks_is_refused_with_what_it_has():
    failed = refusal(FakeEncoder(), Encode(("a",), outputs=("dense", "sparse")))
    assert (failed.status, failed.code) == (400, "unsupported_output")
    assert "gives dense vectors" in failed.message
    assert "does not give sparse vectors" in failed.message


def test_nothing_at_all_is_no_output():
    failed = refusal(FakeEncoder(), Encode(("a",), outputs=()))
    assert failed.code == "unsupported_output"
    assert "does not give no output at all" in failed.message


def test_a_reranker_refuses_to_embed_and_says_what_it_is_for():
    reranker = encoder_that(task="rerank", outputs=("scores",), labels=("LABEL_0",), dimension=0)
    assert "'rerank'" in refusal(reranker, Encode(("a",))).message
    assert isinstance(tokenize(reranker, Encode(("a",), seconds=("b",), outputs=("scores",)))[0], Tokenized)


def test_pairs_are_for_rerankers_and_classifiers():
    assert "pairs" in refusal(FakeEncoder(), Encode(("a",), seconds=("b",))).message
    classifier = encoder_that(task="classify", outputs=("scores",), labels=("a", "b"))
    assert "second text" in refusal(classifier, Encode(("a", "b"), seconds=("c",), outputs=("scores",))).message


def test_outputs_are_in_the_models_order_so_that_equal_requests_are_equal():
    model = encoder_that(outputs=("dense", "sparse"))
    one, other = (
        read_options(model, Encode(("a",), outputs=outputs)) for outputs in (("sparse", "dense"), ("dense", "sparse"))
    )
    assert one == other
    assert one.outputs == ("dense", "sparse")
    assert read_options(model, Encode(("a",), outputs=("sparse",))).outputs == ("sparse",)


@pytest.mark.parametrize("dimensions", [0, -1, 5])
def test_a_cut_that_the_model_cannot_make_is_refused(dimensions):
    failed = refusal(FakeEncoder(), Encode(("a",), dimensions=dimensions))
    assert failed.param == "dimensions"
    assert "4 dimensions" in failed.message


@pytest.mark.parametrize("dimensions", [1, 4])
def test_a_cut_to_one_dimension_or_to_all_is_made(dimensions):
    assert read_options(FakeEncoder(), Encode(("a",), dimensions=dimensions)).outputs == ("dense",)


def test_scores_have_no_dimensions_to_cut():
    reranker = encoder_that(task="rerank", outputs=("scores",), labels=("x",))
    failed = refusal(reranker, Encode(("a",), outputs=("scores",), dimensions=1))
    assert "cuts dense vectors" in failed.message
    assert failed.param == "dimensions"


@pytest.mark.parametrize(("is_normalized", "wanted", "raw"), [
    (True, False, True), (True, True, False), (True, None, False), (False, False, False), (False, True, False),
])  # fmt: skip
def test_a_pass_without_normalising_is_asked_for_only_where_the_model_would(is_normalized, wanted, raw):
    model = encoder_that(normalized=is_normalized, outputs=("dense", "sparse"))
    assert read_options(model, Encode(("a",), normalize=wanted)).raw is raw
    assert not read_options(model, Encode(("a",), normalize=wanted, outputs=("sparse",))).raw


@pytest.mark.parametrize(
    ("overlong", "side"), [("start", "start"), ("end", "end"), ("truncate", None), ("error", None)]
)
def test_the_side_to_cut_is_that_of_the_request(overlong, side):
    reading = read_options(FakeEncoder(), Encode(("a",), overlong=overlong, max_tokens=7))
    assert (reading.cut_side, reading.max_tokens) == (side, 7)


def test_a_prompt_of_the_request_wins_over_a_name_even_an_unknown_one():
    reading = read_options(FakeEncoder(), Encode(("a",), prompt="ask: ", prompt_name="nobody knows"))
    assert (reading.prompt, reading.prompt_name) == ("ask: ", "nobody knows")
    assert isinstance(spell(FakeEncoder(), Tokenize(("a",), prompt="ask: ", prompt_name="nobody knows")), Tokens)
    with pytest.raises(InvalidRequestError):
        read_options(FakeEncoder(), Encode(("a",), prompt_name="nobody knows"))


def test_an_empty_prompt_is_none_and_not_the_models_own():
    class Prompting(FakeEncoder):
        def resolve_prompt(self, prompt_name):
            return "the model's own: "

    assert read_options(Prompting(), Encode(("a",), prompt="")).prompt == ""
    assert read_options(Prompting(), Encode(("a",))).prompt == "the model's own: "


# --- what is read at once -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("request_", "small"), [
    (Encode(("a",) * 8), True), (Encode(("a",) * 9), False),
    (Encode(("a" * 500, "b" * 12)), True), (Encode(("a" * 500, "b" * 13)), False),
    (Encode((), token_ids=((1,) * 512,)), True), (Encode((), token_ids=((1,) * 513,)), False),
    (Encode(("a" * 6,) * 2, prompt="p" * 250), True), (Encode(("a" * 7,) * 2, prompt="p" * 250), False),
    (Encode(("a" * 12,), seconds=("b" * 500,)), True), (Encode(("a" * 13,), seconds=("b" * 500,)), False),
    (Encode(("a",), prompt="p" * 10, seconds=("b" * 501,)), True),
    (Encode(("a",), prompt="p" * 11, seconds=("b" * 501,)), False),
])  # fmt: skip
def test_up_to_eight_inputs_of_512_characters_or_ids_with_all_around_them_are_small(request_, small):
    assert is_small(request_) is small


# --- partial requests -----------------------------------------------------------------------------------------


def test_a_partial_request_names_its_bad_inputs_and_keeps_the_good_ones():
    request = Encode((), token_ids=((65,), (VOCABULARY_SIZE,), (66, 67)), partial=True, first_index=64, prompt="")
    first, second, third = tokenize(FakeEncoder(), request)
    assert (first.ids, third.ids) == ((65,), (66, 67))
    assert isinstance(second, InputError)
    assert (second.index, second.status) == (1, 400)
    assert "Input 65" in second.message


def test_a_partial_request_that_refuses_overlong_texts_keeps_the_short_ones():
    request = Encode(("short", "x" * 100, "UNTOKENIZABLE"), overlong="error", partial=True)
    good, long, broken = tokenize(FakeEncoder(), request)
    assert isinstance(good, Tokenized)
    assert (long.index, long.code) == (1, "context_length_exceeded")
    assert f"{MAX_TOKENS} tokens, however input 1 has 100" in long.message
    assert (broken.index, broken.status) == (2, 500)


def test_an_input_of_a_partial_request_is_called_what_its_client_calls_it():
    request = Encode(("a", "x" * 100), overlong="error", partial=True, labels=("document 7", "document 9"))
    _, long = tokenize(FakeEncoder(), request)
    assert "however document 9 has 100" in long.message


def test_what_fails_of_a_partial_request_is_logged_with_its_id(caplog):
    tokenize(FakeEncoder(), Encode(("a", "UNTOKENIZABLE"), partial=True, request_id="req-7"))
    assert {record.values["request_id"] for record in caplog.records} == {"req-7"}


def test_a_pair_of_a_partial_request_keeps_its_second_text_where_another_pair_is_wrong():
    class Pairing(FakeEncoder):
        def tokenize(self, texts, reading, seconds=()):
            return super().tokenize([f"{one} {other}" for one, other in zip(texts, seconds, strict=True)], reading)

    reranker = Pairing()
    reranker.info = reranker.info.replace(task="rerank", outputs=("scores",), labels=("x",))
    request = Encode(
        ("a", "a", "b"), seconds=("c", "x" * 100, "d"), outputs=("scores",), overlong="error", partial=True
    )
    first, long, last = tokenize(reranker, request)
    assert ["".join(map(chr, one.ids)) for one in (first, last)] == ["a c", "b d"]
    assert long.code == "context_length_exceeded"


def test_what_is_wrong_with_all_of_a_partial_request_fails_it():
    assert refusal(FakeEncoder(), Encode(("a", "b"), outputs=("sparse",), partial=True)).code == "unsupported_output"


# --- tokens and texts -----------------------------------------------------------------------------------------


def test_texts_are_spelled_and_ids_become_texts():
    tokens = spell(FakeEncoder(), Tokenize(("ab", "")))
    assert isinstance(tokens, Tokens)
    assert [[one.text for one in row] for row in tokens.rows] == [["a", "b"], []]
    assert spell(FakeEncoder(), Detokenize(((97, 98), ()))) == Texts(("ab", ""))


def test_more_tokens_than_one_answer_holds_are_refused_with_what_to_do():
    outcome = spell(FakeEncoder(), Tokenize(("x" * 500_001,)))
    assert isinstance(outcome, Failed)
    assert "several requests" in outcome.message
    assert outcome.param == "input"


def test_as_many_tokens_as_one_answer_holds_are_spelled(monkeypatch):
    monkeypatch.setattr("shard.batching.intake._MOST_SPELLED_TOKENS", 4)
    assert isinstance(spell(FakeEncoder(), Tokenize(("ab", "cd"))), Tokens)
    assert isinstance(spell(FakeEncoder(), Tokenize(("ab", "cde"))), Failed)


def test_no_more_texts_are_spelled_once_there_are_too_many_tokens():
    encoder = CountingSpeller()
    assert isinstance(spell(encoder, Tokenize(("x" * 10_000,) * 1000)), Failed)
    assert 50 < encoder.spelled < 60


def test_texts_with_a_long_prompt_before_each_are_spelled_step_by_step():
    encoder = CountingSpeller()
    assert isinstance(spell(encoder, Tokenize(("a",) * 10, prompt="p" * 50_000)), Tokens)
    assert encoder.steps > 5
    assert encoder.prompts == {"p" * 50_000}


def test_texts_that_are_spelled_step_by_step_keep_their_order():
    encoder = CountingSpeller()
    texts = tuple("abc"[index % 3] * 30_000 for index in range(10))
    tokens = spell(encoder, Tokenize(texts))
    assert isinstance(tokens, Tokens)
    assert encoder.steps > 1
    assert [(row[0].text, len(row)) for row in tokens.rows] == [(text[0], len(text)) for text in texts]


class CountingSpeller(FakeEncoder):
    """Counts the texts that it has spelled, and how often it was asked; with which prompts."""

    spelled = steps = 0

    def __init__(self):
        super().__init__()
        self.prompts = set()

    def spell(self, texts, **options):
        self.prompts.add(options["prompt"])
        self.spelled += len(texts)
        self.steps += 1
        return super().spell(texts, **options)


def test_a_prompt_that_the_model_lacks_is_refused_here_too():
    outcome = spell(FakeEncoder(), Tokenize(("a",), prompt_name="query"))
    assert isinstance(outcome, Failed)
    assert (outcome.status, outcome.param) == (400, "prompt_name")


# --- a tokenizer of Rust that panics --------------------------------------------------------------------------


class Panicking(FakeEncoder):
    """Panics at ``PANIC`` and at every list of ids without a text, as the real tokenizer does."""

    def tokenize(self, texts, *more):
        if "PANIC" in texts:
            _panic()
        return super().tokenize(texts, *more)

    def detokenize(self, token_ids, **options):
        if () in token_ids:
            _panic()
        return super().detokenize(token_ids, **options)


def _panic():
    decoders.Strip(right=1).decode([""])


def test_a_panic_of_the_tokenizer_fails_what_it_was_asked_and_nothing_else():
    assert refusal(Panicking(), Encode(("a", "PANIC"))).code == "encode_failed"
    outcome = spell(Panicking(), Detokenize(((),)))
    assert isinstance(outcome, Failed)
    assert outcome.code == "encode_failed"
    good, bad = tokenize(Panicking(), Encode(("a", "PANIC"), partial=True))
    assert isinstance(good, Tokenized)
    assert (bad.index, bad.status) == (1, 500)
