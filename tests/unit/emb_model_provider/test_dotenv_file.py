from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emb_model_provider.dotenv_file import MAPPING_NAME, parse_dotenv, read_dotenv
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.settings import load_settings

GUIDE = """\
# The guide's own form
EMB_PROVIDER_MODEL_SOURCE=modelscope   # a comment
EMB_PROVIDER_MODEL_MAPPING={
  "chinese": {
    "name": "iic/nlp_gte_sentence-embedding_chinese-base",
    "precision": "fp16"
  },
  "english": { "name": "BAAI/bge-small-en # no comment", "source": "huggingface" }
}  # the end
EMB_PROVIDER_PORT="9001"

EMB_PROVIDER_LOG_LEVEL='debug'
"""


def values(text: str, **environ: str) -> dict[str, str]:
    return {name: one.value for name, one in parse_dotenv(text, ".env", environ).assignments.items()}


def mapping_of(text: str) -> object:
    return json.loads(values(text)[MAPPING_NAME])


def test_unquoted_json_over_many_lines_is_read_and_so_is_the_rest_of_the_file() -> None:
    file = parse_dotenv(GUIDE, ".env", {})
    assert file.warnings == ()
    assert {name: one.line for name, one in file.assignments.items()} == {
        "EMB_PROVIDER_MODEL_SOURCE": 2,
        MAPPING_NAME: 3,
        "EMB_PROVIDER_PORT": 10,
        "EMB_PROVIDER_LOG_LEVEL": 12,
    }
    loaded = load_settings({}, file)
    assert loaded.server.port == 9001
    assert loaded.logs.level == "DEBUG"
    assert [(model.id, model.name, model.source, model.precision) for model in loaded.models] == [
        ("chinese", "iic/nlp_gte_sentence-embedding_chinese-base", "modelscope", "fp16"),
        ("english", "BAAI/bge-small-en # no comment", "huggingface", "auto"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        'EMB_PROVIDER_MODEL_MAPPING={"a": {"name": "b c"}}\nX=1',
        'export EMB_PROVIDER_MODEL_MAPPING = {"a":\n\n{"name": "b c"}\n}#end\nX=1',
        '\ufeff  EMB_PROVIDER_MODEL_MAPPING=\'{\n"a": {"name": "b c"}\n}\' # end\nX=1',
        '\'EMB_PROVIDER_MODEL_MAPPING\'={\r\n  "a":\r\n{"name": "b c"}\r\n}\r\nX=1\r\n',
        'EMB_PROVIDER_MODEL_MAPPING="{\n\\"a\\": {\\"name\\": \\"b c\\"}\n}"\nX=1',
        'EMB_PROVIDER_MODEL_MAPPING="{\n"a": {"name": "b c"}\n}"\nX=1',
        'EMB_PROVIDER_MODEL_MAPPING=\n{\n"a": {"name": "b c"}\n}\nX=1',
    ],
    ids=["one line", "export", "single quotes and BOM", "CRLF", "escaped double quotes", "bare double quotes", "below"],
)
def test_every_way_to_write_the_mapping_gives_the_same(text: str) -> None:
    assert mapping_of(text) == {"a": {"name": "b c"}}
    assert values(text)["X"] == "1"
    assert parse_dotenv(text, ".env", {}).warnings == ()


def test_a_mapping_inside_a_comment_or_another_value_is_not_the_mapping() -> None:
    text = '# EMB_PROVIDER_MODEL_MAPPING={\nOTHER="\nEMB_PROVIDER_MODEL_MAPPING={\n"\nX=1\n'
    assert values(text) == {"OTHER": "\nEMB_PROVIDER_MODEL_MAPPING={\n", "X": "1"}


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ('A=1\nEMB_PROVIDER_MODEL_MAPPING={\n  "a": {"name": "x",}\n}\nEMB_PROVIDER_PORT=x\n', ":3:20", "one too many"),
        ('EMB_PROVIDER_MODEL_MAPPING={\n  "a": {"name": "x"}\nEMB_PROVIDER_PORT=x\n', ":3:1", "ends too early"),
        ('EMB_PROVIDER_MODEL_MAPPING={"a": {"name": "x"}} }\nEMB_PROVIDER_PORT=x\n', ":1:49", "follows after"),
        ("EMB_PROVIDER_MODEL_MAPPING='{\n  \"a\": 1 2}'\nEMB_PROVIDER_PORT=x\n", ":2:10", "comma"),
        ('EMB_PROVIDER_MODEL_MAPPING="{\n \\"a\\": \\"\\" 2}"\nEMB_PROVIDER_PORT=x\n', ":2:14", "comma"),
        ('EMB_PROVIDER_MODEL_MAPPING={\n  # note\n "a": {}}\nEMB_PROVIDER_PORT=x\n', ":2:3", "no comments"),
        ('EMB_PROVIDER_MODEL_MAPPING={\n "a": {}, "a": {}}\nEMB_PROVIDER_PORT=x\n', ":2:11", "a second time"),
        ('EMB_PROVIDER_MODEL_MAPPING=｛"a": 1｝\nEMB_PROVIDER_PORT=x\n', ":1:28", "full-width"),
        ("EMB_PROVIDER_MODEL_MAPPING={“a”: 1}\nEMB_PROVIDER_PORT=x\n", ":1:29", "plain double quotes"),
        ('EMB_PROVIDER_MODEL_MAPPING={"a": NaN}\nEMB_PROVIDER_PORT=x\n', ":1:34", "a value is missing"),
        ('EMB_PROVIDER_MODEL_MAPPING={"a": "\\ud800"}\nEMB_PROVIDER_PORT=x\n', ":1:34", "surrogate"),
        ("EMB_PROVIDER_MODEL_MAPPING=" + '{"a":' * 99 + "\nEMB_PROVIDER_PORT=x\n", ":1:113", "deep"),
        ("EMB_PROVIDER_MODEL_MAPPING='{\nEMB_PROVIDER_PORT=x\n", ":1:28", "not in '"),
    ],
)
def test_a_json_mistake_is_shown_with_its_place_and_the_next_setting_is_still_read(
    text: str, place: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, parse_dotenv(text, "my.env", {}))
    mapping, port = sorted(caught.value.problems)
    assert f"EMB_PROVIDER_MODEL_MAPPING (my.env{place}) is not valid JSON" in mapping
    assert reason in mapping
    assert port.startswith("EMB_PROVIDER_PORT='x' (my.env:")


