"""Which layout a directory has and what its files say, from JSON alone."""

import json
import re

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.model_files.layouts import read_recipe
from shard.model_files.recipe import ModuleEntry

SPEC = ModelSpec(id="m", name="some/model")


def write(directory, **files):
    for name, content in files.items():
        path = directory / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return directory


def modelscope(directory, *, preprocessor=None, **model):
    configuration = {"task": "sentence-embedding", "model": model, "preprocessor": preprocessor or {}}
    return write(directory, config={"model_type": "bert"}, configuration=configuration)


def sentence_transformers(directory, **options):
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    return write(directory, modules=modules, config={}, config_sentence_transformers=options)


def reason_of(directory, spec=SPEC):
    with pytest.raises(LoadError) as caught:
        read_recipe(directory, spec)
    return caught.value.reason


def test_modules_json_makes_a_sentence_transformers_model(tmp_path):
    recipe = read_recipe(sentence_transformers(tmp_path, prompts={"query": "q: "}, default_prompt_name="query"), SPEC)
    assert recipe.layout == "sentence-transformers"
    assert recipe.modules[1] == ModuleEntry("sentence_transformers.models.Pooling", "1_Pooling")
    assert (recipe.pooling, recipe.normalize, recipe.max_length) == (None, None, None)
    assert recipe.prompts == (("query", "q: "),)
    assert recipe.default_prompt_name == "query"


def test_modules_json_wins_over_a_modelscope_configuration_beside_it(tmp_path):
    modelscope(tmp_path)
    assert read_recipe(sentence_transformers(tmp_path), SPEC).layout == "sentence-transformers"


def test_modelscope_defaults_are_cls_unnormalised_and_128_tokens(tmp_path):
    recipe = read_recipe(modelscope(tmp_path), SPEC)
    assert recipe.layout == "modelscope"
    assert (recipe.pooling, recipe.normalize, recipe.max_length) == ("cls", False, 128)
    assert not recipe.pooling_assumed


def test_a_model_that_modelscope_computes_in_a_way_of_its_own_is_refused_until_somebody_says_its_pooling(tmp_path):
    """As a copy of m3e-small there, whose ``configuration.json`` says just this."""
    directory = modelscope(tmp_path, type="m3e-small", language="zh")
    assert reason_of(directory) is LoadReason.UNSUPPORTED_MODEL
    assert read_recipe(directory, ModelSpec(id="m", name="o/m", pooling="mean")).pooling == "mean"


@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("qwen2", "lasttoken")])
def test_a_configuration_that_names_no_more_than_the_task_leaves_the_model_to_the_rules_of_plain_ones(
    tmp_path, family, pooling
):
    config = {"model_type": family, "architectures": ["Qwen2ForCausalLM" if family == "qwen2" else "BertModel"]}
    write(tmp_path, config=config, configuration={"framework": "pytorch", "task": "sentence-embedding"})
    recipe = read_recipe(tmp_path, SPEC)
    assert (recipe.layout, recipe.pooling, recipe.max_length) == ("transformers", pooling, None)
    assert recipe.pooling_assumed


def test_modelscope_says_pooling_normalising_and_length(tmp_path):
    directory = modelscope(tmp_path, preprocessor={"max_length": 40}, emb_pooler_type="avg", normalize=True)
    recipe = read_recipe(directory, SPEC)
    assert (recipe.pooling, recipe.normalize, recipe.max_length) == ("mean", True, 40)


def test_modelscope_length_may_stand_in_the_inference_half_of_the_preprocessor(tmp_path):
    directory = modelscope(tmp_path, preprocessor={"train": {"max_length": 7}, "val": {"max_length": 50}})
    assert read_recipe(directory, SPEC).max_length == 50


@pytest.mark.parametrize("length", [0, -1, "64", None])
def test_a_length_of_modelscope_that_is_none_leaves_its_default(tmp_path, length):
    assert read_recipe(modelscope(tmp_path, preprocessor={"max_length": length}), SPEC).max_length == 128


