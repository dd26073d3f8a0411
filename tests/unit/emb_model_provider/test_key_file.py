import pytest

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.key_file import read_key_file
from emb_model_provider.settings import load_settings


def test_keys_stand_one_a_line_between_comments_and_empty_lines(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# search team\nalpha\n\n  beta  \r\nalpha\n")
    path.chmod(0o600)
    found = read_key_file(path)
    assert found.keys == ("alpha", "beta")
    assert found.warnings == ()
    assert "alpha" not in repr(found)


def test_the_mark_that_some_editors_write_first_is_part_of_no_key(tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbfalpha\r\nbeta\r\n")
    assert read_key_file(path).keys == ("alpha", "beta")


def test_a_file_that_others_can_read_is_used_and_warned_of(tmp_path):
    path = tmp_path / "keys"
    path.write_text("alpha\n")
    path.chmod(0o644)
    (warning,) = read_key_file(path).warnings
    assert f"chmod 600 {path}" in warning


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no key"),
        (b"# only a comment\n", "holds no key"),
        (b"fine\nnot\xff fine\n", "keys:2: a key may hold only visible ASCII"),
        (b'[\n  "fine",\n  "b"\n]\n', "keys:2: write the keys as they are"),
        (b'a\n"fine,b"\n', "keys:2: write the keys as they are"),
        (b"x" * 2_000_000, "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_list_of_keys_is_refused_without_showing_any(tmp_path, content, expected):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_key_file(path)
    assert expected in str(caught.value)
    assert "fine" not in str(caught.value)


def test_keys_of_the_variable_and_of_the_file_count_together(tmp_path):
    path = tmp_path / "keys"
    path.write_text("b\nc\n")
    path.chmod(0o600)
    loaded = load_settings({"EMB_PROVIDER_API_KEYS": "a,b", "EMB_PROVIDER_API_KEYS_FILE": str(path)}, None)
    assert loaded.server.api_keys == ("a", "b", "c")


def test_a_missing_file_of_keys_never_opens_the_server():
    with pytest.raises(ConfigurationError, match=r"EMB_PROVIDER_API_KEYS_FILE .*/no/such cannot be read"):
        load_settings({"EMB_PROVIDER_API_KEYS_FILE": "/no/such"}, None)
