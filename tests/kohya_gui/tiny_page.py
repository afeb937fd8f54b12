"""A page of three components behind the real server: what the security tests talk to, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from kohya_gui import server


def note_connections(file: Path) -> None:
    """Write down every address that this process connects to or looks up."""

    def hook(event: str, arguments: tuple) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
            with file.open("a", encoding="utf-8") as out:
                out.write(f"{address[0] if isinstance(address, tuple) else address}\n")

    sys.addaudithook(hook)


def build(settings: server.ServerSettings):
    import gradio as gr

    secret = settings.settings_folder / "cache" / "picture.svg"
    secret.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>')
    with gr.Blocks(title="tiny", analytics_enabled=False) as page:
        name = gr.Textbox(label="Name")
        gr.File(label="File")
        greeting = gr.Textbox(label="Greeting")
        gr.Button("Greet").click(lambda text: f"hello {text}", name, greeting, api_name="greet")
    return page


if __name__ == "__main__":
    note_connections(Path.cwd() / "connections.txt")
    sys.exit(server.main(sys.argv[1:], home=Path.cwd(), build=build))
