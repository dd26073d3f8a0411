"""Whatever arrives, the parsers answer or refuse in their own words: frames, messages, settings, mappings, requests.

Each target gets ``FUZZ_CASES`` cases (100 by default, 12,500 with ``make fuzz``, 100,000 in all): what hypothesis
makes up, and right ones with something wrong in them. No other exception may leave. Then all of them come twice more,
without hypothesis, which remembers every case it has made: a parser must not, and memory stays flat. Frames get a
hundred thousand more from a plain loop.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emb_model_provider import setting_table
from emb_model_provider.dotenv_file import parse_dotenv
from emb_model_provider.entry_table import ENTRY_KEYS
from emb_model_provider.errors import ConfigurationError, ProtocolError, RequestError
from emb_model_provider.frames import HEADER, MAGIC, VERSION, Frame, FrameDecoder
from emb_model_provider.mapping import parse_mapping
from emb_model_provider.messages.framing import pack, unpack
from emb_model_provider.messages.link import Cancel, Encode, Encoded, Failed, Hello, InputError
from emb_model_provider.modelmap import ModelSpec
from emb_model_provider.positioned_json import document_of_variable
from emb_model_provider.settings import load_settings
from router.dialects.fields import read_object
from router.dialects.table import DIALECTS
from tests.support.leaks import resident_bytes
from tests.support.steps import finish

_CASES = int(os.environ.get("FUZZ_CASES", "100"))
_GROWTH_BYTES = 16 * 1024 * 1024
_SETTINGS = settings(max_examples=_CASES, database=None, deadline=None, suppress_health_check=list(HealthCheck))

pytestmark = pytest.mark.timeout(60 + _CASES // 20)


def fuzzed(*strategies):
    """Return what makes a test of a function that takes one case."""

    def decorate(target):
        def test():
            cases = []

            @_SETTINGS
            @given(st.tuples(*strategies))
            def run(case):
                cases.append(case)
                target(*case)

            run()
            run_again(target, cases)

        test.__name__ = target.__name__
        return test

    return decorate


def run_again(target, cases):
    for case in cases:  # whatever is kept once is kept now
        target(*case)
    before = _resident_bytes()
    for case in cases:
        target(*case)
    assert _resident_bytes() - before < _GROWTH_BYTES


def _resident_bytes():
    gc.collect()
    return resident_bytes(os.getpid())


# ------------------------------------------------------------------------------------------------------------ the wire

WIRE = [
    pack(Hello("en", 3)),
    pack(Encode(("hello", "你好"), dimensions=3, prompt_name="query", timeout_ms=5), 7),
    pack(Encode((), token_ids=((1, 2), (3,))), 2**64 - 1),
    pack(Encoded(b"\0" * 16, 2, (3, 4), truncated=(1,), errors=(InputError(0, 500, "x", None, "y"),)), 7),
    pack(Failed(500, "server_error", "encode_failed", "no", "input"), 9),
    pack(Cancel((5,))),
]


@st.composite
def damaged(draw, originals):
    """Return one of the originals, or several, with bytes changed, cut out, put in, or doubled."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(originals), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del data[at : at + draw(st.integers(1, 20))]
            case 2:
                data[at:at] = draw(st.binary(max_size=20))
            case _:
                data[at:at] = data[at : at + draw(st.integers(1, 50))]
    return bytes(data)


@fuzzed(st.one_of(damaged(WIRE), st.binary(max_size=200)), st.integers(1, 64))
def test_a_stream_of_frames_gives_messages_or_a_protocol_error(stream, piece):
    decoder = FrameDecoder()
    with contextlib.suppress(ProtocolError):
        for at in range(0, len(stream), piece):
            for frame in decoder.feed(stream[at : at + piece]):
                message = unpack(frame)
                pack(message, frame.request_id)  # what was believed can be said again


@fuzzed(st.integers(0, 255), st.one_of(damaged([one[HEADER.size :] for one in WIRE]), st.binary(max_size=200)))
def test_a_payload_gives_a_message_or_a_protocol_error(kind, payload):
    with contextlib.suppress(ProtocolError):
        unpack(Frame(kind, 1, payload))


