"""What a model is for and what becomes of its scores, as its files say."""

import json

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.model_files.kinds import (
    check_labels,
    check_scores,
    count_labels,
    find_activation,
    find_matryoshka,
    find_task,
    is_modelscope_embedding,
    is_modelscope_ranking,
    states_labels,
)

SPEC = ModelSpec(id="m", name="some/model")
CLASSIFIER = {"architectures": ["BertForSequenceClassification"]}
#: What ``sentence_transformers.util.fullname`` calls them.
SAVED = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Softmax": "softmax",
}


@pytest.mark.parametrize(
    ("config", "configuration", "options", "task"),
    [
        ({"architectures": ["BertModel"]}, {}, None, "embed"),
        ({"architectures": ["Qwen2ForCausalLM"]}, {}, {"prompts": {}}, "embed"),
        (CLASSIFIER | {"id2label": {"0": "LABEL_0"}}, {}, None, "rerank"),
        (CLASSIFIER | {"num_labels": 1}, {}, None, "rerank"),
        (CLASSIFIER, {}, None, "classify"),
        (CLASSIFIER | {"id2label": {"0": "a", "1": "b", "2": "c"}}, {"task": "text-classification"}, None, "classify"),
        ({"architectures": ["Bert"]}, {"task": "text-ranking"}, None, "rerank"),
        ({}, {"task": "sentence-embedding"}, None, "embed"),
        (CLASSIFIER | {"id2label": {"0": "LABEL_0"}}, {}, {"model_type": "CrossEncoder"}, "rerank"),
        (CLASSIFIER, {}, {"model_type": "SentenceTransformer"}, "embed"),
        ({}, {}, {"model_type": "SparseEncoder"}, "sparse"),
        ({}, {}, {"model_type": "MultiVectorEncoder"}, "multi_vector"),
        ({}, {}, {"model_type": "ColBERT"}, "multi_vector"),
        ({}, {}, {"model_type": "SentenceTransformer", "query_prefix": None}, "multi_vector"),
        ({"architectures": ["HF_ColBERT"]}, {"task": "text-ranking"}, None, "multi_vector"),
        ({}, {}, {"model_type": "ImageEncoder"}, "embed"),
        (CLASSIFIER | {"num_labels": 1}, {}, {}, "embed"),
        (CLASSIFIER | {"id2label": {}, "num_labels": 1}, {}, None, "rerank"),
        (CLASSIFIER | {"num_labels": 0}, {}, None, "classify"),
        (CLASSIFIER | {"num_labels": "1"}, {}, None, "classify"),
        ({"architectures": 7}, {"task": ["x"]}, None, "embed"),
    ],
)
def test_the_task_is_what_the_files_say(config, configuration, options, task):
    assert find_task(SPEC, config, configuration, options) == task


def test_the_operator_knows_better():
    assert find_task(ModelSpec(id="m", name="n", task="embed"), CLASSIFIER, {"task": "text-ranking"}, None) == "embed"


@pytest.mark.parametrize(
    ("spec", "configuration", "options"),
    [
        (ModelSpec(id="m", name="Qwen/Qwen3-Reranker-0.6B"), {}, None),
        (ModelSpec(id="m", name="n", task="rerank"), {}, None),
        (ModelSpec(id="m", name="n"), {"task": "text-ranking"}, None),
        (ModelSpec(id="m", name="n"), {}, {"model_type": "CrossEncoder"}),
    ],
)
def test_a_language_model_ranks_where_its_files_its_name_or_the_operator_say_so(spec, configuration, options):
    assert find_task(spec, {"architectures": ["Qwen3ForCausalLM"]}, configuration, options) == "rerank"


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("/data/Qwen3-Reranker-stuff/Qwen3-Embedding-0.6B", "embed"),
        ("reranker-lab/Qwen3-Embedding-0.6B", "embed"),
        ("/data/models/Qwen3-Reranker-0.6B/", "rerank"),
        ("/cache/hub/models--Qwen--Qwen3-Reranker-0.6B/snapshots/0f1e2d", "rerank"),
        ("/cache/models/Qwen--Qwen3-Reranker-0.6B/snapshots/master", "rerank"),
        ("/rerankers/models--Qwen--Qwen3-Embedding-0.6B/snapshots/0f1e2d", "embed"),
        ("/snapshots/qwen-reranker", "rerank"),
    ],
)
def test_of_a_language_models_name_only_its_own_part_counts(name, task):
    assert find_task(ModelSpec(id="m", name=name), {"architectures": ["Qwen3ForCausalLM"]}, {}, None) == task


def test_a_name_alone_makes_no_reranker_of_a_model_that_says_what_it_is():
    config = {"architectures": ["Qwen3ForCausalLM"]}
    named = ModelSpec(id="m", name="some/distilled-from-reranker")
    assert find_task(named, config, {}, {"model_type": "SentenceTransformer"}) == "embed"
    assert find_task(ModelSpec(id="m", name="x-rerank", task="embed"), config, {}, None) == "embed"


@pytest.mark.parametrize(
    ("config", "options", "labels", "activation"),
    [
        ({}, None, 1, "sigmoid"),
        ({}, None, 3, "softmax"),
        ({"problem_type": "single_label_classification"}, None, 3, "softmax"),
        ({"problem_type": "multi_label_classification"}, None, 3, "sigmoid"),
        ({"problem_type": "regression"}, None, 3, "identity"),
        ({}, {"model_type": "CrossEncoder"}, 3, "identity"),
        ({"sentence_transformers": {"version": "4"}}, None, 3, "identity"),
        ({}, {"activation_fn": "torch.nn.modules.activation.Softmax"}, 3, "softmax"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, None, 1, "identity"),
        ({"sentence_transformers": {"activation_fn": "os.system"}}, None, 1, "sigmoid"),
        ({"sbert_ce_default_activation_function": "os.system"}, None, 3, "identity"),
        *(({}, {"activation_fn": name}, 2, activation) for name, activation in SAVED.items()),
    ],
)
def test_scores_go_through_what_the_models_library_applies(config, options, labels, activation):
    assert find_activation(config, options, labels) == activation


