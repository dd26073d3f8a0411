"""Token ids that are not the model's own. Called by ``main``, which fetches the vocabulary, and by ``loader``.

LangChain's ``OpenAIEmbeddings`` cuts texts with OpenAI's vocabulary cl100k_base and sends the ids. To any other model
they are ids of other words, and the vectors would be those of nonsense.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from emb_model_provider.modelmap import TokenIds

_NAME: Final = "cl100k_base"
_URL: Final = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
#: What tiktoken calls it there.
_FILE: Final = hashlib.sha1(_URL.encode(), usedforsecurity=False).hexdigest()
_HOW: Final = (
    "set TIKTOKEN_CACHE_DIR to a directory that holds it (run python -c \"import tiktoken; tiktoken.get_encoding('"
    f"{_NAME}')\" with that variable on a machine with internet access, and copy the directory), or set token_ids to "
    "native or reject"
)

#: Token ids → the text that the model is to read; raises ``InvalidRequestError``.
Decode = Callable[[Sequence[int]], str]


def fetch_vocabulary(policy: TokenIds, *, offline: bool) -> None:
    """Bring what ``policy`` needs to this machine; raise ``LoadError`` where that cannot be done."""
    if policy != "cl100k":
        return
    if offline and not ((folder := _cache()) and (Path(folder) / _FILE).exists()):
        raise LoadError(
            LoadReason.NO_NETWORK,
            f"token_ids is cl100k, the vocabulary of {_NAME} is not in {folder or 'any directory'}, and the network "
            f"may not be used: {_HOW}",
        )
    make_decode(policy)


def make_decode(policy: TokenIds) -> Decode | None:
    """Return how ids become texts under this policy, ``None`` for ids that are the model's own."""
    if policy == "native":
        return None
    if policy == "reject":
        return _refuse
    try:
        import tiktoken  # noqa: PLC0415 - optional, and of use to this policy alone
    except ImportError:
        raise LoadError(
            LoadReason.PACKAGE_MISSING,
            'token_ids is cl100k, which needs the package tiktoken: pip install "emb-model-provider[tiktoken]"',
        ) from None
    try:
        encoding = tiktoken.get_encoding(_NAME)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a file with another hash is a ValueError
        raise LoadError(
            LoadReason.NO_NETWORK, f"tiktoken cannot fetch the vocabulary of {_NAME} from {_URL} ({error}): {_HOW}"
        ) from error

    def decode(ids: Sequence[int]) -> str:
        try:
            return encoding.decode_bytes(list(ids)).decode("utf-8", errors="replace")
        except (KeyError, OverflowError):
            raise InvalidRequestError(
                f"These are not token ids of {_NAME}, which this model is set up to be sent.", param="input"
            ) from None

    return decode


def _refuse(_ids: Sequence[int]) -> str:
    raise InvalidRequestError(
        "This model takes texts, not token ids. LangChain's OpenAIEmbeddings sends texts with "
        "check_embedding_ctx_length=False.",
        param="input",
    )


def _cache() -> str:
    """Return where tiktoken keeps vocabularies (``tiktoken.load.read_file_cached``), empty if nowhere."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    return str(Path(tempfile.gettempdir(), "data-gym-cache")) if named is None else named
