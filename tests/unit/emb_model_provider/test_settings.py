from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_model_provider.dotenv_file import parse_dotenv
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.key_file import KeyFile
from emb_model_provider.model_settings import id_of
from emb_model_provider.modelmap import BatchLimits, ModelSpec, is_model_id
from emb_model_provider.setting_table import SETTINGS
from emb_model_provider.settings import Settings, load_settings

P = "EMB_PROVIDER_"


def load(dotenv: str = "", **env: str) -> Settings:
    return load_settings({P + name: value for name, value in env.items()}, parse_dotenv(dotenv, ".env", {}))


def problems(dotenv: str = "", **env: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load(dotenv, **env)
    return caught.value.problems


def only_model(dotenv: str = "", **env: str) -> ModelSpec:
    (model,) = load(dotenv, **env).models
    return model


def test_nothing_set_serves_the_embedded_model_on_loopback() -> None:
    loaded = load_settings({}, None)
    assert (loaded.server.host, loaded.server.port, loaded.server.api_keys) == ("127.0.0.1", 9000, ())
    assert (loaded.logs.level, loaded.logs.file, loaded.logs.format) == ("INFO", "logs/emb_model_provider.log", "plain")
    assert loaded.server.max_request_bytes == 64 * 1024 * 1024
    assert loaded.models == (
        ModelSpec(id="all-MiniLM-L6-v2", name="sentence-transformers/all-MiniLM-L6-v2", embedded=True),
    )
    assert loaded.warnings == ()


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.name)
def test_each_example_of_the_table_is_accepted_and_each_default_is_its_own_kind(row) -> None:
    loaded = load_settings({row.name: row.example}, None, read_keys=lambda _path: KeyFile(("k",)))
    assert loaded.server.port > 0
    if row.default not in (None, "", ()):
        text = str(row.default).lower() if isinstance(row.default, bool) else str(row.default)
        assert row.kind.parse(text) == row.default


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.name)
def test_a_wrong_value_of_any_setting_is_refused(row) -> None:
    with pytest.raises(ConfigurationError, match=row.name):
        # With a model and a certificate, beside which every other setting counts.
        load(**{"MODEL_NAME": "a/b", "TLS_CERT_FILE": "c.pem", row.name.removeprefix(P): "no\x01value"})


def test_the_environment_wins_over_the_file_even_when_it_is_empty() -> None:
    file = "EMB_PROVIDER_PORT=9001\nEMB_PROVIDER_HOST=::1\nEMB_PROVIDER_READY_WAIT_S=2.5\n"
    server = load(file, PORT=" 9002 ", HOST="  ").server
    assert (server.port, server.host, server.ready_wait_s) == (9002, "127.0.0.1", 2.5)


def test_an_empty_log_file_means_none_and_not_the_default() -> None:
    assert load("EMB_PROVIDER_LOG_FILE=\n").logs.file == ""
    assert load(LOG_FILE="  ").logs.file == ""