@fuzzed(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_no_header_makes_the_decoder_take_memory(version, kind, length, request_id):
    with contextlib.suppress(ProtocolError):
        FrameDecoder().feed(HEADER.pack(MAGIC, version, kind, length, request_id))
        FrameDecoder().feed(HEADER.pack(MAGIC, VERSION, kind, length, request_id))


def test_a_hundred_thousand_damaged_frames_cost_no_memory_and_raise_nothing_else():
    rng = random.Random(1)
    refused = understood = 0
    before = _resident_bytes()
    for _ in range(8 * _CASES):
        data = bytearray(rng.choice(WIRE))
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
            data = data or bytearray(1)
        decoder = FrameDecoder()
        try:
            for frame in decoder.feed(data):
                unpack(frame)
                understood += 1
        except ProtocolError:
            refused += 1
    assert refused > 0
    assert understood > 0
    assert _resident_bytes() - before < _GROWTH_BYTES


# ------------------------------------------------------------------------------------------------------- configuration

SETTING_NAMES = sorted(row.name for row in vars(setting_table).values() if isinstance(row, setting_table.Setting))
MAPPING = '{"en": {"name": "owner/model", "precision": "int8", "cpus": "0-1", "prompts": {"query": "q: "}, "batch": 3}}'
values = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", "0", "-1", "1", "true", "no", "1e9", "nan", "９", "0x10", "auto", "fp32", "a/b", "~", MAPPING]
    ),
    st.text("{}[]\",:'#$\\ \n0aé", max_size=60),
)
keys = st.one_of(st.sampled_from([key.name for key in ENTRY_KEYS]), st.text(max_size=8))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


@fuzzed(st.dictionaries(st.sampled_from(SETTING_NAMES), values, max_size=8))
def test_an_environment_gives_settings_or_sentences(env):
    # A key file may be named; what is then read is not under test.
    env.pop("EMB_PROVIDER_API_KEYS_FILE", None)
    with contextlib.suppress(ConfigurationError):
        load_settings({name: value.replace("\0", "") for name, value in env.items()}, None)


LINE = "EMB_PROVIDER_PORT=9000 # here\nexport EMB_PROVIDER_MODEL_MAPPING=" + MAPPING + "\nA=\"b${HOME}\\n\"\nB='c'\n"


@fuzzed(st.one_of(damaged([LINE.encode()]).map(lambda data: data.decode("utf-8", "replace")), st.text(max_size=200)))
def test_a_dotenv_file_gives_settings_or_sentences(text):
    with contextlib.suppress(ConfigurationError):
        found = parse_dotenv(text, ".env", {"HOME": "/root"})
        load_settings({"EMB_PROVIDER_API_KEYS_FILE": ""}, found)


@fuzzed(
    st.one_of(
        damaged([MAPPING.encode()]).map(lambda data: data.decode("utf-8", "replace")),
        st.text('{}[]",:0nul tre\\u', max_size=80),
        st.dictionaries(st.text(max_size=6), st.dictionaries(keys, json_values, max_size=5), max_size=3).map(
            json.dumps
        ),
    )
)
def test_a_mapping_gives_models_or_sentences(text):
    with contextlib.suppress(ConfigurationError):
        for spec in parse_mapping(document_of_variable(text, "MAPPING"), ModelSpec("a", "b"), quantize=False):
            assert spec.id


# ------------------------------------------------------------------------------------------------------------ requests

BODIES = [
    b'{"model": "en", "input": ["hello", "\xe4\xbd\xa0"], "encoding_format": "base64", "dimensions": 3}',
    b'{"model": "en", "input": [[1, 2], [3]], "user": "u", "prompt_name": "query"}',
    b'{"inputs": "x", "truncate": true, "normalize": false}',
    b'{"model": "en", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}',
    b'{"model": "en", "texts": ["a"], "input_type": "search_query", "embedding_types": ["float", "int8"]}',
    b'{"model": "en", "prompt": "x", "keep_alive": "5m", "options": {}}',
]
FIELD_NAMES = (
    *("model", "input", "inputs", "texts", "query", "documents"),
    *("dimensions", "encoding_format", "user", "top_n", "truncate", "normalize"),
    *("prompt", "prompt_name", "input_type", "embedding_types", "on_error", "task"),
)
PARSERS = [route.parse for dialect in DIALECTS for route in dialect.routes if route.method == "POST"]


@fuzzed(st.one_of(damaged(BODIES), st.binary(max_size=100)), st.sampled_from(PARSERS))
def test_a_body_gives_a_call_or_an_error_with_a_sentence(body, parse):
    try:
        finish(parse(finish(read_object(body))))
    except RequestError as error:
        check(error)


@fuzzed(
    st.dictionaries(
        st.sampled_from(FIELD_NAMES),
        json_values,
        max_size=6,
    ),
    st.sampled_from(PARSERS),
)
def test_fields_of_any_type_give_a_call_or_an_error_with_a_sentence(fields, parse):
    try:
        body = orjson.dumps(fields)
    except (orjson.JSONEncodeError, TypeError):  # an integer or a text that JSON cannot hold
        return
    try:
        finish(parse(finish(read_object(body))))
    except RequestError as error:
        check(error)


def check(error: RequestError) -> None:
    assert 400 <= error.status < 500
    assert error.message
    assert len(error.message) < 1000
