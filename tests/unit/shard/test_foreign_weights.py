"""Directories whose weights are for other programs."""

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.model_files.layouts import read_recipe
from shard.model_files.weights import find_checkpoint


def put(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")


def look(directory):
    read_recipe(directory, ModelSpec(id="m", name=str(directory), pooling="mean"))
    find_checkpoint(directory)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["bge-m3-Q4_K_M.gguf"], "holds bge-m3-Q4_K_M.gguf and no weights that torch reads"),
        (["config.json", "onnx/model.onnx"], "holds onnx/model.onnx and no"),
        (["config.json", "openvino_model.xml", "openvino_model.bin"], "holds openvino_model.xml and no"),
        (["config.json", *(f"m-{number}.gguf" for number in range(5))], "holds m-0.gguf, m-1.gguf, m-2.gguf and no"),
    ],
)
def test_a_model_for_other_programs_alone_is_refused_with_what_is_there(tmp_path, names, told):
    put(tmp_path, *names)
    with pytest.raises(LoadError, match=told) as caught:
        look(tmp_path)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["model.safetensors", "onnx/model.onnx"], "neither modules.json nor config.json"),
        (["config.json", "tokenizer.json"], "holds no weights"),
        (["config.json", "pytorch_model-00001-of-00002.bin", "m.gguf"], "holds no weights"),
    ],
)
def test_half_of_a_model_for_torch_is_incomplete_whatever_is_beside_it(tmp_path, names, told):
    put(tmp_path, *names)
    with pytest.raises(LoadError, match=told) as caught:
        look(tmp_path)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD
