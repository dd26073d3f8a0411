import resource

import pytest

from emb_model_provider.messages.link import Encode, Failed
from shard.batching.failures import failed_input, log_failure

REQUEST = Encode(("which?", "this one"), labels=("the query", "document 4"), first_index=64)


@pytest.mark.parametrize(("index", "name"), [(0, "The query"), (1, "Document 4")])
def test_an_input_that_memory_is_too_little_for_is_its_clients_to_shorten(index, name):
    sentence = (
        f"{name} needs more memory than there is, even alone; every other input is fine. "
        "Shorten it, or ask for fewer of its tokens."
    )
    expected = Failed(413, "invalid_request_error", "input_too_large", sentence, "input")
    assert failed_input(REQUEST, index, MemoryError()) == expected


def test_any_other_failure_is_the_servers_and_names_the_input_by_its_place_in_the_request():
    sentence = "The model failed on document 4; every other input is fine. Change or leave out that input."
    expected = Failed(500, "server_error", "encode_failed", sentence, "input")
    assert failed_input(REQUEST, 1, ValueError("no")) == expected


def test_the_operator_reads_what_to_do_for_want_of_memory(caplog, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1_500_000 * 1024, -1))
    for cause in (RuntimeError("could not create a primitive"), ValueError("no")):
        log_failure(REQUEST, 1, cause)
    said = [record.values["advice"] for record in caplog.records]
    assert said == ["raise the limit of this process (ulimit -v 1500000, ulimit -d 1500000)", None]
