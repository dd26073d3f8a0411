"""What a reader copies from the documentation is read by the program as it stands."""

import re
from pathlib import Path

import pytest

from emb_model_provider.dotenv_file import parse_dotenv
from emb_model_provider.settings import load_settings
from router.metrics import catalogue

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_BLOCK = re.compile(r"^```(?:sh|ini|dotenv|)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def test_every_english_page_has_a_chinese_counterpart_but_the_design():
    english = {path.name for path in (ROOT / "docs").glob("*.md")} - {"design.md"}
    assert english == {path.name for path in (ROOT / "docs" / "zh").glob("*.md")}
    assert (ROOT / "README.zh-CN.md").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_somewhere(page):
    for target in _LINK.findall((ROOT / page).read_text("utf-8")):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_settings_is_accepted(page):
    for block in _BLOCK.findall((ROOT / page).read_text("utf-8")):
        if re.match(r"(#.*\n)*EMB_PROVIDER_", block) and "=…" not in block:
            settings = load_settings({}, parse_dotenv(block, ".env", {}))
            assert settings.models
            assert settings.warnings == ()


def test_the_mapping_examples_were_found():
    found = [page for page in PAGES if "EMB_PROVIDER_MODEL_MAPPING={\n" in (ROOT / page).read_text("utf-8")]
    assert {"README.md", "README.zh-CN.md", "docs/multi-model.md", "docs/zh/multi-model.md"} <= set(found)


@pytest.mark.parametrize("page", ["docs/operations.md", "docs/zh/operations.md"])
def test_every_metric_is_on_the_operations_page_and_no_other(page):
    metrics = {value.name for value in vars(catalogue).values() if isinstance(value, catalogue.Metric)}
    named = set(re.findall(r"^\| `(emb_\w+)` \|", (ROOT / page).read_text("utf-8"), re.MULTILINE))
    assert named == metrics
