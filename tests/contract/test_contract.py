"""schemathesis makes requests of the description, right and wrong ones, and sends them to a real server.

Nothing may be answered with an error of the server's, with a status that is not described, or with another body.
"""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from router.openapi.document import make_document
from tests.support.faulty_server import FaultyModel, FaultyServer

#: Requests for each route and mode: a bounded run in the whole suite, as many as you like by hand.
_EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "12"))
_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
_OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(make_document("")).get_all_operations()]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("contract")
    with FaultyServer(path / "server", {"en": FaultyModel(path / "en")}) as it:
        it.wait_ready()
        yield it


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(one, mode, id=f"{one.label} {mode.value}")
        for one in _OPERATIONS
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if mode is GenerationMode.POSITIVE or (one.method == "post" and not one.path.startswith("/models/{model}"))
    ],
)
def test_the_server_does_what_its_description_says(server, operation, mode):
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        # Behind a model's name the same handlers answer.
        max_examples=_EXAMPLES // 4 if operation.path.startswith("/models/{model}") else _EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        response = case.call(base_url=server.url)
        case.validate_response(response, checks=_CHECKS)

    check()
