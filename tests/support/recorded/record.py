"""Records what modelscope's own sentence-embedding pipeline answers for the tiny ModelScope models.

The pipeline cannot live beside this project's libraries, so it has an environment of its own. From the root
of the repository::

    python3.11 -m venv ../reference
    ../reference/bin/pip install torch==2.13.0 transformers==4.57.6 modelscope==1.40.2 'datasets<=4.8.4' \
        addict simplejson sortedcontainers numpy pillow scipy attrs einops oss2 python-dateutil pyyaml
    ../reference/bin/python -m tests.support.recorded.record

It writes ``modelscope_vectors.json`` beside this file: for each model how ``tests.support.tiny_models`` makes
it, and one float32 vector per text (nine significant digits are a float32 exactly). The pipeline refuses
``allow_remote: true``, so that key is taken out of ``configuration.json`` first; it changes nothing else.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.support import tiny_models
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

OUTPUT: Final = Path(__file__).with_name("modelscope_vectors.json")
PACKAGES: Final = ("modelscope", "transformers", "torch", "tokenizers", "numpy")
#: Name in the recording -> maker in ``tiny_models`` and its keyword arguments.
MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "gte": ("make_gte", {}),
    "gte_max_length_40": ("make_gte", {"max_length": 40}),
    "corom": ("make_corom", {}),
    "corom_max_length_300": ("make_corom", {"max_length": 300}),
}


def vectors_of(directory: Path, texts: tuple[str, ...]) -> list[list[float]]:
    """One vector per text, each text encoded alone."""
    from modelscope.pipelines import pipeline  # type: ignore[import-untyped]
    from modelscope.utils.constant import Tasks  # type: ignore[import-untyped]

    embed = pipeline(Tasks.sentence_embedding, model=str(directory), device="cpu")
    rows = [embed(input={"source_sentence": [text]})["text_embedding"][0] for text in texts]
    assert all(row.dtype.name == "float32" for row in rows)
    return [[float(f"{value:.9g}") for value in row] for row in rows]


def drop_allow_remote(directory: Path) -> None:
    """Take ``allow_remote`` out, which the pipeline refuses and which the model does not need."""
    path = directory / "configuration.json"
    configuration = json.loads(path.read_text(encoding="utf-8"))
    configuration.pop("allow_remote", None)
    path.write_text(json.dumps(configuration), encoding="utf-8")


def record() -> dict[str, Any]:
    """Make each model in a temporary directory and ask the pipeline."""
    models = {}
    for name, (maker_name, options) in MODELS.items():
        maker: Callable[..., Path] = getattr(tiny_models, maker_name)
        with tempfile.TemporaryDirectory() as folder:
            directory = maker(Path(folder) / name, **options)
            drop_allow_remote(directory)
            vectors = vectors_of(directory, SAMPLE_TEXTS)
        models[name] = {"maker": maker_name, "options": options, "vectors": vectors}
    return {
        "recorded_with": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "texts": list(SAMPLE_TEXTS),
        "models": models,
    }


if __name__ == "__main__":
    OUTPUT.write_text(json.dumps(record(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
