"""sentence-transformers behind mosec, with its dynamic batching, which its own embedding example leaves out.

Runs in the peer's environment, where ``PEER_MODEL`` is the model's directory; its arguments are mosec's own.
"""

# mypy: ignore-errors

import os
import sys

import msgspec
from mosec import Runtime, Server, Worker
from sentence_transformers import SentenceTransformer

DIRECTORY = os.environ["PEER_MODEL"]


class Embedding(Worker):
    """Takes up to 32 requests at a time and encodes all their texts in one call."""

    def __init__(self) -> None:
        self._model = SentenceTransformer(DIRECTORY, device="cpu")

    def deserialize(self, data: bytes) -> list[str]:
        given = msgspec.json.decode(data)["input"]
        return [given] if isinstance(given, str) else given

    def serialize(self, data: list[list[float]]) -> bytes:
        rows = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(data)]
        return msgspec.json.encode({"object": "list", "data": rows})

    def forward(self, data: list[list[str]]) -> list[list[list[float]]]:
        vectors = self._model.encode([text for texts in data for text in texts], show_progress_bar=False).tolist()
        result, start = [], 0
        for texts in data:
            result.append(vectors[start : start + len(texts)])
            start += len(texts)
        return result


if __name__ == "__main__":
    server = Server()
    # By default it waits 10 ms for a batch to fill, for a text that comes alone too: half of what that one then takes.
    server.register_runtime({"/v1/embeddings": [Runtime(Embedding, max_batch_size=32, max_wait_time=1)]})
    sys.exit(server.run())