def test_an_activation_is_looked_for_in_the_files_of_sentence_transformers_first_and_in_the_oldest_place_last():
    sigmoid, identity, softmax = (f"torch.nn.{name}" for name in ("Sigmoid", "Identity", "Softmax"))
    config = {"sentence_transformers": {"activation_fn": identity}, "sbert_ce_default_activation_function": sigmoid}
    assert find_activation(config, {"activation_fn": softmax}, 1) == "softmax"
    assert find_activation(config, {"activation_fn": None}, 1) == "identity"
    assert find_activation(config | {"sentence_transformers": "4.0"}, None, 3) == "sigmoid"


@pytest.mark.parametrize(
    ("configuration", "ranks", "embeds"),
    [
        ({"task": "text-ranking", "pipeline": {"type": "text-ranking"}}, True, False),
        ({"task": "text-ranking"}, False, False),
        ({"task": "text-ranking", "pipeline": {"type": "other"}}, False, False),
        ({"task": "other", "pipeline": {"type": "text-ranking"}}, False, False),
        ({"task": "text-ranking", "pipeline": "text-ranking"}, False, False),
        ({"task": "sentence-embedding", "pipeline": {"type": "sentence-embedding"}}, False, True),
        ({"task": "sentence-embedding", "model": {"type": "bert"}}, False, True),
        ({"task": "sentence-embedding"}, False, False),
        ({"task": "other", "model": {"type": "bert"}, "pipeline": {}}, False, False),
    ],
)
def test_modelscopes_own_pipelines_serve_what_names_more_than_their_task(configuration, ranks, embeds):
    assert (is_modelscope_ranking(configuration), is_modelscope_embedding(configuration)) == (ranks, embeds)


def test_an_activation_of_torch_that_is_not_known_is_refused():
    with pytest.raises(LoadError, match="Tanh"):
        find_activation({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, None, 1)


def test_a_head_that_says_nothing_of_its_labels_has_the_two_that_transformers_assumes():
    assert [count_labels({"num_labels": said}) for said in (3, 0, -1, "3", None)] == [3, 2, 2, 2, 2]
    assert count_labels({"id2label": {"0": "a"}}) == 1


def test_a_number_of_labels_counts_before_their_names_as_for_transformers():
    assert count_labels({"id2label": {"0": "a"}, "num_labels": 3}) == 3
    assert count_labels({"id2label": {"0": "a", "1": "b"}, "num_labels": 1}) == 1


def test_a_head_with_several_labels_does_not_rank():
    check_labels("rerank", 1)
    check_labels("classify", 3)
    with pytest.raises(LoadError, match='"task": "classify"'):
        check_labels("rerank", 2)
    assert [states_labels(said) for said in ({"id2label": {}}, {"num_labels": 1}, {})] == [True, True, False]


@pytest.mark.parametrize(
    ("said", "task", "modules", "reason"),
    [
        ({"transformer_task": "sequence-classification"}, "rerank", 1, None),
        ({"transformer_task": "sequence-classification"}, "embed", 1, LoadReason.UNSUPPORTED_MODEL),
        ({"transformer_task": "sequence-classification"}, "classify", 2, LoadReason.UNSUPPORTED_MODEL),
        ({"max_seq_length": 8}, "embed", 2, None),
        ({"max_seq_length": 8}, "classify", 1, LoadReason.UNSUPPORTED_MODEL),
        (None, "embed", 2, None),
        (None, "rerank", 1, LoadReason.INCOMPLETE_DOWNLOAD),
    ],
)
def test_what_a_cross_encoders_transformer_makes_is_in_a_file_that_a_copy_may_lack(
    tmp_path, said, task, modules, reason
):
    if said is not None:
        (tmp_path / "sentence_bert_config.json").write_text(json.dumps(said), encoding="utf-8")
    if reason is None:
        check_scores(tmp_path, task, modules)
        return
    with pytest.raises(LoadError) as caught:
        check_scores(tmp_path, task, modules)
    assert caught.value.reason is reason


def test_sizes_for_a_cut_are_found_in_the_configuration_or_the_card(tmp_path):
    assert find_matryoshka(tmp_path, {"matryoshka_dimensions": [512, 32, 32]}, None) == (32, 512)
    assert find_matryoshka(tmp_path, {"matryoshka_dimensions": "many"}, {}) == ()
    assert find_matryoshka(tmp_path, {"matryoshka_dimensions": ["64"]}, {}) == ()
    assert find_matryoshka(tmp_path, {"matryoshka_dimensions": [0, 8]}, {"matryoshka_dims": [16, 8]}) == (8, 16)
    (tmp_path / "README.md").write_text('"matryoshka_dims": [\n 768,\n 64\n ]')
    assert find_matryoshka(tmp_path, {}, None) == (64, 768)
    (tmp_path / "README.md").write_bytes(b"\xff" * 1024 * 1024 + b'"matryoshka_dims": [64]')
    assert find_matryoshka(tmp_path, {}, None) == (), "a card is read as far as one may be long"