def ranker(directory, *, pipeline=True, **config):
    configuration = {"task": "text-ranking", "preprocessor": {"max_length": 77}}
    configuration |= {"pipeline": {"type": "text-ranking"}} if pipeline else {}
    return write(directory, config={"model_type": "bert", **config}, configuration=configuration)


def test_a_ranker_of_modelscope_has_one_label_sigmoid_and_the_length_that_its_preprocessor_says(tmp_path):
    recipe = read_recipe(ranker(tmp_path), SPEC)
    assert (recipe.layout, recipe.task, recipe.num_labels) == ("modelscope", "rerank", 1)
    assert (recipe.max_length, recipe.activation, recipe.scores) == (77, "sigmoid", True)
    named = {"sentence_transformers": {"activation_fn": "torch.nn.Identity"}}
    assert read_recipe(ranker(tmp_path, num_labels=1, **named), SPEC).activation == "sigmoid"
    assert read_recipe(ranker(tmp_path, num_labels=1), SPEC).num_labels is None
    assert read_recipe(ranker(tmp_path), ModelSpec(id="m", name="n", max_length=9)).max_length == 9


def test_a_ranker_that_modelscopes_pipeline_does_not_serve_is_one_of_transformers(tmp_path):
    named = {"sentence_transformers": {"activation_fn": "torch.nn.Identity"}}
    recipe = read_recipe(ranker(tmp_path, pipeline=False, **named), SPEC)
    assert (recipe.layout, recipe.task, recipe.num_labels) == ("transformers", "rerank", 1)
    assert (recipe.max_length, recipe.activation) == (None, "identity")


def test_a_ranking_model_with_two_labels_is_refused_and_classifies_if_it_is_told_to(tmp_path):
    ranker(tmp_path, id2label={"0": "no", "1": "yes"})
    assert reason_of(tmp_path) is LoadReason.UNSUPPORTED_MODEL
    recipe = read_recipe(tmp_path, ModelSpec(id="m", name="n", task="classify"))
    assert (recipe.task, recipe.num_labels) == ("classify", None)


def test_a_classifier_that_names_no_labels_keeps_the_two_that_transformers_assumes(tmp_path):
    recipe = read_recipe(write(tmp_path, config={}), ModelSpec(id="m", name="n", task="classify"))
    assert (recipe.task, recipe.num_labels, recipe.activation) == ("classify", None, "softmax")


@pytest.mark.parametrize(
    ("family", "set_to", "length"), [("qwen3", None, 8192), ("qwen2", None, None), ("qwen3", 9, 9)]
)
def test_a_language_model_that_ranks_reads_as_much_as_its_card_says(tmp_path, family, set_to, length):
    write(tmp_path, config={"model_type": family, "architectures": ["AForCausalLM"]})
    recipe = read_recipe(tmp_path, ModelSpec(id="m", name="a-Reranker", max_length=set_to))
    assert (recipe.layout, recipe.task, recipe.activation) == ("transformers", "rerank", "sigmoid")
    assert recipe.max_length == length
    assert recipe.generative.is_qwen3 is (family == "qwen3")


def test_bge_m3_is_known_by_both_of_its_layers(tmp_path):
    write(tmp_path, config={"model_type": "xlm-roberta"})
    (tmp_path / "sparse_linear.pt").touch()
    one = read_recipe(tmp_path, SPEC)
    assert (one.has_token_linears, one.pooling, one.pooling_assumed, one.normalize) == (False, "mean", True, False)
    (tmp_path / "colbert_linear.pt").touch()
    both = read_recipe(tmp_path, SPEC)
    assert (both.has_token_linears, both.pooling, both.pooling_assumed, both.normalize) == (True, "cls", False, True)
    told = read_recipe(tmp_path, ModelSpec(id="m", name="n", pooling="mean", normalize=False, max_length=9))
    assert (told.pooling, told.normalize, told.max_length) == ("mean", False, 9)
    assert read_recipe(sentence_transformers(tmp_path), SPEC).has_token_linears