def test_a_home_directory_is_filled_in_where_a_path_is_meant() -> None:
    env = {"HOME": "/home/x", P + "MODELSCOPE_CACHE_DIR": "~/ms", P + "MODEL_NAME": "~/models/中文 bge..v1/"}
    loaded = load_settings(env, None)
    assert loaded.hubs.modelscope.cache_dir == "/home/x/ms"
    assert (loaded.models[0].name, loaded.models[0].id) == ("/home/x/models/中文 bge..v1/", "bge.v1")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "65536", "a whole number from 0 to 65535"),
        ("PORT", "٩٠٠٠", "a whole number from 0 to 65535"),
        ("PORT", "9000.0", "a whole number"),
        ("HOST", "127.0.0.1:9000", "without a port"),
        ("HOST", "999.1.1.1", "an address such as"),
        ("HOST", "*", "write 0.0.0.0"),
        ("DEVICE", "gpu", "auto, cpu, cuda or cuda:N"),
        ("MODEL_PRECISION", "float16", "one of auto, fp32, fp16, bf16, int8, int4"),
        ("ENABLE_QUANTIZATION", "maybe", "one of true, false"),
        ("MAX_WAIT_TIME_MS", "nan", "a number from 0 to 10000"),
        ("MAX_BATCH_SIZE", "0", "a whole number from 1 to 4096"),
        ("RECYCLE_AGE_S", "31536001", "a number from 0 to 31536000."),
        ("RESTART_DELAY_S", "0", "a number from 0.01 to 3600."),
        ("MODEL_SOURCE", "local", "auto; a model in a directory of this machine needs none of them."),
        ("LOG_LEVEL", "loud", "one of DEBUG, INFO"),
        ("MODELSCOPE_ENDPOINT", "www.modelscope.cn", "it has no scheme; write https://www.modelscope.cn"),
        ("HUGGINGFACE_ENDPOINT", "https：//hf-mirror.com", "： is a full-width character: a URL needs the ASCII one."),
        ("HUGGINGFACE_ENDPOINT", "https://hf-mirror。com", ": 。 is a full-width character"),
        ("HUGGINGFACE_ENDPOINT", "https://hf-mirror.com\u200b", "it holds the character U+200B, which cannot be seen"),
        ("HUGGINGFACE_ENDPOINT", "hf-mirror.com\u200b", "it holds the character U+200B, which cannot be seen"),
        ("MODELSCOPE_ENDPOINT", "https://hub.example.com，", ": ， is a full-width character"),
        ("HUGGINGFACE_ENDPOINT", "ftp://hub", "must be a URL"),
        ("HUGGINGFACE_ENDPOINT", "https://", "must be a URL"),
        ("HUGGINGFACE_ENDPOINT", "http://[::1", "must be a URL"),
        ("HUGGINGFACE_ENDPOINT", "http://hub:99999", "must be a URL"),
        ("MODEL_NAME", "a\x00b", "a control character"),
        ("MODEL_NAME", "a\udcffb", "not UTF-8"),
        ("MODEL_NAME", '"BAAI/bge-m3"', "the quotes would be part of it"),
        ("PORT", "'9000'", "leave them out"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_is_allowed(name: str, value: str, words: str) -> None:
    (problem,) = problems(**{name: value})
    assert problem.startswith(f"EMB_PROVIDER_{name}={value!r} (the environment) cannot be used: ")
    assert words in problem


def test_a_wrong_value_in_the_file_is_named_with_its_line_and_all_mistakes_come_together() -> None:
    found = problems("# c\n\nEMB_PROVIDER_PORT=x\nEMB_PROVIDER_OFFLINE=2\n", MODEL_SOURCE="github")
    assert sorted(problem.partition(" cannot")[0] for problem in found) == [
        "EMB_PROVIDER_MODEL_SOURCE='github' (the environment)",
        "EMB_PROVIDER_OFFLINE='2' (.env:4)",
        "EMB_PROVIDER_PORT='x' (.env:3)",
    ]


def test_secrets_never_stand_in_messages_or_representations() -> None:
    text = " ".join(
        problems(API_KEYS="hush hush", HUGGINGFACE_TOKEN="hush\x01", MODELSCOPE_ENDPOINT="http://me:hush@hub")
    )
    assert "***" in text
    assert "hush" not in text
    assert "hush" not in repr(load(API_KEYS="hush", HUGGINGFACE_TOKEN="hush", MODELSCOPE_TOKEN="hush"))


def test_keys_in_quotes_of_the_environment_are_refused_and_those_of_the_file_lose_them() -> None:
    for keys in ('"hush,b"', "'hush'", '""'):
        (problem,) = problems(API_KEYS=keys)
        assert "the quotes would be part of it" in problem
        assert "hush" not in problem
    (problem,) = problems(MODEL_MAPPING='\'{"a": {"name": "x/y"}}\'')
    assert problem.startswith("EMB_PROVIDER_MODEL_MAPPING (the environment) cannot be used: the quotes")
    assert load("EMB_PROVIDER_API_KEYS='a,b'\n").server.api_keys == ("a", "b")
    assert load(API_KEYS="\"a,b'").server.api_keys == ('"a', "b'")


def test_keys_written_as_a_list_of_another_language_are_refused() -> None:
    for keys in ('["hush","b"]', "['hush', 'b']", "[hush, b]", "['hush']", "b,'hush'", "[]"):
        for (problem,) in (problems(API_KEYS=keys), problems(f"EMB_PROVIDER_API_KEYS={keys}\n")):
            assert "write the keys as they are, separated by commas" in problem
            assert "hush" not in problem
    assert load(API_KEYS='[b,a]c,d"e",\'').server.api_keys == ("[b", "a]c", 'd"e"', "'")


def test_api_keys_are_split_at_commas_and_an_empty_list_does_not_open_the_server() -> None:
    assert load(API_KEYS=" a, b,,a ").server.api_keys == ("a", "b")
    assert "holds no key" in problems(API_KEYS=" , ")[0]


@pytest.mark.parametrize("word", ["TRUE", "1", "Yes", "on"])
def test_booleans_have_many_spellings(word: str) -> None:
    assert load(OFFLINE=word).hubs.offline
    assert (
        not load(ENABLE_DYNAMIC_BATCHING={"TRUE": "False", "1": "0", "Yes": "NO", "on": "off"}[word])
        .models[0]
        .batch.dynamic
    )


@pytest.mark.parametrize("token", ["“hf_abc”", "hf_abc，", "hf_abc\u00a0x", "你的令牌", "hf abc"])
@pytest.mark.parametrize("hub", ["HUGGINGFACE", "MODELSCOPE"])
def test_a_token_that_no_header_can_hold_is_named_and_not_shown(hub: str, token: str) -> None:
    (problem,) = problems(**{f"{hub}_TOKEN": token})
    assert problem == (
        f"EMB_PROVIDER_{hub}_TOKEN='***' (the environment) cannot be used: a token may hold only visible ASCII"
        " characters, for it travels in an HTTP header."
    )


def test_words_are_read_in_any_case_and_addresses_in_brackets() -> None:
    loaded = load(LOG_LEVEL="debug", MODEL_SOURCE="ModelScope", MODEL_NAME="a/b", DEVICE="CUDA:1", HOST="[::1]")
    assert (loaded.logs.level, loaded.server.host) == ("DEBUG", "::1")
    assert (loaded.models[0].source, loaded.models[0].device) == ("modelscope", "cuda:1")


def test_an_endpoint_keeps_its_path_and_loses_its_last_slash() -> None:
    assert load(HUGGINGFACE_ENDPOINT="http://10.0.0.5:8080/hf/").hubs.huggingface.endpoint == "http://10.0.0.5:8080/hf"


def test_unknown_names_are_warned_of_with_the_nearest_known_one() -> None:
    loaded = load("EMB_PROVIDER_MODEL_NAM=a/b\nEMB_PROVIDER_QWERTYUIOP=1\n", PORTS="1")
    assert sorted(loaded.warnings) == [
        (
            "EMB_PROVIDER_MODEL_NAM (.env:1) is no setting of this program and is ignored."
            " Did you mean EMB_PROVIDER_MODEL_NAME?"
        ),
        (
            "EMB_PROVIDER_PORTS (the environment) is no setting of this program and is ignored."
            " Did you mean EMB_PROVIDER_PORT?"
        ),
        "EMB_PROVIDER_QWERTYUIOP (.env:2) is no setting of this program and is ignored.",
    ]
    assert (
        load_settings({"emb_provider_port": "1", "PATH": "/bin"}, None).warnings[0].endswith("mean EMB_PROVIDER_PORT?")
    )


@pytest.mark.parametrize(
    "name",
    [
        "EMB_PROVIDOR_API_KEYS", "EMB_PROVDER_API_KEYS", "EMBPROVIDER_API_KEYS", "EMB_PROVIDERAPI_KEYS",
        "EMBED_PROVIDER_API_KEYS", "EMB-PROVIDER-API-KEYS", "emb.provider.api.keys",
    ],
)  # fmt: skip
def test_a_mistake_in_what_all_names_begin_with_is_warned_of_wherever_it_stands(name: str) -> None:
    words = " is no setting of this program and is ignored. Did you mean EMB_PROVIDER_API_KEYS?"
    assert load(f"{name}=hush\n").warnings == (f"{name} (.env:1){words}",)
    assert load_settings({name: "hush"}, None).warnings == (f"{name} (the environment){words}",)


@pytest.mark.parametrize(
    "name", ["LLM_PROVIDER_HOST", "EMBEDDING_PROVIDER_PORT", "PORT", "HOST", "EMB_PORT", "SSH_PORT"]
)
def test_names_of_other_programs_are_left_alone(name: str) -> None:
    assert load(f"{name}=x\n").warnings == ()
    assert load_settings({name: "x"}, None).warnings == ()


def test_names_that_do_nothing_in_the_file_are_warned_of_with_what_does() -> None:
    text = "HF_ENDPOINT=https://mirror.example\nhttps_proxy=http://127.0.0.1:7890\nPOSTGRES_PASSWORD=x\n"
    assert load(text).warnings == (
        (
            "HF_ENDPOINT (.env:1) is ignored, because only names with EMB_PROVIDER_ count in the file: write"
            " EMB_PROVIDER_HUGGINGFACE_ENDPOINT instead, or set it in the environment of the server."
        ),
        (
            "https_proxy (.env:2) is ignored, because only names with EMB_PROVIDER_ count in the file: set it in the"
            " environment of the server."
        ),
    )
    passed_on = parse_dotenv(f"{text}EMB_PROVIDER_HUGGINGFACE_ENDPOINT=${{HF_ENDPOINT}}\n", ".env", {})
    loaded = load_settings({"https_proxy": "http://127.0.0.1:7890"}, passed_on)
    assert (loaded.warnings, loaded.hubs.huggingface.endpoint) == ((), "https://mirror.example")


def test_a_single_model_carries_the_single_model_settings() -> None:
    model = only_model(
        MODEL_NAME="BAAI/bge-m3",
        MODEL_REVISION="v1",
        POOLING="cls",
        NORMALIZE="true",
        MAX_LENGTH="512",
        OVERLONG="error",
        MAX_BATCH_SIZE="8",
        MIN_BATCH_SIZE="2",
        MAX_WAIT_TIME_MS="5",
    )
    assert model == ModelSpec(
        id="BAAI/bge-m3",
        name="BAAI/bge-m3",
        revision="v1",
        pooling="cls",
        normalize=True,
        max_length=512,
        overlong="error",
        batch=BatchLimits(8, 2, 5.0),
    )


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("iic/nlp_gte", "iic/nlp_gte"),
        ("/models/bge-m3", "bge-m3"),
        ("./bge m3/", "bge-m3"),
        ("/data/中文模型", "model"),
        ("models/hub/bge", "bge"),
        ("..", "model"),
        ("/x/" + "a" * 300, "a" * 128),
    ],
)
def test_a_directory_is_called_by_its_last_part_and_a_hub_name_by_itself(name: str, model_id: str) -> None:
    assert only_model(MODEL_NAME=name).id == model_id


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("aZ0._-/ ~中\\"), min_size=1, max_size=150))
def test_every_name_gets_a_usable_id(name: str) -> None:
    assert is_model_id(id_of(name))


