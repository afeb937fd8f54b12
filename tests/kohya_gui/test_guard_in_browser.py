"""The guard seen from Chromium: the page works behind it, and pages from elsewhere get nothing."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.kohya_gui.page_server import PageServer, free_port

pytestmark = pytest.mark.browser

ATTACK = """<!doctype html><title>elsewhere</title><iframe id="frame" src="{address}/"></iframe><script>
async function attack() {{
  const form = new FormData(); form.append("files", new Blob(["x"]), "x.txt");
  const options = {{method: "POST", mode: "no-cors", credentials: "include", body: form}};
  await fetch("{address}/gradio_api/upload", options).catch(() => 0);
  return await fetch("{address}/config", {{credentials: "include"}}).then(r => r.status, () => "refused");
}}
</script>"""


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    with PageServer(tmp_path_factory.mktemp("guarded"), "--port", str(free_port())) as server:
        yield server


@pytest.fixture
def elsewhere(tmp_path: Path, page_server: PageServer) -> Iterator[str]:
    """Another web server of this machine, whose page attacks ours."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "index.html").write_text(ATTACK.format(address=page_server.address), encoding="utf-8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def uploads(page_server: PageServer) -> set[Path]:
    return set((page_server.home / "settings" / "cache").rglob("*.txt"))


def test_the_page_works_behind_the_guard(browser: Browser, page_server: PageServer, tmp_path: Path) -> None:
    complaints: list[str] = []
    foreign: list[str] = []
    tab = browser.new_context().new_page()
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: foreign.append(request.url) if "//127.0.0.1" not in request.url else None)
    tab.goto(f"{page_server.address}/?token={page_server.token}")
    tab.get_by_label("Name").fill("Ada")
    tab.get_by_role("button", name="Greet").click()
    tab.wait_for_function("[...document.querySelectorAll('textarea, input')].some(e => e.value == 'hello Ada')")
    (tmp_path / "caption.txt").write_text("a house")
    tab.locator("input[type=file]").first.set_input_files(tmp_path / "caption.txt")
    tab.get_by_text("caption").first.wait_for()
    assert tab.url == f"{page_server.address}/"
    assert not complaints
    assert not [url for url in foreign if not url.startswith(("data:", "blob:"))]
    tab.context.close()


def test_the_private_file_that_opens_the_page_does(browser: Browser, page_server: PageServer, tmp_path: Path) -> None:
    """A SameSite=Strict cookie must survive the way from a local file to the page."""
    target = f"{page_server.address}/?token={page_server.token}"
    (tmp_path / "open.html").write_text(f'<meta http-equiv="refresh" content="0;url={target}">')
    tab = browser.new_context().new_page()
    tab.goto((tmp_path / "open.html").as_uri())
    tab.get_by_role("button", name="Greet").wait_for()
    assert tab.url == f"{page_server.address}/"
    tab.context.close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_another_page_of_this_machine_gets_nothing(
    name: str, browser: Browser, page_server: PageServer, elsewhere: str
) -> None:
    context = browser.new_context()
    context.new_page().goto(f"{page_server.address}/?token={page_server.token}")  # the person is signed in
    before = uploads(page_server)
    tab = context.new_page()
    tab.goto(f"http://{name}:{elsewhere.partition(':')[2]}/")
    assert tab.evaluate("attack()") != 200
    assert uploads(page_server) == before
    assert "Greet" not in (tab.frames[1].content() if len(tab.frames) > 1 else "")
    context.close()
