"""The guard in front of the page: start token, Host and Origin checks, brake on password guessing, headers.

The loopback address is open to every account of a shared machine and to every web site in the person's own browser.
Gradio checks neither Host nor Origin, so this ASGI middleware stands in front of it and looks at every request.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import os
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from trainer import host
from trainer.errors import RunError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
COOKIE_SECONDS = 30 * 24 * 3600
TOKEN_BYTES = 24

# Gradio needs inline scripts and styles; everything else comes from this very server, and no page may frame it.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
# A file somebody put here (an SVG, an HTML page) must not run scripts when its address is opened.
FILE_POLICY = (
    "sandbox; default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


# ---------------------------------------------------------------------------------------------------------------------
# The token
# ---------------------------------------------------------------------------------------------------------------------


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner can open."""
    folder.mkdir(parents=True, exist_ok=True)
    host.private(folder)
    return folder


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can ever read, at no moment with wider rights."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def start_token(path: Path) -> str:
    """The token in the file, made at the first start; it stays the same over restarts, so that open tabs live on."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        token = ""
    except OSError as error:
        raise RunError(
            f"the start token cannot be read: {error}", remedy=f"Delete {path} or mend its rights"
        ) from error
    if len(token) < TOKEN_BYTES:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        write_private(path, token + "\n")
    host.private(path)
    return token


# ---------------------------------------------------------------------------------------------------------------------
# Reading requests
# ---------------------------------------------------------------------------------------------------------------------


def header(scope: Scope, name: bytes) -> str | None:
    """The header's value; None when it is absent."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def host_name(authority: str | None) -> str:
    """The name in a Host header or an Origin, lower case, without scheme, port and brackets; "" if there is none."""
    if not authority:
        return ""
    text = authority if "://" in authority else f"//{authority}"
    try:
        return (urlsplit(text).hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def cookie_value(scope: Scope, name: str) -> str:
    """The value of one cookie, "" if it was not sent."""
    try:
        cookies = SimpleCookie(header(scope, b"cookie") or "")
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


@dataclass
class LoginBrake:
    """Gradio lets passwords be guessed as fast as the network goes; this allows a few wrong ones a minute."""

    allowed: int = 5
    seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    failures: list[float] = field(default_factory=list)

    def is_on(self) -> bool:
        self.failures = [when for when in self.failures if self.clock() - when < self.seconds]
        return len(self.failures) >= self.allowed

    def failed(self) -> None:
        self.failures.append(self.clock())


# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------

ANSWER = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>{head}
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 40em; margin: 4em auto; padding: 0 1em">
<h1 style="font-size: 1.3em">{title}</h1><p>{text}</p>{extra}</body></html>"""

TOKEN_FORM = """<form method="get" action=""><label>Token: <input name="token" type="password" autocomplete="off">
</label> <button>Open</button></form>"""


async def answer(
    send: Send,
    scope: Scope,
    *,
    status: int,
    title: str,
    text: str = "",
    head: str = "",
    extra: str = "",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """Send a small page of our own."""
    body = ANSWER.format(title=html.escape(title), text=html.escape(text), head=head, extra=extra).encode()
    start = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", PAGE_POLICY.encode()),
        *HEADERS,
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


# ---------------------------------------------------------------------------------------------------------------------
# The guard
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """What the guard lets through.

    hosts: names under which the page may be asked for, beside the loopback ones; ".gradio.live" allows names ending so.
    token: the start token, None when passwords (or --no-token) take its place. token_file: where a person finds it.
    root_path: the path under which a proxy shows the page, "" without one.
    """

    hosts: frozenset[str] = frozenset()
    token: str | None = None
    token_file: Path | None = None
    root_path: str = ""

    def knows_host(self, name: str) -> bool:
        return name in LOOPBACK or self.names(name)

    def names(self, name: str) -> bool:
        """Whether the name is one of those that were allowed on top of the loopback ones."""
        return name in self.hosts or any(name.endswith(known) for known in self.hosts if known.startswith("."))

    @property
    def cookie(self) -> str:
        """A name of its own for every installation: browsers mix the cookies of all ports of one address."""
        return f"studio-{hashlib.sha256((self.token or '').encode()).hexdigest()[:8]}"

    def is_token(self, text: str) -> bool:
        return self.token is not None and hmac.compare_digest(text.encode(), self.token.encode())


class Guard:
    """ASGI middleware that refuses what does not come from the person's own page."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app = app
        self.rules = rules
        self.brake = LoginBrake()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._refusal(scope, changes=True) or not self._has_token(scope):
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope, changes=scope["method"] not in ("GET", "HEAD", "OPTIONS"))
        if refusal:
            status, title, text = refusal
            await answer(send, scope, status=status, title=title, text=text)
        elif not self._has_token(scope):
            await self._without_cookie(scope, receive, send)
        elif scope["path"].rstrip("/") == "/login" and scope["method"] == "POST":
            await self._login(scope, receive, send)
        else:
            await self.app(scope, receive, self._with_headers(scope, send))

    def _refusal(self, scope: Scope, *, changes: bool) -> tuple[int, str, str] | None:
        """Why a request may not come from the person's own page; None when it may."""
        asked = host_name(header(scope, b"host"))
        if not self.rules.knows_host(asked):
            text = f"It was asked for as '{asked}'. If that is right, start the studio with --allowed-host {asked}."
            return 400, "This name is not one of ours", text
        site = header(scope, b"sec-fetch-site")
        navigates = header(scope, b"sec-fetch-mode") == "navigate" and not changes
        if site not in (None, "same-origin", "none") and not navigates:
            return 403, "Another page asked for this", "Only the studio's own page may; following a link to it is fine."
        origin = header(scope, b"origin")
        if origin is not None and host_name(origin) != asked and not self.rules.names(host_name(origin)):
            return 403, "Another web site asked for this", f"The request's origin is {origin}, the page is at {asked}."
        return None

    def _has_token(self, scope: Scope) -> bool:
        return self.rules.token is None or self.rules.is_token(cookie_value(scope, self.rules.cookie))

    async def _without_cookie(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the opened address in, answer Gradio's own two start-up questions, refuse all else."""
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        if scope["method"] == "GET" and self.rules.is_token(query.pop("token", "")):
            await self._welcome(scope, send, query)
        elif scope["method"] == "GET" and scope["path"] == "/gradio_api/startup-events":
            await self.app(scope, receive, send)  # starts the queue's workers; shows and changes nothing
        else:
            text = (
                "Open the address that stands in the terminal where the studio was started; it ends in ?token=... "
                f"The token is also in the file {self.rules.token_file}. (The other accounts of this machine can reach "
                "this port too, hence the token.)"
            )
            # Gradio's probe (HEAD /) takes 401 for "there is a server"
            status = 401 if scope["method"] == "HEAD" else 403
            await answer(send, scope, status=status, title="The start token is missing", text=text, extra=TOKEN_FORM)

    async def _welcome(self, scope: Scope, send: Send, query: dict[str, str]) -> None:
        """Hand out the cookie and go on to the clean address.

        A browser that comes from another site or from a file keeps a SameSite=Strict cookie back along redirects, so it
        gets a page that moves on by itself.
        """
        path = self.rules.root_path.rstrip("/") + "/" + scope["path"].lstrip("/\\")
        target = path + (f"?{urlencode(query)}" if query else "")
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = (
            f"{self.rules.cookie}={self.rules.token}; Path={self.rules.root_path.rstrip('/') or '/'}; "
            f"Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict{secure}"
        )
        headers: tuple[tuple[bytes, bytes], ...] = ((b"set-cookie", cookie.encode()),)
        if header(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
            refresh = f'<meta http-equiv="refresh" content="0;url={html.escape(target, quote=True)}">'
            await answer(send, scope, status=200, title="Opening the studio", head=refresh, headers=headers)
        else:
            headers += ((b"location", target.encode("latin-1", "replace")),)
            await answer(send, scope, status=303, title="Opening the studio", headers=headers)

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.brake.is_on():
            text = f"After {self.brake.allowed} wrong passwords the door stays shut for a minute."
            await answer(send, scope, status=429, title="Too many wrong passwords", text=text)
            return

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self.brake.failed()
            await send(message)

        await self.app(scope, receive, self._with_headers(scope, count))

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        policy = FILE_POLICY if scope["path"].startswith("/gradio_api/file=") else PAGE_POLICY

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = ((b"content-security-policy", policy.encode()), *HEADERS)
                names = {name for name, _ in ours}
                kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in names]
                message = {**message, "headers": [*kept, *ours]}
            await send(message)

        return send_with_headers
