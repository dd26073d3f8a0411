"""Which prompts a model has: the operator's, its own, those that its family is known for."""

import json

import pytest

from emb_model_provider.modelmap import ModelSpec
from shard.model_files.layouts import read_recipe
from shard.model_files.prompt_families import complete_prompts, find_prompt


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("BAAI/bge-large-zh-v1.5", "为这个句子生成表示以用于检索相关文章：", ""),
        ("AI-ModelScope/bge-small-zh", "为这个句子生成表示以用于检索相关文章：", ""),
        ("BAAI/bge-large-zh-noinstruct", "", ""),
        ("BAAI/bge-base-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("BAAI/bge-m3", "", ""),
        ("intfloat/e5-base-v2", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large", "query: ", "passage: "),
        (
            "intfloat/multilingual-e5-large-instruct",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ",
            "",
        ),
        (
            "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ",
            "",
        ),
        (
            "iic/gte_Qwen2-1.5B-instruct",  # its name on ModelScope
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ",
            "",
        ),
        (
            "Qwen/Qwen3-Embedding-0.6B",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
            "",
        ),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: ", ""),
        ("mixedbread-ai/mxbai-embed-large-v1", "Represent this sentence for searching relevant passages: ", ""),
        ("iic/nlp_gte_sentence-embedding_chinese-base", "", ""),
        ("thenlper/gte-large-zh", "", ""),
        ("sensenova/piccolo-large-zh", "查询: ", "结果: "),
        ("sensenova/piccolo-large-zh-v2", None, None),
        ("infgrad/stella-base-zh", "查询: ", "结果: "),
        ("infgrad/stella-large-zh", "查询: ", "结果: "),
        ("infgrad/stella-large-zh-v2", "", ""),
        ("dunzhang/stella-large-zh-v3-1792d", "", ""),
        ("Alibaba-NLP/gte-multilingual-base", "", ""),
        ("sentence-transformers/all-MiniLM-L6-v2", "", ""),
        ("/srv/models/bge-large-zh-v1.5/", "为这个句子生成表示以用于检索相关文章：", ""),
        ("/cache/models--intfloat--e5-base-v2/snapshots/0f1e2d", "query: ", "passage: "),
    ],
)
def test_a_family_is_known_by_the_name_of_its_repository(name, query, document):
    prompts = dict(complete_prompts({}, {}, (name,)))
    assert (prompts.get("query"), prompts.get("document")) == (query, document)


def test_a_model_that_nobody_knows_has_no_prompts():
    assert complete_prompts({}, {}, ("somebody/embedder-v7", "")) == ()


def test_a_model_knows_better_than_its_family_and_the_operator_better_than_both():
    own = {"query": "own query: ", "passage": "own passage: "}
    prompts = dict(complete_prompts({}, own, ("intfloat/e5-base",)))
    assert prompts == own
    prompts = dict(complete_prompts({"query": "mine: "}, own, ("intfloat/e5-base",)))
    assert prompts == {"query": "mine: ", "passage": "own passage: "}


def test_the_empty_prompts_that_every_saved_model_has_say_nothing():
    prompts = dict(complete_prompts({}, {"query": "", "document": ""}, ("intfloat/e5-base",)))
    assert prompts == {"query": "query: ", "document": "passage: "}


def test_either_side_of_a_search_is_found_by_the_name_that_the_model_gives_it():
    prompts = {"search_query": "q: ", "retrieval.passage": "p: "}
    assert find_prompt(prompts, "query") == "q: "
    assert find_prompt(prompts, "document") == "p: "
    assert find_prompt(prompts, "search_query") == "q: "
    assert find_prompt(prompts, "passage") is None


@pytest.mark.parametrize(
    "own",
    [{"query": "own query: ", "document": ""}, {"query": "", "document": "", "clustering": ""}],
    ids=["one of two is empty", "a third was thought of"],
)
def test_empty_prompts_beside_what_a_model_says_are_meant(own):
    assert dict(complete_prompts({}, own, ("intfloat/e5-base",))) == own


@pytest.mark.parametrize("layout", ["plain", "modelscope", "sentence-transformers"])
def test_every_layout_gets_the_prompts_of_its_family(tmp_path, layout):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if layout == "modelscope":
        (tmp_path / "configuration.json").write_text(json.dumps({"task": "sentence-embedding"}))
    if layout == "sentence-transformers":
        (tmp_path / "modules.json").write_text(json.dumps([{"type": "T", "path": ""}]))
    spec = ModelSpec(id="m", name="BAAI/bge-small-zh-v1.5", default_prompt_name="query")
    recipe = read_recipe(tmp_path, spec)
    assert dict(recipe.prompts)["query"].startswith("为这个句子")
    assert recipe.default_prompt_name == "query"


def test_a_directory_of_any_name_is_known_by_where_its_configuration_says_it_is_from(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "_name_or_path": "BAAI/bge-base-zh"}))
    recipe = read_recipe(tmp_path, ModelSpec(id="m", name=str(tmp_path)))
    assert dict(recipe.prompts)["query"].startswith("为这个句子")
