"""What others do on the same machine: sentence-transformers and a bare ONNX Runtime; each in a worker process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.bare_engine import torch_dtype

_MAX_TOKENS: Final = 256

#: Run as it stands in a fresh interpreter: what anybody writes who wants one vector.
FIRST_EMBEDDING: Final = """
import sys
from sentence_transformers import SentenceTransformer
SentenceTransformer(sys.argv[1], device="cpu").encode(["hello"])
"""

#: The same and then everything, for its memory; says "ready" after each step and waits for a line to go on.
MEMORY: Final = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
model.encode(["hello"])
print("ready", flush=True)
model.encode(json.loads(sys.stdin.readline()), batch_size=32)
print("ready", flush=True)
sys.stdin.readline()
"""


class SentenceTransformers:
    """``SentenceTransformer.encode`` as its documentation shows it."""

    def __init__(self, directory: str, threads: int, device: str = "cpu", precision: str = "fp32") -> None:
        import torch  # noqa: PLC0415 - only in the worker
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415

        torch.set_num_threads(threads)
        self._model = SentenceTransformer(directory, device=device, model_kwargs={"dtype": torch_dtype(precision)})

    def seconds(self, texts: Sequence[str], batch_size: int = 32) -> float:
        """Encode all texts, ``batch_size`` at a time; return the seconds until the vectors are in main memory."""
        began_s = time.perf_counter()
        self._model.encode(list(texts), batch_size=batch_size, show_progress_bar=False)
        return time.perf_counter() - began_s

    def vector(self, text: str) -> list[float]:
        """Return the vector of one text."""
        return [float(value) for value in self._model.encode(text, show_progress_bar=False)]

    def latencies_s(self, selection: Sequence[str], count: int, pause_s: float = 0.0) -> list[float]:
        """Return the seconds of each of ``count`` runs of one text, the next one in turn after ``pause_s``."""
        return _latencies_s(lambda text: self._model.encode(text, show_progress_bar=False), selection, count, pause_s)


class OnnxPipeline:
    """Text to vector by ONNX Runtime in fp32: tokenise, run, mean, length 1; numpy and nothing else around it."""

    def __init__(self, graph: str, directory: str, threads: int) -> None:
        import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: PLC0415
        from tokenizers import Tokenizer  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)

    def vector(self, text: str) -> list[float]:
        """Return the vector of one text."""
        return [float(value) for value in self._embed(text)]

    def latencies_s(self, selection: Sequence[str], count: int, pause_s: float = 0.0) -> list[float]:
        """Return the seconds of each of ``count`` runs of one text, the next one in turn after ``pause_s``."""
        return _latencies_s(self._embed, selection, count, pause_s)

    def _embed(self, text: str) -> Any:  # noqa: ANN401 - a numpy array; numpy is not imported here
        import numpy as np  # noqa: PLC0415

        encoding = self._tokenizer.encode(text)
        ids = np.array([encoding.ids], dtype=np.int64)
        (states,) = self._session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        mean = states[0].mean(axis=0)
        return mean / np.linalg.norm(mean)


class OnnxExport:
    """Writes the graph that ``OnnxPipeline`` runs; a process of its own, as this needs PyTorch and that must not."""

    def export(self, directory: str, graph: str) -> None:
        """Export a BERT-like model in fp32 with dynamic batch and length."""
        import warnings  # noqa: PLC0415

        import torch  # noqa: PLC0415
        from transformers import AutoModel  # noqa: PLC0415

        warnings.simplefilter("ignore")
        model = AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()

        class ByKeyword(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:  # noqa: ANN401
                return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

        ids = torch.ones(1, 8, dtype=torch.long)
        torch.onnx.export(
            ByKeyword(),
            (ids, torch.ones_like(ids)),
            graph,
            input_names=["input_ids", "attention_mask"],
            output_names=["states"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask", "states")},
            dynamo=False,
        )


def _latencies_s(run: Callable[[str], object], selection: Sequence[str], count: int, pause_s: float) -> list[float]:
    times = []
    for text in itertools.islice(itertools.cycle(selection), count):
        time.sleep(pause_s)
        began_s = time.perf_counter()
        run(text)
        times.append(time.perf_counter() - began_s)
    return times
