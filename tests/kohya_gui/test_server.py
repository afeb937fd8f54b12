"""gui.py's flags, and what the server does with them in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kohya_gui import server
from tests.kohya_gui.page_server import ROOT, PageServer, ended, free_port
from trainer.errors import ConfigError, RunError


def read(tmp_path: Path, *flags: str, password: str = "secret") -> server.ServerSettings:
    return server.read_settings(flags, home=tmp_path, ask=lambda prompt: password)


def test_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert settings == server.ServerSettings(home=tmp_path)
    assert settings.is_loopback and settings.launch and settings.use_token


def test_the_readme_names_every_flag_and_help_needs_no_gradio(tmp_path: Path) -> None:
    code = "import sys, runpy; sys.argv = ['gui.py', '--help']\n"
    code += f"try: runpy.run_path({str(ROOT / 'gui.py')!r}, run_name='__main__')\n"
    code += "finally: assert 'gradio' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    text = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True)
    known = set(re.findall(r"^  (--[a-z-]+)", text, flags=re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"--port", "--auth-file"} <= known == {flag for flag in known if f"`{flag}" in readme}


def test_open_addresses_need_a_password(tmp_path: Path) -> None:
    for flags in (["--listen"], ["--listen", "192.168.1.5"], ["--share"], ["--listen", "::"]):
        with pytest.raises(ConfigError, match="needs a password.*--auth-file"):
            read(tmp_path, *flags)
    assert read(tmp_path, "--listen", "--auth-user", "ada").auth == (("ada", "secret"),)


def test_every_problem_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(
            tmp_path, "--share", "--listen", "0.0.0.0", "--port", "0", "--root-path", "studio", "--allowed-host", "*.x"
        )
    assert [p.option for p in caught.value.problems] == ["listen", "share", "port", "root_path", "allowed_host"]


def test_passwords_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "people"
    file.write_text("# who may\nada:pass:word\n\nbob:x\n", encoding="utf-8")
    assert read(tmp_path, "--auth-file", str(file)).auth == (("ada", "pass:word"), ("bob", "x"))
    file.write_text("ada\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1.*name:password") as caught:
        read(tmp_path, "--auth-file", str(file))
    assert "ada" not in str(caught.value).replace(str(tmp_path), "")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path, "--auth-file", str(tmp_path / "nothing"))


def test_an_empty_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="password is empty"):
        read(tmp_path, "--auth-user", "ada", password="")


def test_a_password_takes_the_place_of_the_token(tmp_path: Path) -> None:
    assert server.make_rules(read(tmp_path, "--auth-user", "ada")).token is None
    assert server.make_rules(read(tmp_path, "--no-token")).token is None
    assert not (tmp_path / "settings").exists()


def test_a_browser_is_opened_by_way_of_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    monkeypatch.setattr(server.host, "has_display", lambda: True)
    settings = read(tmp_path)
    server.security.private_folder(settings.settings_folder)
    rules = server.make_rules(settings)
    server.announce(settings, 7860, rules)
    page = tmp_path / "settings" / "open.html"
    assert opened == [page.as_uri()]
    assert f"http://127.0.0.1:7860/?token={rules.token}" in page.read_text(encoding="utf-8")
    if sys.platform != "win32":
        assert page.stat().st_mode & 0o777 == 0o600
    opened.clear()
    server.announce(read(tmp_path, "--no-launch"), 7860, rules)
    assert not opened


def test_listen_without_password_does_not_start(tmp_path: Path) -> None:
    code, text = ended(tmp_path, "--listen", "0.0.0.0")
    assert code == 2
    assert "needs a password" in text and "--auth-file" in text and "Traceback" not in text


def test_a_taken_port_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, text = ended(tmp_path, "--port", str(other.getsockname()[1]))
    assert code == 2
    assert "is taken" in text and "--port" in text and "Traceback" not in text


def test_a_taken_port_that_was_not_asked_for_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(server, "say", said.append)
    monkeypatch.setattr(server.host, "port_is_free", lambda address, port: port >= 7862)
    assert next(server.free_ports(read(tmp_path))) == 7862
    assert "7860 is taken" in said[0] and "7862" in said[0]


def test_a_port_that_somebody_else_was_quicker_to_take_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blocks:
        def launch(self, *, server_port: int, **_: object) -> None:
            if server_port == tried.setdefault("first", server_port):
                raise OSError("Cannot find empty port")

    tried: dict[str, int] = {}
    settings = read(tmp_path, "--no-token")
    monkeypatch.setattr(server, "say", lambda text: None)
    monkeypatch.setattr(server.host, "port_is_free", lambda address, port: True)
    assert server.launch(Blocks(), settings, server.make_rules(settings)) == server.FIRST_PORT + 1
    with pytest.raises(RunError, match="port 7999.*--port"):
        tried.clear()
        server.launch(Blocks(), read(tmp_path, "--port", "7999"), server.make_rules(settings))


def test_without_a_screen_the_way_in_is_printed_and_the_token_survives(tmp_path: Path) -> None:
    port = free_port()
    with PageServer(tmp_path, "--port", str(port)) as page:
        token = page.token
        assert f"http://127.0.0.1:{port}/?token={token}" in page.text
        assert f"ssh -L {port}:127.0.0.1:{port} " in page.text
        if sys.platform != "win32":
            assert (tmp_path / "settings" / "token").stat().st_mode & 0o777 == 0o600
        cookies = page.client(signed_in=True).cookies
        assert page.stop() == 0
    with PageServer(tmp_path, "--port", str(port)) as page, page.client() as client:
        assert page.token == token
        client.cookies = cookies
        assert client.get("/").status_code == 200


def test_passwords_guard_the_page_and_guessing_is_slowed(tmp_path: Path) -> None:
    people = tmp_path / "people"
    people.write_text("ada:right\n", encoding="utf-8")
    with PageServer(tmp_path, "--port", str(free_port()), "--auth-file", str(people)) as page:
        assert "token" not in page.text
        with page.client() as client:
            assert client.get("/config").status_code == 401
            assert client.post("/login", data={"username": "ada", "password": "right"}).status_code == 200
            assert client.get("/config").status_code == 200
        with page.client() as client:
            guesses = [
                client.post("/login", data={"username": "ada", "password": str(n)}).status_code for n in range(7)
            ]
            assert guesses == [400] * 5 + [429] * 2


def test_no_token_opens_the_door_but_keeps_the_guard(tmp_path: Path) -> None:
    with PageServer(tmp_path, "--port", str(free_port()), "--no-token") as page, page.client() as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400
        files = {"files": ("a.txt", b"hello")}
        assert (
            client.post("/gradio_api/upload", files=files, headers={"origin": "http://evil.example"}).status_code == 403
        )
