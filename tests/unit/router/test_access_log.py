import dataclasses
import io
import json
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.logs import MARK
from router.access_log import Answered, as_json, combined, logfmt, writer

ONE = Answered(
    time_s=1_700_000_000.25,
    client="10.0.0.7",
    method="POST",
    path="/v1/embeddings",
    http_version="1.1",
    status=200,
    size_bytes=512,
    took_ms=12.345,
    request_id="req-1",
    model="bge",
    tokens=9,
    inputs=2,
    user_agent="curl/8",
)
NOTHING_KNOWN = dataclasses.replace(
    ONE, client="", size_bytes=None, model="", tokens=None, inputs=None, user_agent="", status=404, error="not_found"
)
_COMBINED = re.compile(
    r'(\S+) - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "((?:[^"\\]|\\.)*)" (\d{3}) (\S+) "-" '
    r'"((?:[^"\\]|\\.)*)" (\d+\.\d)ms (\S+) (\S+) (\S+)'
)
_HOSTILE = st.text(st.sampled_from('a"\\ =\n\r\x1b\u2028\u202e你') | st.characters(), max_size=700)


def test_a_combined_line_is_apaches_with_ours_behind_it():
    found = _COMBINED.fullmatch(combined(ONE))
    assert found is not None
    assert re.fullmatch(r"1[45]/Nov/2023:\d\d:\d\d:20 .*", found[2])
    assert [found[1], *found.groups()[2:]] == [
        "10.0.0.7", "POST /v1/embeddings HTTP/1.1", "200", "512", "curl/8", "12.3", "req-1", "bge", "9",
    ]  # fmt: skip
    found = _COMBINED.fullmatch(combined(NOTHING_KNOWN))
    assert found is not None
    assert [found[1], *found.groups()[3:6], *found.groups()[8:]] == ["-", "404", "-", "-", "-", "-"]


def test_json_and_logfmt_tell_the_same_and_nothing_of_what_is_not_known():
    told = json.loads(as_json(ONE))
    assert told == {
        "time": "2023-11-14T22:13:20.250Z", "event": "access", "request_id": "req-1", "client": "10.0.0.7",
        "method": "POST", "path": "/v1/embeddings", "status": 200, "took_ms": 12.35, "bytes": 512, "model": "bge",
        "inputs": 2, "tokens": 9, "user_agent": "curl/8",
    }  # fmt: skip
    assert logfmt(ONE).split() == [f"{key}={value}" for key, value in told.items()]
    bare = json.loads(as_json(NOTHING_KNOWN))
    assert told.keys() - bare.keys() == {"client", "bytes", "model", "inputs", "tokens", "user_agent"}
    assert bare["error"] == "not_found"


@given(path=_HOSTILE, agent=_HOSTILE)
def test_no_client_can_write_a_second_line_or_another_field(path, agent):
    hostile = dataclasses.replace(ONE, path=path, user_agent=agent)
    lines = [combined(hostile), as_json(hostile), logfmt(hostile)]
    assert all(len(line.splitlines()) == 1 and "\x1b" not in line and "\u202e" not in line for line in lines)
    found = _COMBINED.fullmatch(lines[0])
    assert found is not None
    assert found.groups()[6:] == ("12.3", "req-1", "bge", "9")
    told = json.loads(lines[1])
    assert (told["status"], len(told["path"]) <= 6 * 500, len(told.get("user_agent", "")) <= 6 * 200) == (
        200,
        True,
        True,
    )
    expected = {"user_agent"} - told.keys()
    keys = [key for key, _, _ in (field.partition("=") for field in shlex.split(lines[2].replace("'", "’")))]
    assert keys == [key for key in json.loads(as_json(ONE)) if key not in expected]


@pytest.mark.parametrize(("style", "render"), [("combined", combined), ("json", as_json), ("logfmt", logfmt)])
def test_a_line_is_marked_for_the_supervisor(style, render):
    stream = io.StringIO()
    write = writer(style, stream)
    assert write is not None
    write(ONE)
    assert stream.getvalue() == f"{MARK}{render(ONE)}\n"


def test_no_access_log_is_written_where_none_is_wanted():
    assert writer("off") is None
