"""Which of a model's prompts belongs to what a client says that its texts are. Pure; used by ``planning``.

Clients of Cohere say ``input_type: "search_query"``, those of Jina ``task: "retrieval.query"``, those who can send
neither ask for the model ``bge:query``. Models call their prompts ``query``, ``passage``, ``s2p_query`` and more.
"""

from __future__ import annotations

from typing import Final

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.status import EncoderInfo
from router.requests import EncodeRequest

#: What a role is called, by clients and by models; of the model's names the first that it has is taken.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "query": ("query", "search_query", "retrieval.query", "s2p_query", "web_search_query", "retrieval_query"),
    "document": (
        "document", "passage", "search_document", "retrieval.passage", "corpus", "text", "retrieval_document"
    ),
    "classification": ("classification",),
    "clustering": ("clustering", "separation"),
    "similarity": ("similarity", "text-matching", "sts", "s2s_query", "semantic_similarity"),
}  # fmt: skip
_ROLE_OF: Final = {name: role for role, names in _NAMES.items() for name in names}


def with_role(request: EncodeRequest, role: str | None, encoder: EncoderInfo) -> EncodeRequest:
    """Return the request with the prompt for this role; a prompt that the client names itself stays.

    A model without a prompt for it gets none, not even its default one; where texts take different ways by their role,
    the prompt that the client names is read on the way of this role. Raises ``InvalidRequestError`` for a word that is
    neither a role nor one of the model's prompts.
    """
    if role is None or request.prompt_name is not None or (request.prompt is not None and not encoder.routes):
        return request
    if role in encoder.prompts:
        return request.replace(prompt_name=role)
    known = _ROLE_OF.get(role.lower())
    if known is None:
        words = ", ".join(dict.fromkeys([*encoder.prompts, *_NAMES]))
        raise InvalidRequestError(f"{role[:64]!r} is not a kind of input: use one of {words}.", param="input_type")
    prompts = {name.lower(): name for name in encoder.prompts}
    for name in _NAMES[known]:
        if name in prompts:
            return request.replace(prompt_name=prompts[name])
    return request if request.prompt is not None else request.replace(prompt="")
