"""Reads gui.py's flags and starts the page's server with the guard in front of it.

Gradio is imported only inside `serve`, after the environment variables that it reads at import are set.
"""

from __future__ import annotations

import argparse
import getpass
import html
import logging
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kohya_gui import security
from trainer import host
from trainer.errors import EXIT_CODE, ConfigError, Problem, RunError, TrainerError

if TYPE_CHECKING:
    import gradio as gr

log = logging.getLogger(__name__)

FIRST_PORT = 7860
NUM_PORTS = 100
MAX_UPLOAD = "1gb"  # one file; uploads are pictures, base models are picked on the server
CACHE_SECONDS = (3600, 24 * 3600)  # how often Gradio's copies are looked through, and how old they may get
SHARE_HOST = ".gradio.live"


@dataclass(frozen=True)
class ServerSettings:
    """What gui.py's flags say.

    home: the folder that holds settings, runs, presets and outputs. port: None for the first free one.
    auth: (name, password) pairs; () means that the start token guards the page, unless use_token is off.
    """

    home: Path
    listen: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    launch: bool = True
    use_token: bool = True
    allowed_hosts: tuple[str, ...] = ()
    root_path: str = ""
    auth: tuple[tuple[str, str], ...] = ()

    @property
    def settings_folder(self) -> Path:
        return self.home / "settings"

    @property
    def token_file(self) -> Path:
        return self.settings_folder / "token"

    @property
    def is_loopback(self) -> bool:
        return self.listen in security.LOOPBACK


# ---------------------------------------------------------------------------------------------------------------------
# Flags
# ---------------------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gui.py", allow_abbrev=False, description="Open the studio's page.")
    add = parser.add_argument
    add(
        "--listen",
        nargs="?",
        const="0.0.0.0",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default 127.0.0.1; without ADDRESS: all); other than loopback needs a password",
    )
    add("--port", type=int, metavar="N", help=f"port (default: the first free one from {FIRST_PORT})")
    add("--share", action="store_true", help="a public address by way of gradio.live; needs a password")
    add("--no-launch", action="store_true", help="open no browser, only print the address")
    add("--no-token", action="store_true", help="let every account of this machine open the page")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name under which the page is asked for, behind a proxy (may be repeated)",
    )
    add("--root-path", default="", metavar="PATH", help="the path under which a proxy shows the page, as /studio")
    add("--auth-file", type=Path, metavar="FILE", help="a file with one name:password a line")
    add("--auth-user", metavar="NAME", help="ask for this name and a password, which is typed in now")
    add(
        "--home",
        type=Path,
        metavar="FOLDER",
        help="where settings, runs and outputs are kept (default: the current folder)",
    )
    return parser  # fmt: skip