def test_the_excerpt_shows_the_line_of_the_mistake() -> None:
    text = 'EMB_PROVIDER_MODEL_MAPPING={\n  "中文": {"name": "x" "device": "cpu"}\n}\n'
    with pytest.raises(ConfigurationError, match=r'Near: "中文": \{"name": "x" "device": "cpu"\}'):
        load_settings({}, parse_dotenv(text, ".env", {}))


def test_a_line_that_is_no_assignment_is_a_warning_with_its_number_and_dotenv_stays_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        file = parse_dotenv("A=1\n\n\nB='open\nno equals sign here\nC=3\nlonely\n", ".env", {})
    assert [warning.partition(" ")[0] for warning in file.warnings] == [".env:4", ".env:5", ".env:7"]
    assert {name: one.value for name, one in file.assignments.items()} == {"A": "1", "C": "3"}
    assert caplog.records == []


@pytest.mark.parametrize(
    "line",
    [
        'EMB_PROVIDER_API_KEYS="hush', "EMB_PROVIDER_API_KEYS='hush", "EMB_PROVIDER_API_KEYS: hush",
        "EMB_PROVIDER_API_KEYS:hush", "EMB_PROVIDER_API_KEYS hush", "EMB_PROVIDER_API_KEYS＝hush",
        "set EMB_PROVIDER_API_KEYS=hush", '"EMB_PROVIDER_API_KEYS"=hush', "- EMB_PROVIDER_API_KEYS=hush",
        "\ufeffEMB_PROVIDER_API_KEYS=hush", "\u200bEMB_PROVIDER_API_KEYS=hush",
    ],
)  # fmt: skip
def test_a_line_that_fails_to_set_something_is_refused_and_no_server_opened_for_want_of_its_keys(line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, parse_dotenv(f"A=1\n\n{line}\nEMB_PROVIDER_PORT=x\n", ".env", {}))
    broken, port = sorted(caught.value.problems)
    assert broken.startswith(".env:3 ")
    assert "hush" not in broken
    assert port.startswith("EMB_PROVIDER_PORT='x' (.env:4)")


def test_a_name_alone_passes_the_environments_value_on_as_for_docker() -> None:
    file = parse_dotenv("EMB_PROVIDER_PORT\n", ".env", {})
    assert load_settings({"EMB_PROVIDER_PORT": "9001"}, file).server.port == 9001


def test_a_setting_given_twice_is_a_warning_and_the_last_one_counts() -> None:
    file = parse_dotenv("EMB_PROVIDER_PORT=1\nEMB_PROVIDER_PORT=2\nX=1\nX=2\n", ".env", {})
    assert file.assignments["EMB_PROVIDER_PORT"].value == "2"
    assert file.warnings == (".env:2 sets EMB_PROVIDER_PORT a second time; line 1 does not count.",)


def test_variables_in_values_are_replaced_from_the_file_first_and_then_the_environment() -> None:
    found = values("A=file\nB=${A}/${HOME}/${NONE:-default}/${NONE}", A="environment", HOME="/root")
    assert found["B"] == "file//root/default/"