def test_a_masked_language_model_is_sparse_where_its_mapping_says_so_and_nothing_else_is(tmp_path):
    spec = ModelSpec(id="m", name="n", task="sparse", max_length=9)
    recipe = read_recipe(write(tmp_path, config={"architectures": ["BertForMaskedLM"]}), spec)
    assert (recipe.layout, recipe.task, recipe.max_length) == ("transformers", "sparse", 9)
    assert reason_of(write(tmp_path, config={"architectures": ["BertModel"]}), spec) is LoadReason.UNSUPPORTED_MODEL
    assert reason_of(write(tmp_path, config={"architectures": "BertForMaskedLM"}), spec) is LoadReason.UNSUPPORTED_MODEL


def test_stanfords_colbert_is_known_by_its_architecture_and_no_other_model_gets_a_random_projection(tmp_path):
    recipe = read_recipe(write(tmp_path, config={"architectures": ["HF_ColBERT"]}), SPEC)
    assert (recipe.layout, recipe.task, recipe.default_prompt_name) == ("transformers", "multi_vector", "document")
    assert recipe.late.is_stanford
    spec = ModelSpec(id="m", name="n", task="multi_vector")
    assert reason_of(write(tmp_path, config={"architectures": ["BertModel"]}), spec) is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("task", "architecture"), [("sparse", "BertForMaskedLM"), ("multi_vector", "HF_ColBERT"), (None, "HF_ColBERT")]
)
def test_a_modelscope_configuration_makes_no_other_model_one_of_dense_vectors(tmp_path, task, architecture):
    write(modelscope(tmp_path), config={"model_type": "bert", "architectures": [architecture]})
    recipe = read_recipe(tmp_path, ModelSpec(id="m", name="n", task=task))
    assert (recipe.layout, recipe.task) == ("transformers", task or "multi_vector")


@pytest.mark.parametrize("task", ["sparse", "multi_vector"])
def test_a_model_of_dense_vectors_from_modelscope_does_nothing_else_whatever_its_mapping_says(tmp_path, task):
    assert reason_of(modelscope(tmp_path), ModelSpec(id="m", name="n", task=task)) is LoadReason.UNSUPPORTED_MODEL


def test_a_late_interaction_model_has_the_prompts_of_its_mapping_before_its_own(tmp_path):
    directory = sentence_transformers(tmp_path, model_type="ColBERT", query_prefix="[Q] ", document_prefix="[D] ")
    spec = ModelSpec(id="m", name="n", prompts=(("query", "ask: "), ("x", "y")), max_length=9)
    recipe = read_recipe(directory, spec)
    assert dict(recipe.prompts) == {"query": "ask: ", "document": "[D] ", "x": "y"}
    assert (recipe.layout, recipe.default_prompt_name) == ("sentence-transformers", "document")
    assert (recipe.max_length, recipe.late.is_bare) == (9, True)
    own = sentence_transformers(tmp_path, model_type="MultiVectorEncoder")
    assert not read_recipe(own, SPEC).late.is_bare
    assert read_recipe(own, ModelSpec(id="m", name="n", default_prompt_name="query")).default_prompt_name == "query"


def sparse(directory, *kinds, **options):
    modules = [{"path": str(number), "type": f"sentence_transformers.{kind}"} for number, kind in enumerate(kinds)]
    return write(directory, modules=modules, config_sentence_transformers={"model_type": "SparseEncoder", **options})


