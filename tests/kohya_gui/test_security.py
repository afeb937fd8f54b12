"""The guard against real HTTP requests to a real server on loopback, and its pure parts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kohya_gui import security
from tests.kohya_gui.page_server import PageServer, free_port

EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    flags = ("--port", str(free_port()), "--allowed-host", "studio.example")
    with PageServer(tmp_path_factory.mktemp("guarded page é"), *flags) as server:
        yield server


@pytest.fixture
def client(page: PageServer) -> Iterator[httpx.Client]:
    with page.client(signed_in=True) as signed_in:
        yield signed_in


def upload(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post("/gradio_api/upload", files={"files": ("a.txt", b"hello")}, headers=headers)


def greet(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post("/gradio_api/call/greet", json={"data": ["Ada"]}, headers=headers)


def test_without_token_every_door_is_shut(page: PageServer) -> None:
    with page.client() as client:
        for path in (
            "/",
            "/config",
            "/gradio_api/info",
            "/gradio_api/file=settings/token",
            "/theme.css",
            "/openapi.json",
        ):
            answer = client.get(path)
            assert answer.status_code == 403, path
            assert "token" in answer.text
        assert str(page.home / "settings" / "token") in client.get("/").text
        assert upload(client).status_code == 403
        assert greet(client).status_code == 403


def test_wrong_token_and_wrong_cookie(page: PageServer) -> None:
    with page.client() as client:
        assert client.get("/?token=wrong").status_code == 403
        assert client.get("/?token=").status_code == 403
        rules = security.Rules(token=page.token)
        assert client.get("/", cookies={rules.cookie: "wrong"}).status_code == 403


def test_opened_address_gives_a_strict_cookie_and_a_clean_address(page: PageServer) -> None:
    with page.client() as client:
        answer = client.get("/", params={"token": page.token, "tab": "train"})
        assert answer.status_code == 303
        assert answer.headers["location"] == "/?tab=train"
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert client.get("/").status_code == 200
        assert greet(client).status_code == 200


def test_arriving_from_another_site_the_page_moves_on_by_itself(page: PageServer) -> None:
    """A browser would hold the Strict cookie back along a redirect that another site began."""
    with page.client() as client:
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        answer = client.get("/", params={"token": page.token}, headers=headers)
        assert answer.status_code == 200
        assert 'http-equiv="refresh" content="0;url=/"' in answer.text
        assert "SameSite=Strict" in answer.headers["set-cookie"]


def test_the_way_on_stays_on_this_server(page: PageServer) -> None:
    with page.client() as client:
        answer = client.get(f"{page.address}//evil.example/", params={"token": page.token})
        assert answer.headers["location"] == "/evil.example/"


def test_foreign_host_is_refused(client: httpx.Client) -> None:
    for name in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[bad"):
        assert client.get("/", headers={"host": name}).status_code == 400, name


def test_own_and_allowed_hosts_pass(client: httpx.Client, page: PageServer) -> None:
    for name in ("localhost", f"localhost:{page.port}", "127.0.0.1:9000", "[::1]:80", "LOCALHOST", "studio.example"):
        cookie = f"{security.Rules(token=page.token).cookie}={page.token}"
        assert client.get("/", headers={"host": name, "cookie": cookie}).status_code == 200, name


def test_foreign_origin_changes_nothing(client: httpx.Client) -> None:
    for origin in (EVIL, "null", "http://127.0.0.1.evil.example", "https://localhost.evil.example"):
        assert greet(client, origin=origin).status_code == 403, origin
        assert upload(client, origin=origin).status_code == 403, origin


def test_cross_site_requests_change_nothing(client: httpx.Client) -> None:
    assert upload(client, **{"sec-fetch-site": "cross-site"}).status_code == 403
    assert greet(client, **{"sec-fetch-site": "cross-site"}).status_code == 403
    assert (
        client.get("/config", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}).status_code == 403
    )


def test_another_port_of_this_machine_gets_nothing(client: httpx.Client) -> None:
    assert client.get("/config", headers={"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}).status_code == 403
    assert client.get("/", headers={"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"}).status_code == 200
    assert upload(client, **{"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:9999"}).status_code == 403


def test_own_origin_and_tunnelled_origin_pass(client: httpx.Client, page: PageServer) -> None:
    """Behind ssh -L or an editor's port forwarding the browser sees another port than the server."""
    for origin in (page.address, "http://127.0.0.1:9999", "http://127.0.0.1"):
        assert greet(client, origin=origin, **{"sec-fetch-site": "same-origin"}).status_code == 200, origin
        assert upload(client, origin=origin).status_code == 200, origin