def test_files_that_cannot_be_settings_are_refused_with_the_reason(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_dotenv(None) is None
    (tmp_path / ".env").mkdir()
    (tmp_path / ".env" / "pyvenv.cfg").touch()
    assert read_dotenv(None) is None
    with pytest.raises(ConfigurationError, match=r"other\.env cannot be read: No such file"):
        read_dotenv(tmp_path / "other.env")
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        read_dotenv(tmp_path)
    (tmp_path / "utf16").write_text("A=1", encoding="utf-16")
    with pytest.raises(ConfigurationError, match="utf16:1 is not UTF-8 text"):
        read_dotenv(tmp_path / "utf16")
    (tmp_path / "markless").write_bytes("A=1\nEMB_PROVIDER_PORT=x\n".encode("utf-16-le"))
    with pytest.raises(ConfigurationError, match="markless:1 is not UTF-8 text"):
        read_dotenv(tmp_path / "markless")
    (tmp_path / "big").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigurationError, match="larger than"):
        read_dotenv(tmp_path / "big")


def test_an_empty_directory_in_place_of_the_file_is_what_docker_makes_and_no_virtual_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (directory := tmp_path / ".env").mkdir()
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read: Is a directory\. Docker .* write the file"):
        read_dotenv(None)
    (directory / "pyvenv.cfg").touch()
    assert read_dotenv(None) is None
    (directory / "pyvenv.cfg").unlink()
    monkeypatch.setattr(Path, "iterdir", _refuse_to_list)
    assert read_dotenv(None) is None


def test_a_variable_that_is_set_nowhere_is_warned_of_in_a_setting_and_only_there():
    text = "B=${NONE}\nA=here\nEMB_PROVIDER_API_KEYS=${NONE}\nEMB_PROVIDER_HOST=${A}${HOME}${NONE:-}"
    (warning,) = parse_dotenv(text, ".env", {"HOME": ""}).warnings
    assert warning.startswith(".env:3: ${NONE} in EMB_PROVIDER_API_KEYS is set nowhere and counts as empty; ")
    assert warning.endswith("write ${NONE:-}.")


def test_a_link_to_a_file_that_is_gone_is_no_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (link := tmp_path / ".env").symlink_to("secrets/my.env")
    with pytest.raises(
        ConfigurationError, match=r"\.env cannot be read: No such .*\. It is a link to secrets/my\.env\."
    ):
        read_dotenv(None)
    link.unlink()
    assert read_dotenv(None) is None


def _refuse_to_list(_path: Path) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_directory_that_holds_something_is_never_said_to_be_removed(tmp_path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(ConfigurationError, match=rf"{tmp_path} cannot be read: Is a directory\.\Z"):
        read_dotenv(tmp_path, {})


def test_a_current_directory_that_may_not_be_looked_into_is_a_sentence(monkeypatch) -> None:
    def refuse(_path, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ConfigurationError, match="name the file with --env-file"):
        read_dotenv(None)


def test_the_env_file_of_the_current_directory_is_named_as_people_name_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("\ufeffEMB_PROVIDER_PORT=x\r\n".encode())
    with pytest.raises(ConfigurationError, match=r"EMB_PROVIDER_PORT='x' \(\.env:1\)"):
        load_settings({}, read_dotenv(None))


ALIASES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,10}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MAPPINGS = st.dictionaries(
    ALIASES,
    st.fixed_dictionaries({"name": TEXTS}, optional={"threads": st.integers(), "prompts": st.just({})}),
    min_size=1,
)
OTHER_LINES = st.lists(
    st.sampled_from(["", "# {", "A=1", "B='x\ny'", 'C="{"', "D=} # c", "export E=${A}", "F=", "  G = [1]"]), max_size=4
)


@settings(max_examples=100, deadline=None)
@given(MAPPINGS, OTHER_LINES, OTHER_LINES, st.sampled_from([None, 0, 1, 2, 7, "\t"]), st.sampled_from(["\n", "\r\n"]))
def test_any_mapping_amid_any_other_lines_is_read_back_as_written(
    mapping: dict[str, object], before: list[str], after: list[str], indent: int | str | None, newline: str
) -> None:
    written = json.dumps(mapping, indent=indent, ensure_ascii=len(before) % 2 == 0)
    text = "\n".join([*before, f"{MAPPING_NAME}={written}", *after])
    file = parse_dotenv(text.replace("\n", newline), ".env", {})
    assert json.loads(file.assignments[MAPPING_NAME].value) == mapping
    alone = values("\n".join([*before, *after]))
    assert {name: one.value for name, one in file.assignments.items() if name != MAPPING_NAME} == alone
    assert file.warnings == ()


FRAGMENTS = st.sampled_from(
    [
        MAPPING_NAME,
        "=",
        "{",
        "}",
        "'",
        '"',
        "\\",
        "\n",
        "\r",
        "\ufeff",
        "export ",
        "#",
        ",",
        ":",
        "[",
        '"a"',
        "1e999",
        "${",
    ]
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(FRAGMENTS, FRAGMENTS, TEXTS), max_size=30).map("".join), st.booleans())
def test_no_text_at_all_breaks_the_reader(text: str, begins: bool) -> None:
    outcome: tuple[object, ...]
    try:
        outcome = load_settings({}, parse_dotenv(f"{MAPPING_NAME}=" * begins + text, ".env", {})).models
    except ConfigurationError as error:
        outcome = error.problems
    assert outcome
