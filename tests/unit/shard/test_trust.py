"""What asks for code, and in which words it is refused."""

import json

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from shard.model_files.trust import code_requests, named_elsewhere, own_module_name, refuse_code


def write(directory, name, content):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "wish"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling.Model"}}, "auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tok.T", None]}}, "auto_map"),
        ("0_Transformer/config.json", {"auto_map": {"AutoModel": "other--modeling.Model"}}, "auto_map"),
        ("configuration.json", {"plugins": ["some-package"]}, "plugins"),
        ("modules.json", [{"type": "custom_st.Transformer", "path": ""}], "custom_st.Transformer"),
        ("modules.json", [{"path": ""}], "module type None"),
        ("2_Dense/config.json", {"in_features": 4, "activation_function": "os.system"}, "os.system"),
        ("2_Dense/config.json", {"in_features": 4, "activation_function": "torch.load"}, "torch.load"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "someone/kernel"),
        ("sentence_bert_config.json", {"model_args": {"attn_implementation": "someone/kernel"}}, "someone/kernel"),
        ("config.json", {"attn_implementation": None, "_attn_implementation": "someone/kernel"}, "someone/kernel"),
        ("config.json", {"_attn_implementation": {"": "someone/kernel"}}, "someone/kernel"),
        ("config.json", {"a": {"b": {"attn_implementation": "someone/kernel"}}}, "someone/kernel"),
        ("config.json", {"custom_pipelines": {"p": {"impl": "pipe.P"}}}, "custom_pipelines"),
    ],
)
def test_a_directory_that_names_code_of_its_own_is_refused(tmp_path, name, content, wish):
    write(tmp_path, name, content)
    with pytest.raises(LoadError, match="trust_remote_code") as caught:
        refuse_code(tmp_path, "local", "some/model")
    assert caught.value.reason is LoadReason.CODE_NOT_TRUSTED
    assert name in str(caught.value)
    assert wish in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"attn_implementation": "someone/kernel"}),
        ("modules.json", [{"type": "custom_st.Transformer", "path": ""}]),
        ("2_Dense/config.json", {"in_features": 4, "activation_function": "os.system"}),
    ],
)
def test_no_size_hides_what_names_code(tmp_path, name, content):
    write(tmp_path, name, content)
    with (tmp_path / name).open("ab") as file:
        file.write(b" " * 5 * 1024 * 1024)
    with pytest.raises(LoadError, match="trust_remote_code"):
        refuse_code(tmp_path, "local", "some/model")


def test_python_beside_allow_remote_is_refused(tmp_path):
    write(tmp_path, "configuration.json", {"allow_remote": True})
    (tmp_path / "ms_wrapper.py").write_text("", encoding="utf-8")
    with pytest.raises(LoadError, match=r"ms_wrapper\.py"):
        refuse_code(tmp_path, "modelscope", "some/model")


def test_allow_remote_without_any_python_needs_no_trust(tmp_path):
    write(tmp_path, "configuration.json", {"allow_remote": True, "task": "sentence-embedding"})
    assert list(code_requests(tmp_path)) == []


def test_a_training_script_that_nothing_names_is_not_run_and_not_refused(tmp_path):
    write(tmp_path, "config.json", {"model_type": "bert"})
    write(tmp_path, "configuration.json", {"allow_remote": False})
    (tmp_path / "train_script.py").write_text("raise SystemExit", encoding="utf-8")
    assert list(code_requests(tmp_path)) == []
    refuse_code(tmp_path, "local", "some/model")


def test_modules_that_are_known_here_or_part_of_the_library_ask_for_nothing(tmp_path):
    kinds = ["pylate.models.Dense.Dense", "sentence_transformers.models.Pooling", "sentence_transformers.models.Router"]
    write(tmp_path, "modules.json", [{"type": kind, "path": ""} for kind in kinds])
    assert list(code_requests(tmp_path)) == []