def test_the_mapping_wins_over_the_single_model_and_says_so() -> None:
    loaded = load('EMB_PROVIDER_MODEL_MAPPING={"a": {"name": "x/y"}}\n', MODEL_NAME="b/c", POOLING="cls")
    assert [(model.id, model.pooling) for model in loaded.models] == [("a", None)]
    name, pooling = loaded.warnings
    assert name.startswith(
        "EMB_PROVIDER_MODEL_NAME (the environment) is ignored, because EMB_PROVIDER_MODEL_MAPPING (.env:1)"
    )
    assert pooling.startswith("EMB_PROVIDER_POOLING (the environment) is ignored")


def test_settings_for_a_model_that_is_not_named_are_warned_of() -> None:
    loaded = load(MODEL_SOURCE="modelscope", MODEL_PRECISION="fp32")
    assert (loaded.models[0].source, loaded.models[0].precision) == ("auto", "fp32")
    assert loaded.warnings == (
        (
            "EMB_PROVIDER_MODEL_SOURCE (the environment) is ignored, because no model is named and the embedded"
            " all-MiniLM-L6-v2 is served."
        ),
    )


@pytest.mark.parametrize("text", ["foo", "[1]", '"foo"', "3"])
def test_a_mapping_that_is_no_object_is_refused_wherever_it_stands(text: str) -> None:
    assert "EMB_PROVIDER_MODEL_MAPPING (.env:2" in problems(f"\nEMB_PROVIDER_MODEL_MAPPING={text}\n")[0]
    assert "EMB_PROVIDER_MODEL_MAPPING (the environment" in problems(MODEL_MAPPING=text)[0]


