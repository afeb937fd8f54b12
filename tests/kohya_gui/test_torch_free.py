"""The page's process never holds torch or anything that does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "onnxruntime", "torchvision", "safetensors.torch")
SCRIPT = """
import json, sys
from pathlib import Path
import kohya_gui.app
from kohya_gui.settings import Settings
after_import = sorted(sys.modules)
kohya_gui.app.build(Settings.of(Path(sys.argv[1])))
print(json.dumps([after_import, sorted(sys.modules)]))
"""


def test_page_imports_no_torch(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    argv = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    imported, built = json.loads(done.stdout.splitlines()[-1])
    assert not set(HEAVY) & set(imported)
    assert not set(HEAVY) & set(built)