def read_passwords(path: Path) -> tuple[tuple[str, str], ...]:
    """The name:password lines of a file; blank lines and # comments are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem("auth_file", "cannot be read", str(path), "--auth-file", f"{error}")
        raise ConfigError([problem]) from error
    pairs, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not (name and colon and password):
            where = f"{path} line {number}"  # the line itself may hold a password: it is not shown
            problems.append(Problem("auth_file", "is not name:password", None, where, "Write one name:password a line"))
        pairs.append((name, password))
    if not pairs:
        problems.append(Problem("auth_file", "holds no name:password line", str(path), "--auth-file"))
    if problems:
        raise ConfigError(problems)
    return tuple(pairs)


def read_settings(argv: Sequence[str], *, home: Path, ask: Callable[[str], str] = getpass.getpass) -> ServerSettings:
    """Settings from flags; every problem at once."""
    flags = make_parser().parse_args(argv)
    auth = read_passwords(flags.auth_file) if flags.auth_file else ()
    if flags.auth_user:
        auth += ((flags.auth_user, ask(f"Password for {flags.auth_user}: ")),)
    settings = ServerSettings(
        home=(flags.home or home).absolute(),
        listen=flags.listen.strip("[]"),
        port=flags.port,
        share=flags.share,
        launch=not flags.no_launch,
        use_token=not flags.no_token,
        allowed_hosts=tuple(flags.allowed_host),
        root_path=flags.root_path,
        auth=auth,
    )
    problems = list(find_problems(settings))
    if problems:
        raise ConfigError(problems)
    return settings


def find_problems(settings: ServerSettings) -> Sequence[Problem]:
    problems = []
    remedy = "Add --auth-file FILE or --auth-user NAME; or leave it out and reach the page through ssh -L"
    if not settings.is_loopback and not settings.auth:
        text = "an address that others can reach needs a password"
        problems.append(Problem("listen", text, settings.listen, "--listen", remedy))
    if settings.share and not settings.auth:
        problems.append(Problem("share", "a public address needs a password", None, "--share", remedy))
    if settings.port is not None and not 1 <= settings.port <= 65535:
        problems.append(Problem("port", "must be between 1 and 65535", str(settings.port), "--port"))
    if any(not password for _, password in settings.auth):
        problems.append(Problem("auth_user", "the password is empty", None, "--auth-user", "Type one in"))
    if settings.root_path and not settings.root_path.startswith(("/", "http://", "https://")):
        problems.append(Problem("root_path", "must begin with /", settings.root_path, "--root-path"))
    for name in settings.allowed_hosts:
        if not security.host_name(name) or "*" in name:
            problems.append(Problem("allowed_host", "is not a host name", name, "--allowed-host"))
    return problems


# ---------------------------------------------------------------------------------------------------------------------
# Before the server starts
# ---------------------------------------------------------------------------------------------------------------------


def check_port(settings: ServerSettings) -> None:
    """A port that was asked for is used or refused, never silently replaced; said before anything slow is imported."""
    if settings.port is not None and not host.port_is_free(settings.listen, settings.port):
        message = f"port {settings.port} at {settings.listen} is taken or not allowed"
        raise RunError(message, option="port", remedy="Choose another --port, or leave it out for a free one")


def free_ports(settings: ServerSettings) -> Iterator[int]:
    """The port asked for, or the free ones from the first on; that the first is taken is said."""
    if settings.port is not None:
        yield settings.port
        return
    for port in range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        if host.port_is_free(settings.listen, port):
            if port != FIRST_PORT:
                say(f"Port {FIRST_PORT} is taken (another studio?); port {port} is used.")
            yield port


def make_rules(settings: ServerSettings) -> security.Rules:
    """What the guard lets through: the start token guards only where no password does."""
    hosts = {security.host_name(name) for name in settings.allowed_hosts}
    if settings.listen not in ("0.0.0.0", "::"):
        hosts.add(security.host_name(f"[{settings.listen}]" if ":" in settings.listen else settings.listen))
    if settings.share:
        hosts.add(SHARE_HOST)
    root_path = urlsplit(settings.root_path).path
    if settings.auth or not settings.use_token:
        return security.Rules(frozenset(hosts), root_path=root_path)
    token = security.start_token(settings.token_file)
    return security.Rules(frozenset(hosts), token, settings.token_file, root_path)


def prepare_environment(settings: ServerSettings) -> None:
    """Private folder for Gradio's copies, no statistics, no look-ups of other hosts by this process."""
    cache = security.private_folder(settings.settings_folder / "cache")
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in (
        "GRADIO_SHARE",
        "GRADIO_ALLOWED_PATHS",
        "GRADIO_SERVER_NAME",
        "GRADIO_SERVER_PORT",
        "GRADIO_ROOT_PATH",
    ):
        os.environ.pop(name, None)  # our flags decide, not a variable from elsewhere
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server over HTTP when it starts
        known = os.environ.get(name, "")
        os.environ[name] = ",".join(filter(None, (known, "127.0.0.1", "localhost", settings.listen)))


# ---------------------------------------------------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """One line for the person at the terminal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def launch_arguments(settings: ServerSettings, port: int, rules: security.Rules) -> dict[str, Any]:
    """Everything that Gradio's launch() is told."""
    from starlette.middleware import Middleware

    return {
        "server_name": settings.listen,
        "server_port": port,
        "share": settings.share,
        "auth": list(settings.auth) or None,
        "root_path": settings.root_path,
        "app_kwargs": {"middleware": [Middleware(security.Guard, rules=rules)], "openapi_url": None},
        "inbrowser": False,
        "prevent_thread_lock": True,
        "quiet": True,
        "ssr_mode": False,  # Node's own server would stand in front of the guard
        "run_history": False,  # it would write every input into the browser's storage
        "enable_monitoring": False,
        "footer_links": [],
        "strict_cors": True,
        "max_file_size": MAX_UPLOAD,
        "show_error": True,
    }


