"""What cannot be listened on is said with its name."""

import socket

import pytest

from supervisor.listening import bind_unix


def test_a_unix_socket_of_another_user_is_named(tmp_path, monkeypatch):
    def refuse(_self, _address):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        monkeypatch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(OSError, match=r"The Unix socket .*api\.sock cannot be bound: it is another user's"):
            bind_unix(path, 0o600)
