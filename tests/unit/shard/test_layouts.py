"""Which layout a directory has and what its files say, from JSON alone."""

import json

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.layouts import read_recipe
from shard.recipe import ModuleEntry

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
