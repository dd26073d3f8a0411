import json
import shlex
import unicodedata

import pytest

from supervisor.console import Console, curl_command, describe_state, format_bytes, render_bar, render_downloads
from tests.support.statuses import make_info, make_status


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (204_800_000, "195.3 MiB"), (2**44, "16.0 TiB")],
)
def test_bytes_are_shown_with_binary_units(count, text):
    assert format_bytes(count) == text


def test_the_bar_fills_with_the_bytes():
    half = make_status("a", state="downloading", done_bytes=512, total_bytes=1024)
    assert render_bar(half) == "#" * 12 + "-" * 12 + "  50 % 512 B of 1.0 KiB"


def test_a_failure_names_reason_and_sentence():
    status = make_status("a", state="failed", reason="no_network", detail="the hub did not answer")
    assert describe_state(status, 1.0) == "FAILED (no_network): the hub did not answer"


@pytest.mark.parametrize("state", ["failed", "restarting"])
def test_what_a_model_s_files_say_gives_a_terminal_no_orders_and_makes_no_lines_of_its_own(state):
    detail = "unknown type \x1b[2J\x1b]0;mine\x07\n  another  ready\u202e" + "x" * 5_000_000
    shown = describe_state(make_status("a", state=state, reason="unsupported_model", detail=detail), 1.0)
    assert shown.isprintable()
    assert len(shown) < 3000


def test_a_restart_is_not_promised_for_the_time_at_which_the_model_will_have_loaded():
    status = make_status("a", state="restarting", detail="its process exited with code 1", expected_ready_s=10.4)
    assert describe_state(status, 1.0) == "restarting: its process exited with code 1; back in about 10 s"


def test_ready_says_what_was_measured_and_where_storage_and_computing_differ():
    status = make_status("a", info=make_info(precision="fp16", storage_dtype="float16"))
    assert describe_state(status, 2.34) == (
        "ready after 2.3 s: 4 dimensions, 8 tokens, fp16 (computed in float32) on cpu, from local"
    )


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"task": "rerank", "outputs": ("scores",), "labels": ("LABEL_0",)}, "scores"),
        ({"task": "classify", "outputs": ("scores",), "labels": ("no", "yes")}, "2 classes"),
        ({"task": "sparse", "outputs": ("sparse",)}, "sparse vectors"),
        ({"task": "multi_vector", "outputs": ("multi_vector",)}, "token vectors"),
    ],
)
def test_a_model_without_dense_vectors_says_what_it_gives(facts, shown):
    status = make_status("a", info=make_info(**facts, dimension=0))
    assert describe_state(status, 1.0).startswith(f"ready after 1.0 s: {shown}, 8 tokens")


@pytest.mark.parametrize(
    ("facts", "path", "more"),
    [
        ({}, "/v1/embeddings", {"input"}),
        ({"task": "rerank", "outputs": ("scores",)}, "/v1/rerank", {"query", "documents"}),
        ({"task": "classify", "outputs": ("scores",)}, "/classify", {"input"}),
        ({"task": "sparse", "outputs": ("sparse",)}, "/v1/embeddings", {"input", "outputs"}),
    ],
)
def test_the_curl_line_survives_a_shell_and_asks_a_model_what_it_is_for(facts, path, more):
    status = make_status("a/b", info=make_info(**facts))
    words = shlex.split(curl_command("http://127.0.0.1:9000/emb", status, needs_key=True))
    assert words[:2] == ["curl", f"http://127.0.0.1:9000/emb{path}"]
    assert "Authorization: Bearer YOUR_KEY" in words
    body = json.loads(words[-1])
    assert body["model"] == "a/b"
    assert set(body) - {"model"} == more


class Terminal:
    """Keeps the bar at the bottom."""

    is_terminal = True
    bar = ""

    def progress(self, text: str) -> None:
        self.bar = text


def test_the_bar_of_a_model_that_is_removed_while_it_downloads_goes_with_it():
    terminal = Terminal()
    console = Console(terminal, silent=False)
    for name in ("a", "b"):
        console.show(make_status(name, state="downloading", done_bytes=512, total_bytes=1024), 1.0)
    console.forget("a")
    assert terminal.bar.startswith("b #")
    console.forget("b")
    assert terminal.bar == ""


def test_the_line_of_downloads_has_no_character_whose_width_a_terminal_chooses():
    both = [make_status(name, state="downloading", done_bytes=768, total_bytes=1024) for name in ("bge-m3", "gte-zh")]
    shown = render_downloads(both, 120)
    assert shown.count("  75 % 768 B of 1.0 KiB") == 2
    assert {unicodedata.east_asian_width(one) for one in shown} == {"Na"}  # always one cell


BAR = "#" * 18 + "-" * 6


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (120, f"bge-m3 {BAR}  75 % 768 B of 1.0 KiB   gte-zh {BAR}  75 % 768 B of 1.0 KiB"),
        (79, "bge-m3  75 % 768 B of 1.0 KiB   gte-zh  75 % 768 B of 1.0 KiB"),
        (40, "bge-m3  75 %   gte-zh  75 %"),
        (20, "bge-m3  75 %   gte-z"),
    ],
)
def test_of_two_downloads_on_a_narrow_terminal_both_are_seen(columns, shown):
    both = [make_status(name, state="downloading", done_bytes=768, total_bytes=1024) for name in ("bge-m3", "gte-zh")]
    assert render_downloads(both, columns) == shown
