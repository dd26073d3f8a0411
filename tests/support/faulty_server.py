"""The installed command with models that misbehave to order (``tests.support.faulty.loader`` lists the orders).

    with FaultyServer(tmp_path, {"en": FaultyModel(tmp_path / "en")}) as server:
        server.wait_ready()
        server.post("/v1/embeddings", {"model": "en", "input": ["hello", "!exit"]})

A shard is ready in well under a second. Supervisor, router and all of a shard but its loader are the real thing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from shard.loading.first_answer import QUESTIONS
from tests.support.faulty.loader import ENCODED, FILE, STARTS, Manner, expected_vector
from tests.support.leaks import processes_in
from tests.support.server import Server

FAULTY = Path(__file__).parent / "faulty"
#: With the checkout that these tests are of: the one that is installed may be another.
PYTHON_PATH = f"{FAULTY}{os.pathsep}{Path(__file__).parents[2]}"


class FaultyModel:
    """A model directory; ``manner`` are the fields of ``Manner``, ``entry`` more keys of its mapping entry."""

    def __init__(self, directory: Path, *, entry: Mapping[str, object] | None = None, **manner: object) -> None:
        self.directory = directory
        self.entry = dict(entry or {})
        self.manner = Manner()
        directory.mkdir(parents=True, exist_ok=True)
        self.behave(**{"seed": directory.name} | manner)

    def behave(self, **manner: object) -> None:
        """Change how it behaves from its next start on; what is not named stays as it is."""
        self.manner = Manner(**(vars(self.manner) | manner))
        (self.directory / FILE).write_text(json.dumps(vars(self.manner)), "utf-8")

    def vector(self, text: str) -> list[float]:
        """Return the right answer."""
        return expected_vector(text[: self.manner.max_tokens], self.manner.seed, self.manner.dimension)

    def is_right(self, text: str, vector: list[float]) -> bool:
        """Tell whether a vector is this text's; JSON numbers may differ in the last digit of float32."""
        right = self.vector(text)
        return len(vector) == len(right) and all(abs(a - b) < 1e-6 for a, b in zip(vector, right, strict=True))

    def batches(self) -> list[tuple[int, list[str]]]:
        """Return every batch that any process of this model has begun for somebody: its pid and the texts."""
        path = self.directory / ENCODED
        if not path.exists():
            return []
        # The last line may be half written at this moment.
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
        return [(line["pid"], line["texts"]) for line in lines if tuple(line["texts"]) != QUESTIONS]

    def encoded(self) -> list[str]:
        """Return every text that any process of this model has begun to encode, in order, repetitions and all."""
        return [text for _, batch in self.batches() for text in batch]

    def start_pids(self) -> list[int]:
        """Return the pids of all processes that began to load this model."""
        path = self.directory / STARTS
        return [int(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


class FaultyServer(Server):
    """``Server`` with such models, by id; use as a context manager."""

    def __init__(
        self,
        directory: Path,
        models: Mapping[str, FaultyModel],
        *,
        env: Mapping[str, str] | None = None,
        dotenv: str = "",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.models = dict(models)
        self._more_dotenv = dotenv
        super().__init__(directory, env={"PYTHONPATH": PYTHON_PATH} | dict(env or {}))
        self.write_mapping()

    def write_mapping(self) -> None:
        """Write ``.env`` anew from ``models``, as before a reload."""
        mapping = {name: {"name": str(model.directory)} | model.entry for name, model in self.models.items()}
        line = f"EMB_PROVIDER_MODEL_MAPPING='{json.dumps(mapping)}'\n"
        (self.directory / ".env").write_text(line + self._more_dotenv, "utf-8")

    def check(self, model_id: str, texts: list[str], **fields: object) -> None:
        """Ask for vectors and assert that every one is right."""
        vectors = self.embed(model_id, texts, **fields)
        model = self.models[model_id]
        assert len(vectors) == len(texts)
        for text, vector in zip(texts, vectors, strict=True):
            assert model.is_right(text, vector), f"a wrong vector for {text!r}"

    def processes(self) -> list[int]:
        """Every living process of this server, orphans too: all of them work in its directory."""
        return processes_in(self.directory)
