"""Each client is installed from its registry and used as its own documentation shows; only the address is ours.

The numbers are those that the sentence-transformers documentation prints for its three example sentences.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.clients

SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
SIMILARITIES = [0.6660, 0.1046, 0.1411]
FOLDER = Path(__file__).resolve().parent


def similarities(vectors):
    first, second, third = (np.asarray(one) / np.linalg.norm(one) for one in vectors)
    return [first @ second, first @ third, second @ third]


def is_minilm(vectors, *, within=2e-3):
    assert np.asarray(vectors).shape == (3, 384)
    np.testing.assert_allclose(similarities(vectors), SIMILARITIES, atol=within)


# ------------------------------------------------------------------------------------------------------- OpenAI


@pytest.fixture(scope="module")
def openai_client(server, key):
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) as client:
        yield client


def test_openai_embeds_with_its_default_base64_and_with_floats(openai_client):
    for options in ({}, {"encoding_format": "float"}):
        answer = openai_client.embeddings.create(model="minilm", input=SENTENCES, **options)
        is_minilm([item.embedding for item in answer.data])
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
        assert answer.model == "minilm"


def test_openai_lists_models_and_hears_of_unknown_ones_and_of_wrong_keys(openai_client, server):
    import openai

    assert {model.id for model in openai_client.models.list()} >= {"minilm", "reranker"}
    assert openai_client.models.retrieve("minilm").id == "minilm"
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.embeddings.create(model="no-such-model", input="a")
    assert missing.value.code == "model_not_found"
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_openai_sends_extras_of_ours_in_its_extra_body(openai_client):
    answer = openai_client.embeddings.create(
        model="minilm",
        input=["", "fine"],
        encoding_format="float",
        extra_body={"on_error": "null", "normalize": True},
    )
    assert answer.data[0].embedding is None
    assert len(answer.data[1].embedding) == 384


def test_openai_for_node_embeds_and_lists_models(server, key, tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("Node.js with npm is not installed on this machine")
    shutil.copy(FOLDER / "package.json", tmp_path)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=tmp_path, check=True, timeout=180)
    script = tmp_path / "embed.mjs"
    script.write_text(
        """
        import OpenAI from "openai";
        const client = new OpenAI({ baseURL: process.env.BASE, apiKey: process.env.KEY });
        const answer = await client.embeddings.create({ model: "minilm", input: JSON.parse(process.env.INPUT) });
        const models = [];
        for await (const model of client.models.list()) models.push(model.id);
        console.log(JSON.stringify({ vectors: answer.data.map((one) => Array.from(one.embedding)), models }));
        """,
        encoding="utf-8",
    )
    env = os.environ | {"BASE": f"{server.url}/v1", "KEY": key, "INPUT": json.dumps(SENTENCES)}
    done = subprocess.run(["node", str(script)], cwd=tmp_path, env=env, capture_output=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    is_minilm(answer["vectors"])
    assert "minilm" in answer["models"]


def test_curl_embeds(server, key):
    body = json.dumps({"model": "minilm", "input": SENTENCES})
    done = subprocess.run(
        ["curl", "-sS", "--fail", f"{server.url}/v1/embeddings", "-H", f"Authorization: Bearer {key}",
         "-H", "Content-Type: application/json", "-d", body],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    is_minilm([item["embedding"] for item in json.loads(done.stdout)["data"]])


# ------------------------------------------------------------------------------------------------------- Cohere


def test_cohere_v2_embeds_in_every_type_and_reranks(server, key):
    import cohere

    client = cohere.ClientV2(api_key=key, base_url=server.url)
    answer = client.embed(
        model="minilm",
        texts=SENTENCES,
        input_type="search_document",
        embedding_types=["float", "int8", "uint8", "binary", "ubinary"],
    )
    is_minilm(answer.embeddings.float_)
    is_minilm(answer.embeddings.int8, within=0.03)
    assert [len(row) for row in answer.embeddings.binary] == [48] * 3
    assert [len(row) for row in answer.embeddings.ubinary] == [48] * 3
    ranked = client.rerank(model="reranker", query="weather", documents=SENTENCES, top_n=2)
    assert len(ranked.results) == 2
    assert ranked.results[0].relevance_score >= ranked.results[1].relevance_score


def test_cohere_v1_embeds_and_reranks(server, key):
    import cohere

    client = cohere.Client(api_key=key, base_url=server.url)
    is_minilm(client.embed(model="minilm", texts=SENTENCES, input_type="search_query").embeddings)
    ranked = client.rerank(model="reranker", query="weather", documents=SENTENCES, return_documents=True)
    assert {one.index for one in ranked.results} == {0, 1, 2}
    assert ranked.results[0].document.text == SENTENCES[ranked.results[0].index]


def test_cohere_tokenizes_into_strings_that_are_the_text_again(server, key):
    import cohere

    text = " The  weather is\n今天天气很好 🙂 "
    answer = cohere.Client(api_key=key, base_url=server.url).tokenize(text=text, model="minilm", offline=False)
    assert "".join(answer.token_strings) == text
    assert len(answer.tokens) == len(answer.token_strings) == 10


def test_cohere_hears_of_an_unknown_model(server, key):
    import cohere

    with pytest.raises(cohere.NotFoundError):
        cohere.ClientV2(api_key=key, base_url=server.url).embed(
            model="no-such-model", texts=["a"], input_type="search_query", embedding_types=["float"]
        )


# ------------------------------------------------------------------------------------------------------- Ollama


def test_ollama_embeds_lists_and_shows(server, key):
    import ollama

    client = ollama.Client(host=server.url, headers={"Authorization": f"Bearer {key}"})
    is_minilm(client.embed(model="minilm", input=SENTENCES, keep_alive="5m").embeddings)
    assert len(client.embed(model="minilm:latest", input="one").embeddings) == 1
    assert len(client.embeddings(model="minilm", prompt="one").embedding) == 384
    assert "minilm" in {model.model.removesuffix(":latest") for model in client.list().models}
    assert "embedding" in client.show("minilm").capabilities
    with pytest.raises(ollama.ResponseError) as missing:
        client.embed(model="no-such-model", input="a")
    assert missing.value.status_code == 404


# ------------------------------------------------------------------------- text-embeddings-inference's clients


def test_huggingface_hub_embeds_and_compares(server, key):
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=f"{server.url}/models/minilm", token=key)
    is_minilm([client.feature_extraction(text)[0] for text in SENTENCES])
    # Its own two ways of calling: the address of a model, and that of a route below it.
    embed = InferenceClient(model=f"{server.url}/models/minilm/embed", token=key)
    is_minilm(embed.feature_extraction(SENTENCES))
    similarity = InferenceClient(model=f"{server.url}/models/minilm/similarity", token=key)
    scores = similarity.sentence_similarity(SENTENCES[0], other_sentences=SENTENCES[1:])
    np.testing.assert_allclose(scores, SIMILARITIES[:2], atol=2e-3)


def test_langchain_huggingface_endpoint_embeds(server, key):
    from huggingface_hub import InferenceClient
    from langchain_huggingface import HuggingFaceEndpointEmbeddings

    embeddings = HuggingFaceEndpointEmbeddings(
        model="sentence-transformers/all-MiniLM-L6-v2", huggingfacehub_api_token=key
    )
    # Since 1.2.3 the class refuses an address as ``model``; its client still takes one.
    embeddings.client = InferenceClient(model=f"{server.url}/models/minilm/embed", token=key)
    is_minilm(embeddings.embed_documents(SENTENCES))
    assert len(embeddings.embed_query("one")) == 384


# ------------------------------------------------------------------------------------------------- frameworks


def test_langchain_openai_with_its_defaults_sends_token_arrays(server, key):
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(model="minilm-cl100k", base_url=f"{server.url}/v1", api_key=key)
    is_minilm(embeddings.embed_documents(SENTENCES))


def test_langchain_openai_is_told_what_to_do_where_its_token_arrays_are_not_taken(server, key):
    import openai
    from langchain_openai import OpenAIEmbeddings

    # A vocabulary of 30,522 ids cannot hold most of cl100k's 100,000.
    embeddings = OpenAIEmbeddings(model="minilm", base_url=f"{server.url}/v1", api_key=key)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
        embeddings.embed_documents(["antidisestablishmentarianism 一带一路 ᚠᛇᚻ"])


def test_langchain_openai_with_strings(server, key):
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        model="minilm", base_url=f"{server.url}/v1", api_key=key, check_embedding_ctx_length=False
    )
    is_minilm(embeddings.embed_documents(SENTENCES))


def test_llama_index_openai_like_embeds(server, key):
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embeddings = OpenAILikeEmbedding(model_name="minilm", api_base=f"{server.url}/v1", api_key=key)
    is_minilm(embeddings.get_text_embedding_batch(SENTENCES))
    assert len(embeddings.get_query_embedding("one")) == 384