def opened_address(settings: ServerSettings, port: int, rules: security.Rules) -> str:
    """The address to open, with the token where there is one."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.listen, settings.listen)
    if ":" in name and not name.startswith("["):
        name = f"[{name}]"
    return f"http://{name}:{port}/" + (f"?token={rules.token}" if rules.token else "")


def announce(settings: ServerSettings, port: int, rules: security.Rules) -> None:
    """Open the page where a person would see it, else say how to reach it."""
    address = opened_address(settings, port, rules)
    say(f"The studio is at {address}")
    if not settings.is_loopback:
        say("It speaks plain HTTP: put a proxy with TLS in front of it where others share the network.")
    if settings.launch and host.has_display():
        open_browser(settings, address)
    elif not host.has_display():
        here = host.describe()
        say("No screen here. From your own computer, first:")
        target = "127.0.0.1" if settings.listen in ("0.0.0.0", "::") else urlsplit(address).hostname
        say(f"    ssh -L {port}:{target}:{port} {here['user']}@{here['host']}")
        say(f"then open {opened_address(replace(settings, listen='127.0.0.1'), port, rules)} in your browser.")
    say("Ctrl+C ends the page; trainings that run go on.")


def open_browser(settings: ServerSettings, address: str) -> None:
    """Open the address by way of a private file: the token in a browser's argv would be seen by every account."""
    page = settings.settings_folder / "open.html"
    target = html.escape(address, quote=True)
    meta = f'<meta http-equiv="refresh" content="0;url={target}">'
    security.write_private(page, f'<!doctype html><meta charset="utf-8">{meta}<a href="{target}">Open the studio</a>\n')
    webbrowser.open(page.as_uri())


def serve(settings: ServerSettings, build: Callable[[ServerSettings], gr.Blocks]) -> None:
    """Build the page, start the server, and wait for Ctrl+C or a signal to end."""
    if not host.is_writable(settings.home):
        remedy = "Choose a folder of your own with --home"
        raise RunError(f"nothing can be written in {settings.home}", option="home", remedy=remedy)
    check_port(settings)
    security.private_folder(settings.settings_folder)
    rules = make_rules(settings)
    prepare_environment(settings)
    blocks = build(settings)
    blocks.delete_cache = blocks.delete_cache or CACHE_SECONDS
    port = launch(blocks, settings, rules)
    announce(settings, port, rules)
    wait_for_end()
    blocks.close(verbose=False)
    say("The page has ended.")


def launch(blocks: gr.Blocks, settings: ServerSettings, rules: security.Rules) -> int:
    """Start the server and give its port; where somebody was quicker to take a free port, the next one is tried."""
    cause: OSError | None = None
    for port in free_ports(settings):
        try:
            blocks.launch(**launch_arguments(settings, port, rules))
        except OSError as error:
            cause = error
        else:
            return port
    where = f"port {settings.port}" if settings.port else f"any port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}"
    remedy = "Choose one with --port; on a very busy machine just try again"
    raise RunError(f"the server cannot listen at {settings.listen}, {where}", option="port", remedy=remedy) from cause


def wait_for_end() -> None:
    """Sleep until somebody asks us to end."""
    end = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup stays in force
            signal.signal(number, lambda *_: end.set())
    while not end.wait(timeout=1.0):  # a wait without limit would not notice Ctrl+C on Windows
        pass


def main(argv: Sequence[str], *, home: Path, build: Callable[[ServerSettings], gr.Blocks]) -> int:
    """gui.py: exit code 0 after a good end, 2 with one line for what a person can mend."""
    try:
        serve(read_settings(argv, home=home), build)
    except TrainerError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODE
    return 0