def test_an_empty_mapping_variable_means_no_mapping() -> None:
    assert only_model("EMB_PROVIDER_MODEL_MAPPING=\nEMB_PROVIDER_MODEL_NAME=a/b\n").id == "a/b"
    assert only_model('EMB_PROVIDER_MODEL_MAPPING=""\n').embedded


def test_true_quantization_makes_auto_mean_int8_and_leaves_a_named_precision_alone() -> None:
    assert only_model(ENABLE_QUANTIZATION="true").precision == "int8"
    assert only_model(ENABLE_QUANTIZATION="true", MODEL_PRECISION="int4").precision == "int4"
    assert only_model(ENABLE_QUANTIZATION="false").precision == "auto"
    assert only_model(MODEL_PRECISION="int8").precision == "int8"
    kept = load(ENABLE_QUANTIZATION="true", MODEL_PRECISION="fp16")
    assert kept.models[0].precision == "fp16"
    assert "changes nothing for models of precision fp16" in kept.warnings[0]


def test_false_quantization_beside_a_global_int8_names_both_lines_and_what_to_write() -> None:
    (problem,) = problems("A=1\nEMB_PROVIDER_ENABLE_QUANTIZATION=false\n", MODEL_PRECISION="int8")
    assert problem == (
        "EMB_PROVIDER_ENABLE_QUANTIZATION=false (.env:2) contradicts EMB_PROVIDER_MODEL_PRECISION=int8"
        " (the environment). Change .env:2 to EMB_PROVIDER_ENABLE_QUANTIZATION=true, or the environment to"
        " EMB_PROVIDER_MODEL_PRECISION=auto."
    )


