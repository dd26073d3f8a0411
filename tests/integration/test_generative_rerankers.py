"""Language models that rank, held against sentence-transformers' CrossEncoder and the code of Qwen3's model card."""

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from shard.encoder import Reading
from shard.loading.first_answer import refuse_bad_answers
from tests.support.opening import opener
from tests.support.tiny_classifiers import read_json
from tests.support.tiny_language_models import PAIR_TEMPLATE, card_scores, make_qwen2, make_qwen3
from tests.support.tiny_tokenizers import write_json

TOLERANCE = 1e-5
SCORES = Reading(outputs=("scores",))
NAME = "Qwen/Qwen3-Reranker-0.6B"
PAIRS = [
    ("吃完海鲜可以喝牛奶吗?", "不可以，早晨喝牛奶不科学"),
    ("weather", "The weather is lovely today."),
    ("the weather 2026?", " a"),
    ("Query", "Document\n\n  of two lines: 北京是中国的首都。"),
    ("a", "no"),
]
LONG = [("weather", "the weather " * 300), ("天气", "北京是中国的首都。" * 60), ("the weather " * 200, "sunny")]


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache", name=NAME)


def scores(encoder, pairs, reading=SCORES):
    firsts, seconds = zip(*pairs, strict=True)
    return encoder.encode(encoder.tokenize(firsts, reading, seconds)).rows[:, 0]


def sigmoid(numbers):
    return 1 / (1 + np.exp(-np.asarray(numbers, dtype=np.float64)))


def make_cross_encoder(directory, **options):
    """What sentence-transformers saves of a language model with a template that carries pairs."""
    plain = make_qwen3(directory.with_name("plain"), template=PAIR_TEMPLATE)
    made = CrossEncoder(
        str(plain), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}, **options
    )
    made[0].processing_kwargs = {"chat_template": {"add_generation_prompt": True}}
    made.save_pretrained(str(directory))
    return directory


def reference(directory):
    return CrossEncoder(str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})


def predicted(model, pairs, **options):
    """Each pair by itself: the score that no batch may change."""
    return np.array([model.predict([pair], show_progress_bar=False, **options)[0] for pair in pairs])


def test_a_plain_qwen3_reranker_scores_as_its_model_card_does(tmp_path, opened):
    directory = make_qwen3(tmp_path / "model", length=512)
    encoder = opened(directory)
    info = encoder.info
    assert (info.task, info.outputs, info.labels, info.activation) == ("rerank", ("scores",), ("LABEL_0",), "sigmoid")
    assert (info.max_tokens, info.batching, info.takes_instruction) == (512, "packed", True)
    found = sigmoid(scores(encoder, PAIRS + LONG))
    expected = card_scores(directory, PAIRS + LONG, max_length=512)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert np.ptp(expected) > 0.05
    refuse_bad_answers(encoder)


def test_the_instruction_may_be_another_one(tmp_path, opened):
    directory = make_qwen3(tmp_path / "model", length=512)
    encoder = opened(directory, prompts=(("papers", "Find papers"),), task="rerank", name="some/model")
    asked = Reading(outputs=("scores",), prompt=encoder.resolve_prompt("papers"))
    found = sigmoid(scores(encoder, PAIRS, asked))
    np.testing.assert_allclose(found, card_scores(directory, PAIRS, "Find papers", 512), atol=TOLERANCE)
    assert np.abs(found - sigmoid(scores(encoder, PAIRS))).max() > 1e-3


def test_a_saved_cross_encoder_of_a_language_model_is_served_as_it_is(tmp_path, opened):
    directory = make_cross_encoder(tmp_path / "saved")
    encoder, model = opened(directory, name="some/model"), reference(directory)
    pairs = PAIRS + LONG
    np.testing.assert_allclose(sigmoid(scores(encoder, pairs)), predicted(model, pairs), atol=TOLERANCE)
    asked = Reading(outputs=("scores",), prompt="Find papers")
    np.testing.assert_allclose(
        sigmoid(scores(encoder, pairs, asked)), predicted(model, pairs, prompt="Find papers"), atol=TOLERANCE
    )
    assert (encoder.info.task, encoder.info.layout, encoder.info.max_tokens) == ("rerank", "sentence-transformers", 256)


def test_the_tokens_of_pairs_are_those_of_sentence_transformers(tmp_path, opened):
    directory = make_cross_encoder(tmp_path / "saved")
    encoder, model = opened(directory, name="some/model"), reference(directory)
    for pair in PAIRS + LONG:
        (one,) = encoder.tokenize([pair[0]], SCORES, [pair[1]])
        assert list(one.ids) == model.preprocess([pair])["input_ids"][0].tolist()
        assert one.truncated == (pair in LONG)