@pytest.mark.parametrize(
    ("origin", "setting"),
    [
        ("huggingface", "EMB_PROVIDER_HUGGINGFACE_TRUST_REMOTE_CODE"),
        ("modelscope", "EMB_PROVIDER_MODELSCOPE_TRUST_REMOTE_CODE"),
    ],
)
def test_the_refusal_names_the_setting_of_the_hub_it_came_from(tmp_path, origin, setting):
    write(tmp_path, "config.json", {"auto_map": {"AutoModel": "m.M"}})
    with pytest.raises(LoadError, match=setting):
        refuse_code(tmp_path, origin, "some/model")


@pytest.mark.parametrize(
    "path",
    [
        "sentence_transformers.models.Pooling",
        "sentence_transformers.sentence_transformer.modules.Pooling",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    ],
)
def test_a_module_is_known_by_its_old_and_new_names(path):
    assert own_module_name(path) == "Pooling"


@pytest.mark.parametrize(
    "path", ["Pooling", "evil.Pooling", "sentence_transformers.models.CLIPModel", "x.models.Dense"]
)
def test_other_modules_are_not_ours(path):
    assert own_module_name(path) is None


def test_ordinary_activations_and_files_ask_for_nothing(tmp_path):
    write(
        tmp_path, "2_Dense/config.json", {"in_features": 4, "activation_function": "torch.nn.modules.activation.GELU"}
    )
    write(
        tmp_path, "3_Dense/config.json", {"in_features": 4, "activation_function": "torch.nn.modules.linear.Identity"}
    )
    write(tmp_path, "config.json", {"model_type": "bert", "attn_implementation": "sdpa", "_attn_implementation": None})
    write(tmp_path, "2_Dense/modules.json", {"type": "a table is no list of modules"})
    write(tmp_path, "added_tokens.json", [{"content": "<a/b>"}, "x"])
    (tmp_path / "vocab.json").write_text("[" * 100_000, encoding="utf-8")
    assert list(code_requests(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.json", {"AutoConfig": "own.Own", "AutoModel": "o/code--sub/model.M"}, {"o/code": ("sub/model.py",)}),
        ("0_Transformer/tokenizer_config.json", {"AutoTokenizer": [None, "o/code--tok.Fast"]}, {"o/code": ("tok.py",)}),
        ("tokenizer_config.json", ["o/code--slow.Slow", "o/code--fast.F"], {"o/code": ("fast.py", "slow.py")}),
        ("config.json", {"AutoConfig": "a/b--c.C", "AutoModel": "a/b--m.M", "x": "c/d--m.M"}, None),
        ("other.json", ["a", "b"], {}),
        ("other.json", "a--b", {"a": ("b.py",)}),
        ("other.json", 7, {}),
        ("other.json", {"AutoModel": "--m.M", "AutoConfig": "o/code--"}, {}),
    ],
)
def test_code_of_other_repositories_is_found_in_every_file_that_may_name_it(tmp_path, name, content, named):
    write(tmp_path, name, {"auto_map": content})
    expected = {"a/b": ("c.py", "m.py"), "c/d": ("m.py",)} if named is None else named
    assert named_elsewhere(tmp_path) == expected


def test_modules_of_sentence_transformers_may_be_in_other_repositories_as_well(tmp_path):
    kinds = ["o/code--custom_st.Transformer", "sentence_transformers.models.Pooling", None]
    write(tmp_path, "modules.json", [*({"type": kind, "path": ""} for kind in kinds), "x"])
    assert named_elsewhere(tmp_path) == {"o/code": ("custom_st.py",)}


@pytest.mark.parametrize(
    ("has_own", "whose"),
    [(False, "code of the repository c/d and of the repository o/x:"), (True, "code of its own and of the repository")],
)
def test_the_refusal_names_the_repositories_whose_code_is_to_be_read(tmp_path, has_own, whose):
    write(tmp_path, "config.json", {"auto_map": {"AutoModel": "o/x--m.M"}})
    write(tmp_path, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["c/d--t.T", None]}})
    if has_own:
        (tmp_path / "own.py").write_text("", encoding="utf-8")
    with pytest.raises(LoadError, match="and pin its revision and its code_revision") as caught:
        refuse_code(tmp_path, "local", "some/model")
    assert whose in str(caught.value)
