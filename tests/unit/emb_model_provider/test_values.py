"""What each kind of value takes, as the text of a variable and as JSON, and where its bounds are."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.positioned_json import parse_json
from emb_model_provider.value_kinds import Bilingual, Boolean, Choice, Integer, Number, Text, WrongValueError
from emb_model_provider.value_shapes import (
    ApiKeys,
    CpuSet,
    Device,
    Endpoint,
    FileName,
    Host,
    Origins,
    Prompts,
    UrlPrefix,
)

WHOLE, HALVES, WORD = Integer(1, 8), Number(0.5, 8), Choice(("cpu", "GPU"))
TEXT = Text(Bilingual("anything", "任意"))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (WHOLE, "1", 1), (WHOLE, "8", 8), (WHOLE, "+8", 8), (WHOLE, "007", 7),
        (HALVES, "0.5", 0.5), (HALVES, "8", 8.0), (HALVES, "1.25", 1.25),
        (WORD, "CPU", "cpu"), (WORD, "gpu", "GPU"),
        (Boolean(), "ON", True), (Boolean(), "No", False),
        (CpuSet(), "0", (0,)), (CpuSet(), "6-4095", tuple(range(6, 4096))), (CpuSet(), " 3 , 1-2,2 - 2", (1, 2, 3)),
        (Host(), "127.0.0.1", "127.0.0.1"), (Host(), "[::1]", "::1"), (Host(), "::0", "::"),
        (Host(), "::ffff:127.0.0.1", "127.0.0.1"), (Host(), "[::FFFF:0:0]", "0.0.0.0"),
        (Host(), "a_b-c.de", "a_b-c.de"), (Host(), "localhost.", "localhost."), (Host(), "x" * 63, "x" * 63),
        (Device(), "CUDA:1", "cuda:1"), (ApiKeys(), "a=b,$c,d${e}", ("a=b", "$c", "d${e}")),
        (Endpoint(), "HTTPS://hub.example.com:8443/a/", "HTTPS://hub.example.com:8443/a"),
        (Origins(), "https://a.b/, null,http://[::1]:80,https://a.b", ("https://a.b", "null", "http://[::1]:80")),
        (Origins(), "*", ("*",)),
        (UrlPrefix(), "/embed/v-1.0_~/", "/embed/v-1.0_~"), (UrlPrefix(), "/", ""), (UrlPrefix(), "/.a/...", "/.a/..."),
    ],
)  # fmt: skip
def test_text_that_is_taken(kind, text, value):
    assert kind.parse(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((WHOLE, text) for text in ("0", "9", "-1", "1.0", "1e0", "١", "1" * 19, "1_0")),
        *((HALVES, text) for text in ("0.4", "8.01", "nan", "inf", "1e0", ".5", "5.")),
        *((WORD, text) for text in ("cp", "cpu2")),
        *((Boolean(), text) for text in ("2", "y", "tru")),
        *((CpuSet(), text) for text in ("2-1", "4096", "0-4096", "0,", ",", "a", "0-", "-1", "00000")),
        *((Host(), text) for text in ("*", "a..b", "-a.b", "a:1", "1.2.3", "a.1", "a b", "x" * 64, "http://a")),
        *((Host(), text) for text in ("[::1", "::1]")),
        *((ApiKeys(), text) for text in ("EMB_PROVIDER_API_KEYS=a", "b,export EMB_PROVIDER_API_KEYS=a", "a,${SECRET}")),
        *((Device(), text) for text in ("cuda:", "cuda:x", "mps", "cuda:１", "cuda:١", "cuda:1_0")),
        *(
            (Endpoint(), text)
            for text in (
                "ftp://hub", "http://", "http://:80", "http://hub:0", "http://hub:65536", "http://[::1", "http://a b",
                "http://hub\x01", "http://hub?a", "http://hub#a", "http://me@hub", "http://:hush@hub", "hub",
            )
        ),
        *((Origins(), text) for text in ("a.example", "https://a.example/path", "*, a", "https://*.example", "https://a:x")),
        *((UrlPrefix(), text) for text in ("a", "//", "/a//b", "/a b", "/a?b", "/ä", "")),
        *((UrlPrefix(), text) for text in ("/..", "/../", "/./a", "/a/../b")),
        *((TEXT, text) for text in ("a\nb", "a\x7f", "a\u2028b", "\udcff")),
        (Prompts(), '{"query": "query: "}'),
    ],
)  # fmt: skip
def test_text_that_is_refused_with_what_it_must_be(kind, text):
    with pytest.raises(WrongValueError, match=r"it |write "):
        kind.parse(text)


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        (WHOLE, "8", 8), (HALVES, "8", 8.0), (HALVES, "0.5", 0.5),
        (Boolean(), "true", True), (Boolean(), "false", False), (WORD, '" gpu "', "GPU"), (TEXT, '" a b "', "a b"),
        (CpuSet(), '"0-2"', (0, 1, 2)), (CpuSet(), "[2, 0, 2, 4095]", (0, 2, 4095)),
        (Prompts(), '{"query": "q: ", "document": ""}', (("query", "q: "), ("document", ""))),
    ],
)  # fmt: skip
def test_json_that_is_taken(kind, written, value):
    found = kind.check(parse_json(written).value)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        *((WHOLE, written) for written in ("0", "9", "1.0", '"1"', "true", "null", "[1]")),
        *((HALVES, written) for written in ("0.4", "9", "1e400", '"1"', "true", "null")),
        *((Boolean(), written) for written in ('"true"', "1", "null")),
        *((WORD, written) for written in ("1", "null", '""', '" "', "true")),
        *((CpuSet(), written) for written in ("[]", "0", '""', "[true]", '["0"]', "[4096]", "[-1]", "{}", "null")),
        *((Prompts(), written) for written in ("{}", '{" ": "a"}', '{"a": 1}', '{"a": "b", "c": null}', "[]", "null")),
    ],
)  # fmt: skip
def test_json_that_is_refused_with_what_it_must_be(kind, written):
    with pytest.raises(WrongValueError, match="it "):
        kind.check(parse_json(written).value)


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(-25, 25))
def test_both_bounds_belong_to_what_is_allowed_in_text_and_in_json(one, other, value):
    low, high = sorted((one, other))
    for kind in (Integer(low, high), Number(low, high)):
        for read, written in ((kind.parse, str(value)), (kind.check, parse_json(json.dumps(value)).value)):
            try:
                assert read(written) == value
                assert low <= value <= high
            except WrongValueError:
                assert not low <= value <= high


@pytest.mark.parametrize(
    ("kind", "text", "advice"),
    [
        (Endpoint(), "hub.example.com", "write https://hub.example.com "),
        (Endpoint(), "hub example", "such as https://"),
        (Host(), "*", "write 0.0.0.0"),
    ],
)
def test_who_is_near_is_told_what_to_write(kind, text, advice):
    with pytest.raises(WrongValueError, match=advice):
        kind.parse(text)


def test_a_string_of_spaces_is_empty():
    with pytest.raises(WrongValueError, match="not empty"):
        TEXT.check("  ")


@pytest.mark.parametrize(
    ("encoding", "lacks"), [("latin-1", "'模型'"), ("ascii", "'模型'"), ("gbk", ""), ("utf-8", "")]
)
def test_a_path_that_no_file_can_have_in_this_encoding_is_refused_with_what_to_set(monkeypatch, encoding, lacks):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    kind = FileName(Bilingual("path", "路径"))
    if not lacks:
        assert kind.parse("/数据/模型") == "/数据/模型"
        return
    with pytest.raises(WrongValueError, match=f"it holds {lacks}, which {encoding} lacks, .* set PYTHONUTF8=1"):
        kind.parse("/data/模型")