def test_a_tokenizer_that_cuts_the_start_cuts_it_here_too(tmp_path, opened):
    directory = make_cross_encoder(tmp_path / "saved")
    write_json(
        directory / "tokenizer_config.json",
        read_json(directory / "tokenizer_config.json") | {"truncation_side": "left"},
    )
    encoder, model = opened(directory, name="some/model"), reference(directory)
    for pair in LONG:
        (one,) = encoder.tokenize([pair[0]], SCORES, [pair[1]])
        assert list(one.ids) == model.preprocess([pair])["input_ids"][0].tolist()


def test_its_own_prompt_and_activation_and_a_single_answer_are_kept(tmp_path, opened):
    directory = make_cross_encoder(
        tmp_path / "saved",
        prompts={"web": "Search the web"},
        default_prompt_name="web",
        activation_fn=torch.nn.Identity(),
    )
    answers = directory / "1_LogitScore" / "config.json"
    write_json(answers, read_json(answers) | {"false_token_id": None})
    encoder = opened(directory, name="some/model")
    assert (encoder.info.prompts, encoder.info.activation) == (("web",), "identity")
    asked = Reading(outputs=("scores",), prompt=encoder.resolve_prompt(None))
    np.testing.assert_allclose(scores(encoder, PAIRS, asked), predicted(reference(directory), PAIRS), atol=TOLERANCE)


def test_neighbours_and_a_narrower_format_change_next_to_nothing(tmp_path, opened):
    directory = make_qwen3(tmp_path / "model", length=512)
    encoder = opened(directory)
    alone = np.concatenate([scores(encoder, [pair]) for pair in PAIRS])
    np.testing.assert_allclose(scores(encoder, PAIRS[::-1])[::-1], alone, atol=TOLERANCE)
    narrow = opened(directory, precision="bf16")
    np.testing.assert_allclose(sigmoid(scores(narrow, PAIRS)), sigmoid(alone), atol=0.05)


def test_what_such_a_model_cannot_do_is_refused_with_a_sentence(tmp_path, opened):
    encoder = opened(make_qwen3(tmp_path / "model", length=512))
    with pytest.raises(InvalidRequestError, match="send pairs of texts"):
        encoder.tokenize(["a"], SCORES)
    with pytest.raises(InvalidRequestError, match="cut at the end of the document"):
        encoder.tokenize(["a"], Reading(outputs=("scores",), cut_side="start"), ["b"])
    with pytest.raises(InvalidRequestError, match="leaves no room"):
        encoder.tokenize(["a"], Reading(outputs=("scores",), max_tokens=5), ["b"])


def test_a_very_long_document_gives_the_tokens_of_its_beginning(tmp_path, opened):
    encoder = opened(make_qwen3(tmp_path / "model", length=512))
    document = "the weather " * 40_000
    (one,) = encoder.tokenize(["weather"], SCORES, [document])
    (whole,) = encoder.tokenize(["weather"], SCORES, ["the weather " * 1000])
    assert one.ids == whole.ids
    assert one.truncated


def test_a_language_model_of_another_family_without_a_template_for_pairs_is_refused(tmp_path, opened):
    directory = make_qwen2(tmp_path / "model")
    with pytest.raises(LoadError, match=r"chat template cannot carry.*chat_template\.jinja") as caught:
        opened(directory, name="some/llm-reranker")
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("second", "kind", "words"),
    [
        ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "CrossEncoder", "those with LogitScore"),
        (
            "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
            "SentenceTransformer",
            "module of type sentence_transformers.cross_encoder.modules.logit_score.LogitScore, which is not supported",
        ),
    ],
)
def test_other_modules_behind_a_language_model_are_refused(tmp_path, opened, second, kind, words):
    directory = make_cross_encoder(tmp_path / "saved")
    modules = read_json(directory / "modules.json")
    write_json(directory / "modules.json", [modules[0], modules[1] | {"type": second}])
    options = read_json(directory / "config_sentence_transformers.json")
    write_json(directory / "config_sentence_transformers.json", options | {"model_type": kind})
    with pytest.raises(LoadError, match=words) as caught:
        opened(directory, name="some/model")
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_language_model_that_nobody_calls_a_reranker_embeds(tmp_path, opened):
    encoder = opened(make_qwen3(tmp_path / "model"), name="Qwen/Qwen3-Embedding-0.6B", pooling="lasttoken")
    assert (encoder.info.task, encoder.info.takes_instruction) == ("embed", False)