def test_a_minimal_batch_above_the_maximal_one_names_both() -> None:
    assert problems("EMB_PROVIDER_MIN_BATCH_SIZE=513\n") == (
        "EMB_PROVIDER_MIN_BATCH_SIZE=513 (.env:1) must not exceed EMB_PROVIDER_MAX_BATCH_SIZE=512 (the default).",
    )


def test_a_first_delay_above_the_longest_one_names_both() -> None:
    (problem,) = problems("EMB_PROVIDER_RESTART_DELAY_S=2.5\n", RESTART_MAX_DELAY_S="1")
    assert problem == (
        "EMB_PROVIDER_RESTART_DELAY_S=2.5 (.env:1) must not exceed EMB_PROVIDER_RESTART_MAX_DELAY_S=1"
        " (the environment)."
    )
    assert load("EMB_PROVIDER_RESTART_DELAY_S=30\n").supervision.restart_delay_s == 30.0


def test_a_setting_that_another_one_makes_meaningless_is_warned_of() -> None:
    assert load(UNIX_SOCKET_MODE="0666").warnings == (
        "EMB_PROVIDER_UNIX_SOCKET_MODE (the environment) is ignored, because EMB_PROVIDER_UNIX_SOCKET is not set.",
    )
    assert load(UNIX_SOCKET_MODE="0666", UNIX_SOCKET="/run/api.sock").warnings == ()
    mapping = '{"a": {"name": "o/a"}, "b": {"name": "o/b", "enable_dynamic_batching": true}}'
    (warning,) = load(MODEL_MAPPING=mapping, MIN_BATCH_SIZE="8", ENABLE_DYNAMIC_BATCHING="off").warnings
    assert warning.startswith("The minimal batch size of 'a', 8, is ignored, because its dynamic batching is off")
    assert load(ENABLE_DYNAMIC_BATCHING="off").warnings == load(MIN_BATCH_SIZE="8").warnings == ()
