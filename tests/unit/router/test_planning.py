import pytest

from emb_model_provider.errors import InvalidRequestError, ModelNotFoundError, UnavailableError
from emb_model_provider.messages.status import ShardTable
from router import planning
from router.registry import Registry
from router.requests import EncodeRequest
from tests.support.made_up_models import KINDS
from tests.support.statuses import make_info, make_status


def registry(*statuses) -> Registry:
    made = Registry(ready_wait_s=0.01)
    made.update(ShardTable(statuses))
    return made


def ready(model_id: str, kind: str, **changes):
    return make_status(model_id, name=f"owner/{model_id}", info=make_info(**KINDS[kind]), **changes)


@pytest.mark.parametrize(
    ("asked", "found", "role"),
    [
        ("bge", "bge", None),
        ("owner/bge", "bge", None),
        ("bge:query", "bge", "query"),
        ("owner/bge:document", "bge", "document"),
        ("bge:latest", "bge", None),
        ("C:/models/x", "x", None),
        ("owner/bge:query-tuned", "tuned", None),
        ("owner/bge:query-tuned:query", "tuned", "query"),
    ],
)
def test_a_name_may_end_in_a_role_unless_a_model_has_that_whole_name(asked, found, role):
    made = registry(
        ready("bge", "embed"),
        make_status("x", name="C:/models/x"),
        make_status("tuned", name="owner/bge:query-tuned"),
    )
    status, suffix = planning.find(made, asked)
    assert (status.model_id, suffix) == (found, role)


@pytest.mark.parametrize(
    ("asked", "named"),
    [("nothing", "nothing"), ("nothing:query", "nothing:query"), ("nothing:latest", "nothing")],
)
def test_an_unknown_name_is_unknown_with_every_suffix(asked, named):
    with pytest.raises(ModelNotFoundError, match=f"The model '{named}' does not exist"):
        planning.find(registry(ready("bge", "embed")), asked)


def test_the_only_model_of_a_kind_is_meant_and_a_better_kind_comes_first():
    made = registry(ready("a", "embed"), ready("b", "rerank"))
    assert planning.only_model(made, ("embed",), "/embed").model_id == "a"
    assert planning.only_model(made, ("rerank", "embed"), "/rerank").model_id == "b"
    assert planning.only_model(registry(ready("a", "embed")), ("rerank", "embed"), "/rerank").model_id == "a"


def test_a_model_of_another_kind_is_not_meant_though_it_is_the_only_one():
    with pytest.raises(ModelNotFoundError, match=r"No model served here ranks texts\. Models served here: a\."):
        planning.only_model(registry(ready("a", "embed")), ("rerank",), "/rerank")


def test_of_several_none_is_guessed():
    made = registry(ready("a", "embed"), ready("b", "embed"))
    with pytest.raises(InvalidRequestError, match=r"a, b.*/models/a/embed"):
        planning.only_model(made, ("embed",), "/embed")


def test_while_another_model_loads_the_choice_is_not_made_unless_there_is_none():
    loading = make_status("b", state="loading")
    with pytest.raises(UnavailableError, match="on the way: b"):
        planning.only_model(registry(ready("a", "embed"), loading), ("embed",), "/embed")
    assert planning.only_model(registry(loading), ("embed",), "/embed").model_id == "b"
    failed = make_status("b", state="failed")
    assert planning.only_model(registry(ready("a", "embed"), failed), ("embed",), "/embed").model_id == "a"


def test_a_model_of_the_better_kind_keeps_the_choice_open_while_others_load_however_many_there_are_of_the_next_kind():
    made = registry(ready("a", "rerank"), ready("b", "embed"), ready("c", "embed"), make_status("d", state="loading"))
    with pytest.raises(UnavailableError, match="on the way: d"):
        planning.only_model(made, ("rerank", "embed"), "/rerank")


def test_what_every_model_can_answer_means_the_only_one_there_is():
    assert planning.any_model(registry(ready("a", "embed", state="failed")), "/info").model_id == "a"
    with pytest.raises(InvalidRequestError, match=r"a, b.*/models/a/info") as caught:
        planning.any_model(registry(ready("a", "embed"), ready("b", "rerank")), "/info")
    assert caught.value.param == "model"
    with pytest.raises(ModelNotFoundError, match="No model is served here"):
        planning.any_model(registry(), "/info")


@pytest.mark.parametrize("state", ["failed", "restarting"])
def test_a_model_that_died_does_not_make_another_one_the_only_one(state):
    made = registry(ready("a", "embed", state=state), ready("b", "embed"))
    with pytest.raises(InvalidRequestError, match="a, b"):
        planning.only_model(made, ("embed",), "/embed")


def test_a_model_that_restarts_takes_no_choice_from_the_others():
    made = registry(ready("a", "rerank", state="restarting"), ready("b", "embed"))
    assert planning.only_model(made, ("embed",), "/embed").model_id == "b"


def fit(kind: str, **fields):
    return planning.fit(EncodeRequest("m", ("a",), **fields), None, make_info(**KINDS[kind]).encoder)


def test_a_model_that_cannot_is_said_to_and_where_it_answers():
    with pytest.raises(InvalidRequestError, match=r"'m' ranks texts and has no dense output; it answers at /v1/rerank"):
        fit("rerank")
    with pytest.raises(InvalidRequestError, match="no multi vector output") as caught:
        fit("embed", outputs=("dense", "multi_vector"))
    assert caught.value.param == "outputs"


def test_a_prompt_is_for_rerankers_that_are_told_what_makes_a_document_relevant():
    asked = {"seconds": ("b",), "outputs": ("scores",), "prompt": "Find papers"}
    assert fit("rerank", **asked).prompt is None
    assert fit("rerank", seconds=("b",), outputs=("scores",), prompt_name="query").prompt_name is None
    told = make_info(**KINDS["rerank"], takes_instruction=True).encoder
    assert planning.fit(EncodeRequest("m", ("a",), **asked), "query", told).prompt == "Find papers"


def test_dimensions_are_those_that_the_model_was_trained_for_where_that_is_known():
    assert fit("m3", dimensions=2).dimensions == 2
    assert fit("m3", dimensions=4).dimensions == 4
    assert fit("embed", dimensions=3).dimensions == 3
    with pytest.raises(InvalidRequestError, match="trained to be cut to 2, 4 dimensions"):
        fit("m3", dimensions=3)
    with pytest.raises(InvalidRequestError, match="leave out 'normalize'"):
        fit("embed", dimensions=3, normalize=False)


def test_all_dimensions_are_given_whatever_the_model_was_trained_to_be_cut_to():
    cut_to_two = make_info(**KINDS["embed"] | {"dimension": 4, "matryoshka": (2,)}).encoder
    for dimensions in (None, 2, 4):
        assert (
            planning.fit(EncodeRequest("m", ("a",), dimensions=dimensions), None, cut_to_two).dimensions == dimensions
        )
    assert fit("embed", normalize=False).normalize is False
    assert fit("m3", dimensions=3, outputs=("sparse",)).dimensions == 3, "of no consequence without dense vectors"