def test_a_sparse_model_is_two_modules_and_keeps_as_many_weights_as_it_says(tmp_path):
    recipe = read_recipe(sparse(tmp_path, "MLMTransformer", "SpladePooling", max_active_dims=64), SPEC)
    assert (recipe.task, recipe.max_active) == ("sparse", 64)
    assert (
        read_recipe(sparse(tmp_path, "MLMTransformer", "SpladePooling", max_active_dims=None), SPEC).max_active is None
    )


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("SparseStaticEmbedding",), "without inference"),
        (("MLMTransformer", "SpladePooling", "SparseAutoEncoder"), "only the first two"),
    ],
)
def test_a_sparse_model_of_another_kind_is_refused_with_its_modules(tmp_path, kinds, words):
    with pytest.raises(LoadError, match=f"{kinds[-1]}.*{words}"):
        read_recipe(sparse(tmp_path, *kinds), SPEC)


def test_a_task_that_the_modules_are_not_for_is_refused(tmp_path):
    spec = ModelSpec(id="m", name="n", task="sparse")
    with pytest.raises(LoadError, match='leave out its "task"'):
        read_recipe(sentence_transformers(tmp_path), spec)
    with pytest.raises(LoadError, match='leave out its "task"'):
        read_recipe(sparse(tmp_path, "MLMTransformer", "SpladePooling"), ModelSpec(id="m", name="n", task="embed"))


def test_a_plain_model_is_not_what_nothing_in_it_makes_it(tmp_path):
    directory = write(tmp_path, config={"model_type": "bert", "architectures": ["BertModel"]})
    assert read_recipe(directory, ModelSpec(id="m", name="n", task="embed")).task == "embed"
    assert read_recipe(directory, ModelSpec(id="m", name="n", task="rerank")).num_labels == 1


def test_a_cut_that_a_model_makes_itself_and_the_sizes_that_it_may_be_cut_to_are_read(tmp_path):
    recipe = read_recipe(sentence_transformers(tmp_path, truncate_dim=8, matryoshka_dims=[8, 4]), SPEC)
    assert (recipe.truncate_dimension, recipe.matryoshka) == (8, (4, 8))
    assert read_recipe(sentence_transformers(tmp_path, truncate_dim=None), SPEC).truncate_dimension is None


@pytest.mark.parametrize("length", [0, -1, -384, True, False, "8", "", 8.0, [8]])
def test_a_cut_to_no_length_is_refused(tmp_path, length):
    with pytest.raises(LoadError, match=rf"truncate_dim {re.escape(repr(length))}, which is no length") as caught:
        read_recipe(sentence_transformers(tmp_path, truncate_dim=length), SPEC)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_no_half_of_a_surrogate_pair_is_left_in_what_a_model_calls_its_prompts(tmp_path):
    prompts = {"a\ud800": "b\udfff: ", "query": "😀 "}
    read = read_recipe(sentence_transformers(tmp_path, prompts=prompts, default_prompt_name="a\ud800"), SPEC)
    assert dict(read.prompts) == {"a?": "b?: ", "query": "😀 "}
    assert read.default_prompt_name == "a?"


@pytest.mark.parametrize(
    "modules", [[], {}, [7], [{"type": "T"}], [{"path": ""}], [{"type": 1, "path": ""}], [{"type": "T", "path": 1}]]
)
def test_modules_that_are_no_list_of_types_and_paths_are_a_corrupt_download(tmp_path, modules):
    assert reason_of(write(tmp_path, modules=modules)) is LoadReason.CORRUPT_DOWNLOAD


@pytest.mark.parametrize("pooler", ["avg_top2", "avg_first_last", "unheard_of"])
def test_a_modelscope_pooler_without_a_right_answer_is_refused(tmp_path, pooler):
    assert reason_of(modelscope(tmp_path, emb_pooler_type=pooler)) is LoadReason.UNSUPPORTED_MODEL


def test_an_explicit_pooling_serves_a_model_whose_own_pooler_is_refused(tmp_path):
    spec = ModelSpec(id="m", name="n", pooling="mean")
    assert read_recipe(modelscope(tmp_path, emb_pooler_type="avg_top2"), spec).pooling == "mean"


