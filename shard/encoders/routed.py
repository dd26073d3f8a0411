"""Models whose queries and documents take different ways: sentence-transformers' ``Router``. Built by ``loader``.

A text's way is chosen as it is tokenised, by the name of its prompt, and is then a part of its ``Tokenized``: equal
texts of different ways are two inputs. Each way has a tokenizer and a forward path; the first is that of other models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from tokenizers import Tokenizer
from torch import nn

from emb_model_provider.errors import InvalidRequestError, unsupported
from shard.encoder import PLAIN, Reading, Results, Tokenized, Vectors
from shard.encoders.heads import Features, Head, HeadFacts
from shard.encoders.in_parts import ALONE, Helpers
from shard.encoders.sentence_transformer import ForwardPath
from shard.encoders.special_frame import find_frame
from shard.encoders.splade import keep_largest
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts
from shard.foreign_ids import Decode
from shard.model_files.prompt_families import role_of
from shard.model_files.recipe import Routes


class SparseStaticPath:
    """Implements ``ForwardPath`` without any inference: a text has the weight of each of its tokens, however often.

    sentence-transformers' ``SparseStaticEmbedding``; ``weights`` are one per id, shape (vocabulary,).
    """

    def __init__(self, weights: Vectors, max_active: int | None) -> None:
        self._weights = weights
        self._max_active = max_active

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return [list(range(len(batch)))]

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return one sparse vector per text."""
        sparse = []
        for row in rows:
            indices = np.unique(np.array(row.ids, dtype=np.intp))
            indices = indices[self._weights[indices] != 0]
            sparse.append(keep_largest(indices, self._weights[indices], self._max_active))
        return Results(sparse=sparse)


class RoutedPath:
    """Implements ``ForwardPath`` over several: ``others`` by their route, ``main`` for all else."""

    def __init__(self, main: ForwardPath, others: Mapping[int, ForwardPath]) -> None:
        self._main = main
        self._others = others

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        passes: list[list[int]] = []
        for path in (self._main, *self._others.values()):
            own = [index for index, one in enumerate(batch) if self._path_of(one) is path]
            if own:
                passes += [[own[row] for row in rows] for rows in path.split([batch[index] for index in own])]
        return passes

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of one pass, whose texts have one path."""
        return self._path_of(rows[0]).run(rows)

    def _path_of(self, one: Tokenized) -> ForwardPath:
        return self._others.get(one.route, self._main)


class RoutedHead:
    """Implements ``Head`` where ways differ in what follows one transformer: each text has the head of its way."""

    def __init__(self, heads: Mapping[int, Head]) -> None:
        self._heads = heads
        self._count = max(heads) + 1
        self.modules = nn.ModuleList(chain.from_iterable(head.modules for head in heads.values()))
        sizes = sorted({head.facts.dimension for head in heads.values()})
        if len(sizes) > 1:
            raise unsupported(f"its routes make vectors of different sizes: {', '.join(map(str, sizes))}")

    @property
    def facts(self) -> HeadFacts:
        of_each = [head.facts for head in self._heads.values()]
        return replace(self._heads[0].facts, normalized=all(facts.normalized for facts in of_each))

    @property
    def takes_flat_output(self) -> bool:
        return all(head.takes_flat_output for head in self._heads.values())

    def group(self, one: Tokenized) -> int:
        return self._heads[one.route].group(one) * self._count + one.route

    def run(self, features: Features, rows: Sequence[Tokenized]) -> Results:
        return self._heads[rows[0].route].run(features, rows)


@dataclass(frozen=True, slots=True)
class LookedUpRoutes:
    """What a routed model has for texts that its transformer does not read: by ``Tokenized.route``, below 0."""

    routes: Routes
    tokenizers: Mapping[int, TextTokenizer]
    paths: Mapping[int, ForwardPath]

    def route_of(self, prompt_name: str | None) -> int:
        """Return the ``Tokenized.route`` of texts that are asked for by this name; raise as ``find_route`` does."""
        number = find_route(self.routes, prompt_name)
        return -number if -number in self.tokenizers else number

    def beside(self, main: ForwardPath) -> ForwardPath:
        """Return a path for all routes, of which ``main`` has those with a transformer."""
        return RoutedPath(main, self.paths)

    def beside_later(self, make_main: Callable[[], ForwardPath]) -> Callable[[], ForwardPath]:
        """Do the same once ``main`` is made."""
        return lambda: self.beside(make_main())


class RoutedTokenizer(TextTokenizer):
    """A ``TextTokenizer`` that sends each text its way. What it is made with is of the first way."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        facts: TokenizerFacts,
        max_tokens: int,
        looked_up: LookedUpRoutes,
        *,
        decode: Decode | None = None,
        helpers: Helpers = ALONE,
    ) -> None:
        super().__init__(tokenizer, facts, max_tokens, decode=decode, helpers=helpers)
        self._looked_up = looked_up

    def tokenize(self, texts: Sequence[str], reading: Reading = PLAIN) -> list[Tokenized]:
        """Tokenise ``prompt + text`` each."""
        route = self._looked_up.route_of(reading.prompt_name)
        other = self._looked_up.tokenizers.get(route)
        read = super().tokenize(texts, reading) if other is None else other.tokenize(texts, reading)
        return [one._replace(route=route) for one in read]

    def accept_ids(self, ids: Sequence[int], reading: Reading = PLAIN) -> Tokenized:
        """Check ids, add the special tokens of their way if they are not there, and cut."""
        route = self._looked_up.route_of(reading.prompt_name)
        other = self._looked_up.tokenizers.get(route)
        one = super().accept_ids(ids, reading) if other is None else other.accept_ids(ids, reading)
        return one._replace(route=route)


class BareTokenizer(TextTokenizer):
    """A ``TextTokenizer`` that adds no special tokens. Ids may come with those that are usual around them."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        facts: TokenizerFacts,
        max_tokens: int,
        *,
        decode: Decode | None = None,
        helpers: Helpers = ALONE,
    ) -> None:
        super().__init__(tokenizer, facts, max_tokens, decode=decode, helpers=helpers)
        self._usual = self._frame
        self._tokenizer.post_processor = None
        self._frame = find_frame(self._tokenizer.encode("a"), texts=1)

    def _without_frame(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return self._usual.strip(ids) or ids  # special tokens alone are all that there is to read


def find_route(routes: Routes, prompt_name: str | None) -> int:
    """Return the way of texts whose prompt is asked for by that name, as their task.

    Any name that a model gives a prompt for queries or documents is such a task; other prompts leave a text on the
    default way. Raises ``InvalidRequestError`` where the model has no way for queries or for documents.
    """
    if prompt_name is None:
        return routes.default
    known = dict(routes.by_task)
    role = role_of(prompt_name)
    for task in (prompt_name, role):
        if task is not None and task in known:
            return known[task]
    if role is not None:
        raise InvalidRequestError(
            f"This model has no way for texts of the kind {prompt_name!r}; it has: {', '.join(known)}.",
            param="input_type",
        )
    return routes.default