def test_proxy_under_an_allowed_name(client: httpx.Client) -> None:
    assert greet(client, origin="https://studio.example").status_code == 200


def test_headers_on_every_answer(client: httpx.Client) -> None:
    for path in ("/", "/config", "/nowhere"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_a_picture_with_a_script_is_served_in_a_sandbox(client: httpx.Client, page: PageServer) -> None:
    picture = page.home / "settings" / "cache" / "picture.svg"
    answer = client.get(f"/gradio_api/file={picture}")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


def test_files_of_the_home_folder_are_not_served(client: httpx.Client, page: PageServer) -> None:
    for path in (page.home / "settings" / "token", page.home / "output.txt", Path("/etc/passwd")):
        assert client.get(f"/gradio_api/file={path}").status_code == 403, path


def test_closed_side_doors(client: httpx.Client) -> None:
    assert client.get("/openapi.json").status_code == 404
    assert client.get("/monitoring/summary").status_code in (403, 404)
    assert client.get("/gradio_api/runs").status_code == 404


def test_uploads_land_in_the_private_folder(client: httpx.Client, page: PageServer) -> None:
    stored = Path(upload(client).json()[0])
    cache = page.home / "settings" / "cache"
    assert stored.is_relative_to(cache)
    if sys.platform != "win32":
        assert cache.stat().st_mode & 0o777 == 0o700


def test_the_server_asks_no_other_host(page: PageServer, client: httpx.Client) -> None:
    client.get("/")
    seen = set((page.home / "connections.txt").read_text(encoding="utf-8").split())
    assert seen <= {"127.0.0.1", "localhost"}, seen


# ---- pure parts


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("127.0.0.1:7860", "127.0.0.1"),
        ("[::1]:7860", "::1"),
        ("https://Studio.Example.:8443", "studio.example"),
        ("null", "null"),
        ("", ""),
        (None, ""),
        ("[broken", ""),
        ("user@evil.example", "evil.example"),
    ],
)
def test_host_name(authority: str | None, name: str) -> None:
    assert security.host_name(authority) == name


def test_known_hosts() -> None:
    rules = security.Rules(hosts=frozenset({".gradio.live", "studio.example"}))
    assert rules.knows_host("abc.gradio.live")
    assert not rules.knows_host("gradio.live.evil.example")
    assert not rules.knows_host("")


def test_token_file_is_private_and_kept(tmp_path: Path) -> None:
    first = security.start_token(tmp_path / "token")
    assert security.start_token(tmp_path / "token") == first
    assert len(first) >= 32
    if sys.platform != "win32":
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_a_damaged_token_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short")
    assert len(security.start_token(tmp_path / "token")) >= 32


def test_login_brake_lets_go_after_a_minute() -> None:
    now = [0.0]
    brake = security.LoginBrake(allowed=2, clock=lambda: now[0])
    brake.failed()
    assert not brake.is_on()
    brake.failed()
    assert brake.is_on()
    now[0] = 61.0
    assert not brake.is_on()


def test_websockets_are_guarded_too() -> None:
    sent: list[dict] = []

    async def run() -> None:
        async def app(scope: dict, receive: object, send: object) -> None:
            raise AssertionError("must not be reached")

        async def send(message: dict) -> None:
            sent.append(message)

        guard = security.Guard(app, security.Rules())
        headers = [(b"host", b"localhost"), (b"origin", EVIL.encode())]
        await guard({"type": "websocket", "headers": headers, "path": "/"}, None, send)

    with ThreadPoolExecutor(1) as thread:  # the browser tests of the same process have a loop in this one
        thread.submit(asyncio.run, run()).result()
    assert sent == [{"type": "websocket.close", "code": 1008}]
