from __future__ import annotations

import re
from pathlib import Path

import pytest

from emb_model_provider import reference
from emb_model_provider.dotenv_file import parse_dotenv
from emb_model_provider.entry_table import ENTRY_KEYS, EntryKey
from emb_model_provider.key_file import KeyFile
from emb_model_provider.positioned_json import parse_json
from emb_model_provider.setting_table import SETTINGS
from emb_model_provider.settings import load_settings
from emb_model_provider.value_kinds import Boolean, Choice

ROOT = Path(__file__).parents[3]
PAGES = ("docs/configuration.md", "docs/zh/configuration.md")


def test_the_generated_files_in_the_repository_are_current() -> None:
    assert reference.stale_files(ROOT) == []


def test_the_example_file_as_it_stands_changes_nothing() -> None:
    file = parse_dotenv(reference.env_example(), ".env.example", {})
    assert load_settings({}, file) == load_settings({}, None)
    assert file.assignments == {}


def test_the_example_file_with_every_setting_uncommented_is_valid() -> None:
    # A sentence has one blank after the sign, a line inside the mapping two or more, an assignment none.
    text = re.sub(r"^#(?! \S)", "", reference.env_example(), flags=re.MULTILINE)
    file = parse_dotenv(text, ".env", {})
    assert set(file.assignments) == {row.name for row in SETTINGS}
    loaded = load_settings({}, file, read_keys=lambda _path: KeyFile(("from-file",)))
    assert [model.id for model in loaded.models] == ["chinese", "english", "mixed"]
    assert all(" is ignored, because " in warning for warning in loaded.warnings)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_describes_every_setting_and_every_entry_key_once(page: str) -> None:
    first_cells = re.findall(r"^\| `(\w+)` \|", reference.generated_files()[page], flags=re.MULTILINE)
    expected = [row.name for row in SETTINGS] + [key.name for key in ENTRY_KEYS]
    assert sorted(set(first_cells) & set(expected)) == sorted(expected)
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_each_setting_that_a_mapping_makes_meaningless(page: str) -> None:
    file = parse_dotenv(re.sub(r"^#(?! \S)", "", reference.env_example(), flags=re.MULTILINE), ".env", {})
    warnings = load_settings({}, file, read_keys=lambda _path: KeyFile(("from-file",))).warnings
    ignored = {warning.split()[0] for warning in warnings if "because EMB_PROVIDER_MODEL_MAPPING" in warning}
    (sentence,) = re.findall(
        r"Where a mapping is set, ([^.]*)\.|设置了模型映射后，([^。]*)。", reference.generated_files()[page]
    )
    assert ignored
    assert set(re.findall(r"EMB_PROVIDER_\w+", "".join(sentence))) == ignored


@pytest.mark.parametrize("page", PAGES)
def test_the_env_file_on_a_page_is_valid(page: str) -> None:
    (example,) = re.findall(r"```dotenv\n(.*?)```", reference.generated_files()[page], flags=re.DOTALL)
    loaded = load_settings({}, parse_dotenv(example, ".env", {}))
    assert loaded.warnings == ()
    assert loaded.models[0].name == "iic/nlp_gte_sentence-embedding_chinese-base"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "key", [key for key in ENTRY_KEYS if isinstance(key.kind, Boolean | Choice)], ids=lambda key: key.name
)
def test_an_entry_takes_each_word_that_its_row_allows(page: str, key: EntryKey[object]) -> None:
    row = re.search(rf"^\| `{key.name}` \| [^|]+ \| ([^|]+) \|", reference.generated_files()[page], flags=re.MULTILINE)
    assert row is not None
    for word in re.split(", |、", row[1]):
        key.kind.check(parse_json(word if isinstance(key.kind, Boolean) else f'"{word}"').value)


def test_every_row_of_every_table_has_as_many_cells_as_its_head() -> None:
    for page in PAGES:
        for block in re.findall(r"(?:^\|.*\n)+", reference.generated_files()[page], flags=re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_check_fails_on_a_stale_file_and_passes_after_write(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert reference.main(["--check"]) == 1
    assert ".env.example is missing." in capsys.readouterr().err
    assert reference.main(["--write"]) == 0
    assert reference.main(["--check"]) == 0
    page = tmp_path / "docs" / "zh" / "configuration.md"
    page.write_text(page.read_text(encoding="utf-8").replace("# 配置", "# 别的", 1), encoding="utf-8")
    assert reference.main(["--check"]) == 1
    assert capsys.readouterr().err == (
        "docs/zh/configuration.md:2 is out of date.\n  - # 别的\n  + # 配置\n"
        "Run: python -m emb_model_provider.reference --write\n"
    )