def test_a_modelscope_model_of_another_family_is_refused(tmp_path):
    modelscope(tmp_path)
    assert reason_of(write(tmp_path, config={"model_type": "bloom"})) is LoadReason.UNSUPPORTED_MODEL


def test_a_plain_transformer_gets_mean_and_the_recipe_says_it_is_a_guess(tmp_path):
    recipe = read_recipe(write(tmp_path, config={"model_type": "bert"}), SPEC)
    assert (recipe.layout, recipe.pooling, recipe.pooling_assumed, recipe.normalize) == (
        "transformers",
        "mean",
        True,
        False,
    )


def test_settings_override_what_the_directory_says(tmp_path):
    spec = ModelSpec(
        id="m", name="n", pooling="max", normalize=False, max_length=9, prompts=(("a", "b"),), default_prompt_name="a"
    )
    recipe = read_recipe(modelscope(tmp_path, normalize=True), spec)
    assert (recipe.pooling, recipe.normalize, recipe.max_length) == ("max", False, 9)
    assert recipe.prompts == (("a", "b"),)


def test_prompts_of_the_settings_are_added_to_those_of_the_model(tmp_path):
    directory = sentence_transformers(tmp_path, prompts={"query": "old", "document": None})
    recipe = read_recipe(directory, ModelSpec(id="m", name="n", prompts=(("query", "new"),)))
    assert dict(recipe.prompts) == {"query": "new", "document": ""}


def test_a_default_prompt_that_does_not_exist_is_refused(tmp_path):
    directory = sentence_transformers(tmp_path, prompts={"query": "q"}, default_prompt_name="querry")
    assert reason_of(directory) is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(("labels", "task"), [({"0": "LABEL_0"}, "rerank"), ({"0": "no", "1": "yes"}, "classify")])
def test_a_cross_encoder_reranks_with_one_label_and_classifies_with_more(tmp_path, labels, task):
    options = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}
    directory = sentence_transformers(tmp_path, **options)
    write(directory, config={"id2label": labels})
    recipe = read_recipe(directory, SPEC)
    assert (recipe.task, recipe.activation, recipe.layout) == (task, "identity", "sentence-transformers")


@pytest.mark.parametrize("options", [{}, {"model_type": "SentenceTransformer"}])
def test_a_transformer_that_makes_scores_is_a_cross_encoder_whoever_says_otherwise(tmp_path, options):
    directory = sentence_transformers(tmp_path, **options)
    write(directory, config={"num_labels": 1}, sentence_bert_config={"transformer_task": "sequence-classification"})
    recipe = read_recipe(directory, SPEC)
    assert (recipe.task, recipe.activation) == ("rerank", "sigmoid")


@pytest.mark.parametrize("kind", ["ImageEncoder", ["SentenceTransformer"]])
def test_a_kind_of_model_that_nobody_knows_is_refused(tmp_path, kind):
    assert reason_of(sentence_transformers(tmp_path, model_type=kind)) is LoadReason.UNSUPPORTED_MODEL


def test_an_adapter_without_its_base_is_refused(tmp_path):
    write(tmp_path, config={}, adapter_config={})
    assert reason_of(tmp_path) is LoadReason.UNSUPPORTED_MODEL


def test_an_empty_directory_is_an_incomplete_download(tmp_path):
    assert reason_of(tmp_path) is LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.parametrize("content", ["", '{"task": "sent', "[" * 100_000])
def test_json_that_cannot_be_read_is_reported_with_its_file(tmp_path, content):
    write(tmp_path, config={}, configuration=content)
    with pytest.raises(LoadError, match=r"configuration\.json") as caught:
        read_recipe(tmp_path, SPEC)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/../../b"])
def test_a_module_outside_of_the_directory_is_refused(tmp_path, path):
    write(tmp_path, modules=[{"type": "sentence_transformers.models.Dense", "path": path}])
    assert reason_of(tmp_path) is LoadReason.CORRUPT_DOWNLOAD
