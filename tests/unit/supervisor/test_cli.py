"""What the command refuses before it starts anything."""

import io
import os
import pwd
import signal
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from emb_model_provider.errors import ConfigurationError
from supervisor import cli
from supervisor.machine import Machine
from supervisor.output import Output


def test_an_environment_in_which_supervisord_shares_our_folder_is_refused_with_what_to_do(
    tmp_path, monkeypatch, capsys
):
    stranger = tmp_path / "supervisor-4.2.5.dist-info"
    stranger.mkdir()
    (stranger / "METADATA").write_text("Metadata-Version: 2.1\nName: supervisor\nVersion: 4.2.5\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert cli.main(["--check"]) == 78
    assert "pip uninstall supervisor" in capsys.readouterr().err


def test_a_user_without_an_account_and_a_home_can_serve(monkeypatch, tmp_path, capsys):
    def unknown(_uid):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    assert cli.main(["--check"]) == 0
    assert os.environ["HOME"] == "/"
    assert "valid" in capsys.readouterr().out


def test_where_no_temporary_directory_can_be_written_to_the_run_directory_is_one(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", "/theirs")
    cli._fill_temporary_directory(tmp_path)
    assert os.environ["TMPDIR"] == "/theirs"

    def refuse():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    cli._fill_temporary_directory(tmp_path)
    assert os.environ["TMPDIR"] == str(tmp_path)


@pytest.mark.parametrize(("encoding", "shown"), [("gbk", "模型 ██?"), ("latin-1", "?? ???"), ("utf-8", "模型 ██░")])
def test_a_terminal_of_any_encoding_gets_every_line(monkeypatch, tmp_path, encoding, shown):
    monkeypatch.chdir(tmp_path)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["--check"]) == 0
    output = Output("", terminal, terminal)
    output.say("模型 ██░")
    output.close()
    assert shown in terminal.buffer.getvalue().decode(encoding)


def test_a_certificate_that_cannot_be_used_is_named_with_its_place_among_all_other_mistakes(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cert.pem").write_text("nothing")
    text = "EMB_PROVIDER_PORT=x\nEMB_PROVIDER_TLS_CERT_FILE=cert.pem\nEMB_PROVIDER_TLS_KEY_FILE=key.pem\n"
    (tmp_path / ".env").write_text(text)
    assert cli.main(["--check"]) == 78
    wrong_port, wrong_files = capsys.readouterr().err.splitlines()
    assert "EMB_PROVIDER_PORT" in wrong_port
    assert "EMB_PROVIDER_TLS_CERT_FILE (.env:2) and EMB_PROVIDER_TLS_KEY_FILE (.env:3): " in wrong_files
    assert "key.pem cannot be read: No such file" in wrong_files
    (tmp_path / "key.pem").write_text("nothing")
    assert cli.main(["--check"]) == 78
    assert "cert.pem and key.pem cannot be used: " in capsys.readouterr().err


def test_a_check_warns_of_a_server_that_would_be_open_to_the_network_as_a_start_does(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMB_PROVIDER_HOST", "0.0.0.0")
    assert cli.main(["--check"]) == 0
    assert "warning: open to the network: listening on 0.0.0.0 without a key; " in capsys.readouterr().err
    monkeypatch.setenv("EMB_PROVIDER_API_KEYS", "hush")
    assert cli.main(["--check"]) == 0
    assert capsys.readouterr().err == ""


def test_more_threads_than_cpus_are_warned_of_by_the_check_and_at_each_reading(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMB_PROVIDER_MODEL_MAPPING", '{"a": {"name": "/models/a", "cpus": "0", "threads": 500}}')
    monkeypatch.setattr(cli, "read_machine", lambda _: Machine((0, 1), 2, ()))
    assert cli.main(["--check"]) == 0
    assert "warning: Model 'a' has threads = 500 and 1 CPU: " in capsys.readouterr().err
    assert "threads = 500" in cli._loader(None)()[0].warnings[0]


def test_settings_from_a_pipe_are_read_at_the_start_and_never_again_as_empty(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"EMB_PROVIDER_API_KEYS=hush\n")
    os.close(writing)
    try:
        load = cli._loader(Path(f"/dev/fd/{reading}"))
        assert load()[0].server.api_keys == ("hush",)
        with pytest.raises(ConfigurationError, match="it is a pipe"):
            load()
    finally:
        os.close(reading)


@pytest.mark.parametrize("name", ["API_KEYS_FILE", "TLS_CERT_FILE"])
@pytest.mark.timeout(10)
def test_a_pipe_that_a_reload_finds_in_a_setting_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "my.env"
    path.touch()
    load = cli._loader(path)
    load()
    path.write_text(f"EMB_PROVIDER_{name}={tmp_path / 'pipe'}\n")
    with pytest.raises(ConfigurationError, match=rf"EMB_PROVIDER_{name} \(.*my.env:1\): .*it is a pipe"):
        load()


def test_a_result_that_cannot_be_written_is_told_in_a_sentence_and_is_no_success(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it is an error, too
    monkeypatch.setattr(sys, "stdout", full)
    assert cli.main(["--check"]) == 1
    with pytest.raises(OSError, match="No space"):
        full.close()
    assert capsys.readouterr().err.startswith("The result cannot be written: ")


@pytest.mark.parametrize(("arguments", "code"), [(["--check"], 78), (["status"], 3)])
def test_the_exit_code_says_what_goes_wrong_also_where_no_sentence_can(monkeypatch, tmp_path, arguments, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMB_PROVIDER_PORT", "x")
    monkeypatch.setenv("EMB_PROVIDER_RUN_DIR", str(tmp_path / "nobody"))
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115 - closing it is an error, too
    monkeypatch.setattr(sys, "stderr", full)
    assert cli.main(arguments) == code
    assert sys.stderr is None, "Python would flush it at its end, fail, and exit with 120"
    with pytest.raises(OSError, match="No space"):
        full.close()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_a_full_disk_does_not_take_of_a_servers_lines_is_no_failure_of_its_stop(monkeypatch, name):
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it is an error, too
    monkeypatch.setattr(sys, name, full)
    output = Output("", sys.stdout, sys.stderr)
    output.say("one line")
    output.log("another")
    cli._close(output)
    assert getattr(sys, name) is None, "Python would flush it at its end, fail, and exit with 120"
    with pytest.raises(OSError, match="No space"):
        full.close()


@pytest.mark.parametrize("name", ["XDG_RUNTIME_DIR", "XDG_CACHE_HOME"])
def test_a_directory_that_processes_could_not_be_told_of_is_refused_before_any_is_made(
    monkeypatch, tmp_path, short_path, capsys, name
):
    in_gbk = os.fsdecode(os.fsencode(short_path) + "/张".encode("gbk"))
    Path(in_gbk).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", tempfile.gettempdir())
    monkeypatch.setenv(name, in_gbk)
    monkeypatch.chdir(tmp_path)
    mask, handler = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGCHLD)
    try:
        assert cli.main([]) == 78
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, handler)
    said = capsys.readouterr().err
    assert "\\udcd5\\udcc5" in said
    assert "its name holds bytes that are not UTF-8" in said
    assert not list(Path(in_gbk).iterdir())


@pytest.mark.parametrize("arguments", [["--port", "9300"], ["--port=9300"], ["--check", "--port", "9300"]])
def test_a_setting_given_as_an_option_is_refused_with_what_to_write(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith("--port is no option but a setting: set EMB_PROVIDER_PORT in the environment or in .env\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--check"], "--check belongs before the command: emb-provider --check …\n"),
        (["status", "--env-file=my.env"], "--env-file=my.env belongs before the command: "),
        (["status", "--jsn"], "unrecognized arguments: --jsn\n"),
        (["--check", "stop"], "--check does nothing but check the settings: leave out either it or 'stop'\n"),
    ],
)
def test_an_option_in_the_wrong_place_is_refused_and_the_command_not_carried_out(capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(cli, "run_command", lambda _: pytest.fail("it was carried out"))
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_run_directory_is_an_option_of_commands_still(tmp_path, capsys):
    assert cli.main(["status", "--run-dir", str(tmp_path)]) == 3
    assert f"No server is running with the run directory {tmp_path}." in capsys.readouterr().err


def test_a_start_without_a_thread_for_its_lines_is_refused_with_the_limits_to_raise(monkeypatch, tmp_path, capsys):
    def refuse_to_start(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMB_PROVIDER_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("EMB_PROVIDER_UNIX_SOCKET", str(tmp_path / "front.sock"))
    monkeypatch.setenv("EMB_PROVIDER_PORT", "0")
    monkeypatch.setattr(threading.Thread, "start", refuse_to_start)
    mask, handler = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert cli.main([]) == 1
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "else no exit code of a child would be had"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, handler)
    assert "cannot start: can't start new thread: raise the limit of processes (ulimit -u" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "front.sock").exists()


@pytest.mark.parametrize(("set_to", "kept"), [(0o777, 0o077), (0o022, 0o022), (0o127, 0o027)])
def test_what_the_server_makes_is_its_own_to_use_whatever_the_umask(monkeypatch, tmp_path, set_to, kept):
    monkeypatch.chdir(tmp_path)
    before = os.umask(set_to)
    try:
        assert cli.main(["--check"]) == 0
    finally:
        found = os.umask(before)
    assert found == kept
