"""What a request may ask for, on real encoders: the same as setting sentence-transformers up so."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Detokenize, Encode, Tokenize
from emb_model_provider.modelmap import ModelSpec
from shard.batching.intake import spell, tokenize
from shard.encoder import Reading
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support import tiny_models
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    def open_model(directory, *, name="some/model", **settings):
        return load(
            Fetched(directory),
            ModelSpec(id="m", name=name, device="cpu", precision="fp32", **settings),
            threads=2,
            cache_directory=tmp_path_factory.mktemp("cache"),
        )

    return open_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_models.make_sentence_transformers(tmp_path_factory.mktemp("model"), normalize=True)


@pytest.fixture(scope="module")
def encoder(opened, directory):
    return opened(directory)


def reference(directory):
    return SentenceTransformer(
        str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )


def alone(model, texts, **options):
    return np.stack([model.encode([text], show_progress_bar=False, **options)[0] for text in texts])


def test_vectors_before_the_models_own_normalising_are_those_of_the_model_without_it(encoder, directory):
    model = reference(directory)
    assert isinstance(model[-1], Normalize)
    model = SentenceTransformer(modules=list(model)[:-1], device="cpu")
    plain, raw = encoder.tokenize(SAMPLE_TEXTS), encoder.tokenize(SAMPLE_TEXTS, Reading(raw=True))
    mixed = encoder.encode([one for pair in zip(plain, raw, strict=True) for one in pair]).rows
    np.testing.assert_allclose(mixed[1::2], alone(model, SAMPLE_TEXTS), atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(mixed[::2], encoder.encode(plain).rows, atol=TOLERANCE)
    assert np.abs(np.linalg.norm(mixed[1::2], axis=1) - 1).min() > 0.01


@pytest.mark.parametrize(("side", "theirs"), [("start", "left"), ("end", "right")])
@pytest.mark.parametrize("max_tokens", [None, 9])
def test_a_cut_on_either_side_gives_the_vectors_of_a_tokenizer_that_cuts_there(
    encoder, directory, side, theirs, max_tokens
):
    model = reference(directory)
    model.tokenizer.truncation_side = theirs
    if max_tokens is not None:
        model.max_seq_length = max_tokens
    found = encoder.encode(encoder.tokenize(SAMPLE_TEXTS, Reading(cut_side=side, max_tokens=max_tokens))).rows
    np.testing.assert_allclose(found, alone(model, SAMPLE_TEXTS), atol=TOLERANCE)


def test_a_prompt_of_the_request_is_put_before_every_text(encoder, directory):
    prompt = "为这个句子生成表示以用于检索相关文章："
    found = encoder.encode(encoder.tokenize(SAMPLE_TEXTS, Reading(prompt=prompt))).rows
    np.testing.assert_allclose(found, alone(reference(directory), SAMPLE_TEXTS, prompt=prompt), atol=TOLERANCE)


def test_a_model_of_a_known_family_has_prompts_that_it_does_not_ship(opened, directory):
    encoder = opened(directory, name="intfloat/multilingual-e5-small")
    assert set(encoder.info.prompts) == {"query", "document"}
    assert encoder.resolve_prompt("document") == "passage: "
    assert encoder.resolve_prompt(None) is None


def test_an_unknown_prompt_is_refused_with_those_that_there_are(opened, directory):
    encoder = opened(directory, prompts=(("ask", "ask: "),))
    with pytest.raises(InvalidRequestError, match="it has: ask"):
        encoder.resolve_prompt("query")


def test_a_model_may_take_no_ids_and_is_measured_and_served_all_the_same(opened, directory):
    from shard.batching.costs import measure

    encoder = opened(directory, token_ids="reject")
    assert measure(encoder, 512).max_tokens == 512
    outcome = tokenize(encoder, Encode((), token_ids=((1, 2),)))
    assert (outcome.status, outcome.param) == (400, "input")
    assert "check_embedding_ctx_length=False" in outcome.message


def test_tokens_of_a_text_are_those_that_the_model_reads_and_become_it_again(encoder):
    text = "The weather is lovely today"
    (row,) = spell(encoder, Tokenize((text,))).rows
    assert tuple(one.id for one in row) == encoder.tokenize([text])[0].ids
    assert row[0].special
    assert [text[one.start : one.stop].lower() for one in row[1:-1]] == [
        one.text.removeprefix("##") for one in row[1:-1]
    ]
    (back,) = encoder.detokenize([[one.id for one in row]], skip_special_tokens=True)
    assert back.replace(" ", "") == text.lower().replace(" ", "")


def test_an_id_out_of_the_vocabulary_has_no_text(encoder):
    outcome = spell(encoder, Detokenize(((10**6,),)))
    assert outcome.status == 400
