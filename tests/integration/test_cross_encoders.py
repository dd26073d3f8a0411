"""Rerankers and classifiers, held against sentence-transformers' CrossEncoder and transformers itself."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel, XLMRobertaModel

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from shard.encoder import Reading
from shard.loading import paths
from tests.support import tiny_models
from tests.support.opening import opener
from tests.support.tiny_classifiers import (
    make_bert_classifier,
    make_modelscope_ranker,
    make_xlm_roberta_classifier,
    read_json,
    set_config,
)
from tests.support.tiny_language_models import CHAT_TEMPLATE, PAIR_TEMPLATE, make_qwen3_classifier
from tests.support.tiny_tokenizers import SAMPLE_TEXTS, write_json

TOLERANCE = 1e-5
SCORES = Reading(outputs=("scores",))
#: zh, en, mixed; equal, short and long texts on either side.
PAIRS = [
    *zip(SAMPLE_TEXTS, SAMPLE_TEXTS[::-1], strict=True),
    ("吃完海鲜可以喝牛奶吗?", "不可以，早晨喝牛奶不科学"),
    ("weather", "The weather is lovely today. " * 100),
    ("天气" * 300, "今天"),
    ("天气" * 300, "sunny day " * 300),
]


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache")


def scores(encoder, pairs, reading=SCORES):
    firsts, seconds = zip(*pairs, strict=True)
    return encoder.encode(encoder.tokenize(firsts, reading, seconds)).rows


def activated(rows, activation):
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-rows.astype(np.float64)))
    return rows


def reference(directory, **options):
    return CrossEncoder(
        str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}, **options
    )


def predicted(model, pairs):
    """Each pair by itself: the score that no batch may change."""
    return np.stack([model.predict([pair], show_progress_bar=False)[0] for pair in pairs])


MAKERS = pytest.mark.parametrize("make", [make_bert_classifier, make_xlm_roberta_classifier])


@MAKERS
def test_a_reranker_scores_as_the_cross_encoder_whatever_the_batch(tmp_path, opened, make):
    directory = make(tmp_path / "model")
    encoder = opened(directory)
    expected = predicted(reference(directory), PAIRS)
    found = activated(scores(encoder, PAIRS), encoder.info.activation)
    np.testing.assert_allclose(found[:, 0], expected, atol=TOLERANCE)
    np.testing.assert_allclose(scores(encoder, PAIRS[::-1])[::-1], scores(encoder, PAIRS), atol=TOLERANCE)
    assert np.ptp(expected) > 0.05
    info = encoder.info
    assert (info.task, info.outputs, info.activation, info.batching) == ("rerank", ("scores",), "sigmoid", "packed")
    assert info.dimension == 0


@MAKERS
def test_the_tokens_of_pairs_are_those_of_transformers(tmp_path, opened, make):
    directory = make(tmp_path / "model")
    encoder = opened(directory)
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    firsts, seconds = zip(*PAIRS, strict=True)
    expected = tokenizer(list(firsts), list(seconds), truncation=True, max_length=encoder.info.max_tokens)
    found = encoder.tokenize(firsts, SCORES, seconds)
    assert [list(one.ids) for one in found] == expected["input_ids"]
    if "token_type_ids" in expected:
        assert [list(one.type_ids) for one in found] == expected["token_type_ids"]
    whole = tokenizer(list(firsts), list(seconds), truncation=False, verbose=False)["input_ids"]
    assert [one.original_tokens for one in found] == [len(ids) for ids in whole]


@MAKERS
@pytest.mark.parametrize("take", ["singles", "pairs"])
def test_a_classifier_gives_the_logits_of_transformers(tmp_path, opened, make, take):
    directory = make(tmp_path / "model", labels=("消极", "neutral", "positive"))
    encoder = opened(directory)
    model = AutoModelForSequenceClassification.from_pretrained(str(directory), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    inputs = [(text,) for text in SAMPLE_TEXTS] if take == "singles" else PAIRS
    with torch.inference_mode():
        limit = {"truncation": True, "max_length": encoder.info.max_tokens, "return_tensors": "pt"}
        expected = np.concatenate([model(**tokenizer(*one, **limit)).logits.numpy() for one in inputs])
    seconds = [one[1] for one in inputs] if take == "pairs" else ()
    found = encoder.encode(encoder.tokenize([one[0] for one in inputs], SCORES, seconds)).rows
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    info = encoder.info
    assert (info.task, info.labels) == ("classify", ("消极", "neutral", "positive"))
    assert (info.activation, info.batching) == ("softmax", "packed")


@pytest.mark.parametrize(
    ("keys", "activation"),
    [
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "evil.package.Function"}}, "sigmoid"),
    ],
)
def test_the_activation_is_the_one_that_the_cross_encoder_applies(tmp_path, opened, keys, activation):
    directory = set_config(make_bert_classifier(tmp_path / "model"), **keys)
    encoder = opened(directory)
    assert encoder.info.activation == activation
    found = activated(scores(encoder, PAIRS), activation)[:, 0]
    np.testing.assert_allclose(found, predicted(reference(directory), PAIRS), atol=TOLERANCE)


@MAKERS
def test_a_directory_that_the_cross_encoder_has_saved_is_served_as_it_is(tmp_path, opened, make):
    made = reference(make(tmp_path / "plain"), activation_fn=torch.nn.Identity(), max_length=40)
    made.save_pretrained(str(tmp_path / "saved"))
    encoder = opened(tmp_path / "saved")
    assert (encoder.info.task, encoder.info.activation, encoder.info.max_tokens) == ("rerank", "identity", 40)
    np.testing.assert_allclose(
        scores(encoder, PAIRS)[:, 0], predicted(reference(tmp_path / "saved"), PAIRS), atol=TOLERANCE
    )


def test_modelscopes_rankers_have_one_label_and_its_length(tmp_path, opened):
    directory = make_modelscope_ranker(tmp_path / "model")
    encoder = opened(directory)
    info = encoder.info
    assert (info.task, info.layout, info.max_tokens, info.activation) == ("rerank", "modelscope", 128, "sigmoid")
    expected = predicted(reference(directory, num_labels=1, max_length=128), PAIRS)
    np.testing.assert_allclose(activated(scores(encoder, PAIRS), "sigmoid")[:, 0], expected, atol=TOLERANCE)


def test_the_length_of_modelscopes_rankers_may_be_stated(tmp_path, opened):
    assert opened(make_modelscope_ranker(tmp_path / "model", max_length=64)).info.max_tokens == 64


def test_a_task_may_be_set_against_what_the_files_say(tmp_path, opened):
    directory = make_bert_classifier(tmp_path / "model")
    encoder = opened(directory, task="embed", pooling="cls")
    assert (encoder.info.task, encoder.info.outputs, encoder.info.dimension) == ("embed", ("dense",), 32)


@pytest.mark.parametrize("make", [make_bert_classifier, make_xlm_roberta_classifier])
def test_in_int8_no_matrices_in_fp32_stay_beside_those_in_8_bit(tmp_path, opened, make):
    directory = make(tmp_path / "model")
    gc.collect()
    before = list(map(weakref.ref, _bodies()))
    encoder = opened(directory, precision="int8")
    gc.collect()
    assert encoder.info.batching == "packed"
    known = {id(body) for one in before if (body := one()) is not None}
    assert not [body for body in _bodies() if id(body) not in known]
    alone = np.concatenate([scores(encoder, [pair]) for pair in PAIRS])
    np.testing.assert_allclose(scores(encoder, PAIRS), alone, atol=TOLERANCE)


def _bodies():
    return [one for one in gc.get_objects() if issubclass(type(one), (BertModel, XLMRobertaModel))]


def test_the_weights_of_a_packed_model_are_counted_with_its_head(tmp_path, opened):
    encoder = opened(make_bert_classifier(tmp_path / "model"), prepack_weights=False)
    model = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "model"))
    assert encoder.info.batching == "packed"
    assert encoder.info.weights_bytes == sum(parameter.nbytes for parameter in model.parameters())


def test_a_model_without_a_head_is_no_reranker(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "model")
    with pytest.raises(LoadError) as caught:
        opened(directory, task="rerank")
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS
    assert "classifier" in str(caught.value)


def test_a_hostile_pickle_of_a_reranker_is_refused_unread(tmp_path, opened):
    directory = make_bert_classifier(tmp_path / "model")
    marker = tmp_path / "marker"
    tiny_models.plant_hostile_pickle(directory, marker)
    with pytest.raises(LoadError) as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS
    assert not marker.exists()


def test_remote_code_of_a_reranker_is_refused_unread(tmp_path, opened):
    directory = make_bert_classifier(tmp_path / "model")
    tiny_models.plant_remote_code(directory, tmp_path / "marker")
    with pytest.raises(LoadError) as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.CODE_NOT_TRUSTED


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_narrow_reranker_stays_near_fp32(tmp_path, opened, precision):
    directory = make_xlm_roberta_classifier(tmp_path / "model")
    exact, narrow = scores(opened(directory), PAIRS), scores(opened(directory, precision=precision), PAIRS)
    assert np.corrcoef(exact[:, 0], narrow[:, 0])[0, 1] > 0.99
    assert not np.array_equal(exact, narrow)


def test_a_head_that_reads_more_than_one_token_is_served_by_its_own_code(tmp_path, opened):
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    directory = make_bert_classifier(tmp_path / "model")
    shape = read_json(directory / "config.json")
    config = ModernBertConfig(
        vocab_size=shape["vocab_size"], hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, classifier_pooling="mean", num_labels=1, pad_token_id=0, cls_token_id=2,
        sep_token_id=3, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    ModernBertForSequenceClassification(config).save_pretrained(str(directory))
    tokenizer = read_json(directory / "tokenizer_config.json")
    write_json(directory / "tokenizer_config.json", tokenizer | {"model_input_names": ["input_ids", "attention_mask"]})
    encoder = opened(directory)
    assert encoder.info.batching == "padded"
    found = activated(scores(encoder, PAIRS), "sigmoid")[:, 0]
    np.testing.assert_allclose(found, predicted(reference(directory), PAIRS), atol=TOLERANCE)


def test_the_head_of_a_language_model_reads_the_last_token_that_is_no_padding(tmp_path, opened):
    directory = make_qwen3_classifier(tmp_path / "model")
    encoder = opened(directory)
    assert (encoder.info.task, encoder.info.batching) == ("rerank", "packed")
    pairs = [*PAIRS, ("weather", "sunny<|endoftext|>"), ("sunny", "<|endoftext|><|endoftext|>")]
    found = activated(scores(encoder, pairs), "sigmoid")[:, 0]
    np.testing.assert_allclose(found, predicted(reference(directory), pairs), atol=TOLERANCE)


@pytest.mark.parametrize("batching", ["packed", "alone"])
def test_a_language_model_without_padding_reads_the_last_token_whatever_it_is(tmp_path, opened, monkeypatch, batching):
    directory = set_config(make_qwen3_classifier(tmp_path / "model"), pad_token_id=None)
    if batching == "alone":  # as of a model whose graph cannot be had
        monkeypatch.setattr(paths, "_capture", lambda parts, plan: None)
    encoder = opened(directory)
    assert (encoder.info.task, encoder.info.batching) == ("rerank", batching)
    pairs = [*PAIRS, ("weather", "sunny<|endoftext|>"), ("sunny", "<|endoftext|><|endoftext|>")]
    found = activated(scores(encoder, pairs), "sigmoid")[:, 0]
    np.testing.assert_allclose(found, predicted(reference(directory), pairs), atol=TOLERANCE)


def test_a_chat_template_that_carries_pairs_is_around_those_of_a_classification_head_too(tmp_path, opened):
    directory = make_qwen3_classifier(tmp_path / "model", template=PAIR_TEMPLATE)
    encoder = opened(directory)
    assert encoder.info.takes_instruction
    model = reference(directory)
    found = activated(scores(encoder, PAIRS), "sigmoid")[:, 0]
    np.testing.assert_allclose(found, predicted(model, PAIRS), atol=TOLERANCE)
    found = activated(scores(encoder, PAIRS, SCORES._replace(prompt="Find lies")), "sigmoid")[:, 0]
    expected = np.stack([model.predict([pair], prompt="Find lies", show_progress_bar=False)[0] for pair in PAIRS])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    chats = opened(make_qwen3_classifier(tmp_path / "chats", template=CHAT_TEMPLATE))
    assert not chats.info.takes_instruction


def test_single_texts_may_stand_among_pairs(tmp_path, opened):
    encoder = opened(make_bert_classifier(tmp_path / "model"))
    mixed = encoder.tokenize(["你好", "hello", "one"], seconds=["", "world", ""])
    assert mixed == [
        *encoder.tokenize(["你好"]),
        *encoder.tokenize(["hello"], seconds=["world"]),
        *encoder.tokenize(["one"]),
    ]


def test_what_a_model_lacks_is_refused(tmp_path, opened):
    embedder = opened(tiny_models.make_sentence_transformers(tmp_path / "model"))
    with pytest.raises(InvalidRequestError, match="single texts, not pairs"):
        embedder.tokenize(["a"], seconds=["b"])


def test_a_model_card_tells_the_sizes_that_vectors_may_be_cut_to(tmp_path, opened):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model")
    losses = json.dumps({"loss": "X", "matryoshka_dims": [32, 16, 8], "n_dims_per_step": -1}, indent=4)
    (directory / "README.md").write_text(f"# 模型\n```json\n{losses}\n```\n", encoding="utf-8")
    assert opened(directory).info.matryoshka == (8, 16, 32)
