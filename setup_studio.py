"""Makes .venv, installs what is missing and goes on to the page, the tests or the demo; standard library only.

setup.sh and setup.bat find a Python and call this file. Everything that asks the machine (programs, disk, platform)
goes through a `Machine`, so that the tests can put another one in its place.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import host

ROOT = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
BITSANDBYTES = "bitsandbytes==0.50.2"
TORCH_INDEX = "https://download.pytorch.org/whl/"
OLDEST, NEWEST = (3, 11), (3, 13)
MIB = 1024**2
GIB = 1024**3


class SetupError(Exception):
    """A step that failed: what happened and what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}\n  What to do: {remedy}")


# ---------------------------------------------------------------------------------------------------------------------
# The machine
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """A program that has ended."""

    code: int
    output: str


class Machine:
    """The computer we run on: the one place where this script starts programs or looks around."""

    system = platform.system()  # Linux, Darwin or Windows
    processor = platform.machine().lower()
    python = sys.version_info[:2]

    def ask(self, argv: Sequence[str], *, seconds: float = 60) -> Ran:
        """Run a short program and hand back what it said; a missing program is code 127."""
        try:
            done = subprocess.run(
                list(argv),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=seconds,
                encoding="utf-8",
                errors="replace",
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Ran(127, str(error))
        return Ran(done.returncode, done.stdout)

    def work(self, argv: Sequence[str], log: Path) -> Ran:
        """Run a long program: everything into the log, the lines a person wants to see onto the screen."""
        lines: list[str] = []
        with (
            log.open("a", encoding="utf-8") as file,
            subprocess.Popen(
                list(argv),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1", "DEBIAN_FRONTEND": "noninteractive"},
            ) as process,
        ):
            file.write(f"\n$ {argv}\n")
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                lines.append(line)
                if line.strip().startswith(("Downloading ", "Installing collected", "ERROR", "E: ", "Get:")):
                    say("  " + re.sub(r"-(?:py|cp)\d\S*\.whl", "", line.strip())[:110])
        return Ran(process.returncode, "".join(lines))

    def follow(self, argv: Sequence[str], *, environment: dict[str, str] | None = None) -> int:
        """Run a program on this very screen; its exit code."""
        env = {**os.environ, **(environment or {})}
        try:
            return subprocess.call(list(argv), cwd=ROOT, env=env)
        except KeyboardInterrupt:
            return 130

    def hand_over(self, argv: list[str]) -> None:
        """Become another program."""
        os.chdir(ROOT)
        host.hand_over(argv)

    def which(self, name: str) -> str | None:
        return shutil.which(name)

    def free(self, folder: Path) -> int:
        return host.free_bytes(folder)


def say(text: str) -> None:
    """One line for the person in front of the screen."""
    print(text, flush=True)  # noqa: T201


# ---------------------------------------------------------------------------------------------------------------------
# Which torch
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Build:
    """A build of torch: its tag ("cu130", "cpu", "" for the plain package), what it costs, and why it was chosen."""

    tag: str
    reason: str
    download: int
    disk: int

    @property
    def index(self) -> str:
        return TORCH_INDEX + self.tag if self.tag else ""

    @property
    def cuda(self) -> bool:
        return self.tag.startswith("cu")


# (tag, lowest driver as CUDA version, lowest and highest compute capability that the build has code for)
CUDA_BUILDS = (
    ("cu132", (13, 2), 7.5, 99.0),
    ("cu130", (13, 0), 7.5, 99.0),
    ("cu128", (12, 8), 7.5, 99.0),
    ("cu126", (12, 0), 5.0, 9.9),
)


@dataclass(frozen=True)
class Card:
    """What nvidia-smi tells: the newest CUDA its driver runs and the compute capability of the oldest card."""

    cuda: tuple[int, int]
    capability: float


def parse_cuda(text: str) -> tuple[int, int] | None:
    """The CUDA version in nvidia-smi's head line ("CUDA Version: 13.0", newer drivers "CUDA UMD Version: 13.2")."""
    found = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def parse_capability(text: str) -> float | None:
    """The lowest compute capability in the answer to --query-gpu=compute_cap, one line a card."""
    found = re.findall(r"^\s*(\d+\.\d+)\s*$", text, flags=re.MULTILINE)
    return min(map(float, found)) if found else None


def find_card(machine: Machine) -> Card | str:
    """The NVIDIA card, or the sentence that says why there is none to use."""
    if machine.system == "Darwin":
        return "macOS: one build, for the processor and Apple's graphics"
    if machine.which("nvidia-smi") is None:
        return "no NVIDIA driver found"
    answer = machine.ask(["nvidia-smi"], seconds=20)
    cuda = parse_cuda(answer.output)
    if answer.code != 0 or cuda is None:
        return "nvidia-smi is there but does not answer (is the driver loaded?)"
    query = machine.ask(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], seconds=20)
    return Card(cuda, parse_capability(query.output) or 8.0)


def choose_builds(system: str, processor: str, card: Card | str) -> list[Build]:
    """Builds of torch worth trying here, best first; the last one works everywhere."""
    if system == "Darwin":
        return [Build("", str(card), 300 * MIB, 2 * GIB)]
    reason = card if isinstance(card, str) else ""
    builds = []
    if isinstance(card, Card):
        for tag, driver, lowest, highest in CUDA_BUILDS:
            if card.cuda >= driver and lowest <= card.capability <= highest:
                why = f"driver for CUDA {card.cuda[0]}.{card.cuda[1]}, card of compute capability {card.capability}"
                builds.append(Build(tag, why, 3 * GIB, 8 * GIB))
        if processor not in ("x86_64", "amd64"):
            builds = [build for build in builds if build.tag in ("cu130", "cu132")]
        if not builds:
            reason = (
                f"the driver (CUDA {card.cuda[0]}.{card.cuda[1]}) or card (compute capability {card.capability}) is "
                "too old for this torch; a newer driver may help"
            )
    if not builds:
        builds.append(Build("cpu", reason, 600 * MIB, 3 * GIB))
    # the plain package: on Linux with CUDA libraries, on Windows without
    plain = (3 * GIB, 8 * GIB) if system == "Linux" and processor == "x86_64" else (600 * MIB, 3 * GIB)
    return [*builds, Build("", "PyTorch's own index does not answer", *plain)]


# ---------------------------------------------------------------------------------------------------------------------
# Checks before anything is installed
# ---------------------------------------------------------------------------------------------------------------------


def check_python(version: tuple[int, int]) -> None:
    if not OLDEST <= version <= NEWEST:
        raise SetupError(
            f"Python {version[0]}.{version[1]} does not fit; 3.11, 3.12 or 3.13 is needed.",
            "start setup.sh or setup.bat, which look for one and say how to get it.",
        )


def check_venv_module(machine: Machine) -> None:
    """Debian and Ubuntu keep what makes virtual environments in a package of its own."""
    if machine.ask([sys.executable, "-c", "import ensurepip, venv"]).code:
        name = f"python{machine.python[0]}.{machine.python[1]}-venv"
        raise SetupError(
            f"{sys.executable} cannot make virtual environments (no ensurepip).",
            f"sudo apt-get update && sudo apt-get install -y {name}, then run this again.",
        )


def check_path(root: Path) -> None:
    if os.pathsep in str(root):
        raise SetupError(
            f"The folder's path has a '{os.pathsep}' in it ({root}); Python makes no virtual environment there.",
            "move the studio to a folder without it.",
        )
    if not host.is_writable(root):
        raise SetupError(f"Nothing can be written in {root}.", "move the studio to a folder of your own.")


def amount(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MB"


def check_disk(build: Build, free: int, root: Path) -> str:
    """The sentence about download and disk, or an error when the disk is too small."""
    text = (
        f"About {amount(build.download)} to download, {amount(build.disk)} on disk; {amount(free)} are free in {root}."
    )
    if free < build.disk:
        raise SetupError(
            text + " That is too little.",
            "free some space, or move the studio to another disk and start setup there.",
        )
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Installing
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Studio:
    """The folders and files that set-up owns; it writes nothing outside .venv."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return host.venv_python(self.venv)

    @property
    def log(self) -> Path:
        return self.venv / "setup.log"

    @property
    def stamp(self) -> Path:
        return self.venv / "setup-stamp.json"

    def pip(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]


def wanted_stamp(studio: Studio, *, dev: bool) -> dict[str, object]:
    """What an up-to-date .venv was made from; it moves with requirements, this script's torch and the folder."""
    digest = hashlib.sha256(TORCH.encode())
    for name in ("requirements.txt", *(["requirements-dev.txt"] if dev else [])):
        digest.update((studio.root / name).read_bytes().replace(b"\r\n", b"\n"))
    return {"requirements": digest.hexdigest(), "root": str(studio.root), "dev": dev}


def read_stamp(studio: Studio) -> dict[str, object]:
    try:
        stamp = json.loads(studio.stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_installed(studio: Studio, *, dev: bool) -> bool:
    """Whether .venv already holds what is asked for; one with the test tools serves the page as well."""
    stamp = read_stamp(studio)
    key = "with_dev" if dev else "without_dev"
    return studio.python.exists() and stamp.get(key) == wanted_stamp(studio, dev=dev)


def write_stamp(studio: Studio, *, dev: bool) -> None:
    stamp = {"without_dev": wanted_stamp(studio, dev=False)}
    if dev:
        stamp["with_dev"] = wanted_stamp(studio, dev=True)
    temporary = studio.stamp.with_suffix(".tmp")
    temporary.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    temporary.replace(studio.stamp)


def step(machine: Machine, studio: Studio, argv: list[str], *, what: str, remedy: str) -> str:
    """Run one step of the installation; its failure ends set-up with the last lines, the remedy and the log."""
    ran = machine.work(argv, studio.log)
    if ran.code:
        tail = "\n    ".join(ran.output.strip().splitlines()[-5:])
        raise SetupError(
            f"{what} failed (exit code {ran.code}):\n    {tail}", f"{remedy} Everything said is in {studio.log}."
        )
    return ran.output


NETWORK_REMEDY = "check the network (behind a proxy set HTTPS_PROXY), then run the same command again; it goes on."


def make_venv(machine: Machine, studio: Studio) -> None:
    studio.venv.mkdir(exist_ok=True)
    if studio.python.exists() and machine.ask([str(studio.python), "-m", "pip", "--version"]).code == 0:
        return
    say(f"Making {studio.venv}")
    step(
        machine,
        studio,
        [sys.executable, "-m", "venv", str(studio.venv)],
        what="Making the virtual environment",
        remedy=f"delete the folder {studio.venv} and run this again.",
    )


def offers(text: str, tag: str) -> bool:
    """Whether the answer of `pip index versions torch` lists the build of our torch that has the tag."""
    available = re.search(r"^Available versions:(.*)$", text, flags=re.MULTILINE)
    version = TORCH.partition("==")[2]
    return available is not None and f"{version}+{tag}" in [word.strip() for word in available[1].split(",")]


def find_build(machine: Machine, studio: Studio, builds: list[Build]) -> Build:
    """The first build that can be had: quick looks at the indexes, without pip's long retries."""
    if builds[0].tag == "cpu":  # a wheel that this machine's pip settings offer (find-links) needs no index at all
        local = machine.ask(studio.pip("index", "versions", "torch", "--no-index"))
        if local.code == 0 and offers(local.output, "cpu"):
            say("A CPU build of torch lies in the folder that pip's settings name; it is taken.")
            return Build("", builds[0].reason, builds[0].download, builds[0].disk)
    for build in builds[:-1]:
        look = studio.pip("index", "versions", "torch", "--index-url", build.index, "--retries", "0", "--timeout", "15")
        answer = machine.ask(look, seconds=40)
        if answer.code == 0 and offers(answer.output, build.tag):
            return build
    if len(builds) > 1:
        say(f"{TORCH_INDEX}{builds[0].tag} does not answer; the plain torch package is taken instead.")
    return builds[-1]


def install_torch(machine: Machine, studio: Studio, build: Build) -> None:
    """The build with its tag in the version, so that another build that is there already gives way."""
    arguments = [f"{TORCH}+{build.tag}", "--index-url", build.index] if build.tag else [TORCH]
    step(machine, studio, studio.pip("install", *arguments), what="Installing torch", remedy=NETWORK_REMEDY)


XFORMERS_TEST = (
    "import torch, xformers.ops as o; x = torch.ones(1, 16, 2, 16, device='cuda', dtype=torch.float16); "
    "o.memory_efficient_attention(x, x, x)"
)


def install_extras(machine: Machine, studio: Studio, build: Build) -> None:
    """xformers and bitsandbytes, where a ready wheel fits this torch; their failure is one line and nothing more."""
    if not build.cuda or machine.processor not in ("x86_64", "amd64"):
        return
    index = ["--extra-index-url", build.index]
    wheel = ["install", "--only-binary", ":all:"]
    extras = {
        "bitsandbytes": (studio.pip(*wheel, "--no-deps", BITSANDBYTES), "import bitsandbytes"),
        "xformers": (studio.pip(*wheel, *index, "xformers", TORCH), XFORMERS_TEST),
    }
    for name, (install, test) in extras.items():
        if machine.work(install, studio.log).code:
            say(f"{name}: no wheel fits here; the studio works without it.")
        elif machine.work([str(studio.python), "-c", test], studio.log).code:
            machine.work(studio.pip("uninstall", "-y", name), studio.log)
            say(f"{name}: its wheel does not work with this torch and was removed; the studio works without it.")


def add_project(studio: Studio) -> None:
    """Make `python -m trainer` work from every folder: a .pth file, in ASCII whatever the path is written in."""
    libraries = "Lib" if host.WINDOWS else next((studio.venv / "lib").glob("python3.*")).relative_to(studio.venv)
    target = studio.venv / libraries / "site-packages" / "studio.pth"
    target.write_text(f"import sys; sys.path.append({ascii(str(studio.root))})\n", encoding="ascii")


def install(machine: Machine, studio: Studio, *, dev: bool) -> None:
    """Bring .venv up to date."""
    check_path(studio.root)
    check_venv_module(machine)
    started = time.monotonic()
    card = find_card(machine)
    builds = choose_builds(machine.system, machine.processor, card)
    say(f"torch: {builds[0].tag or 'the plain package'} ({builds[0].reason})")
    say(check_disk(builds[0], machine.free(studio.root), studio.root))
    make_venv(machine, studio)
    build = find_build(machine, studio, builds)
    if build.disk > builds[0].disk:
        say(check_disk(build, machine.free(studio.root), studio.root))
    install_torch(machine, studio, build)
    say("Installing the packages in requirements.txt")
    files = ["-r", str(studio.root / "requirements.txt")]
    if dev:
        files += ["-r", str(studio.root / "requirements-dev.txt")]
    step(machine, studio, studio.pip("install", *files), what="Installing the packages", remedy=NETWORK_REMEDY)
    install_extras(machine, studio, build)
    add_project(studio)
    write_stamp(studio, dev=dev)
    say(f"Installed in {time.monotonic() - started:.0f} s.")


# ---------------------------------------------------------------------------------------------------------------------
# The tests
# ---------------------------------------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser(machine: Machine) -> str | None:
    return next((found for name in BROWSERS if (found := machine.which(name))), None)


def install_browser(machine: Machine, studio: Studio) -> bool:
    """Debian's Chromium for the browser tests; False, with a sentence, where it cannot be had."""
    if find_browser(machine):
        return True
    if machine.which("apt-get") is None:
        say("The browser tests need Chromium: install it with your system's packages. They are skipped.")
        return False
    sudo = [] if host.is_root() else ["sudo", "-n"]
    say("Installing Chromium for the browser tests (apt-get)")
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        if machine.work([*sudo, "apt-get", "-q", *arguments], studio.log).code:
            say(
                "Chromium could not be installed; do it yourself with: sudo apt-get install -y chromium "
                f"(what apt-get said is in {studio.log}). The browser tests are skipped."
            )
            return False
    return find_browser(machine) is not None


def test_commands(python: Path) -> dict[str, list[str]]:
    """The whole test command: every check by name, in order. Two workers of one thread; what measures time, alone."""
    run = [str(python), "-m"]
    imports = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    return {
        "ruff check": [*run, "ruff", "check", "."],
        "ruff format": [*run, "ruff", "format", "--check", "."],
        "mypy": [*run, "mypy"],
        "import-linter": [str(python), "-c", imports],
        "tests": [*run, "pytest", "-n", "2", "--durations", "15", "-m", "not timing"],
        "timing tests": [*run, "pytest", "--durations", "15", "-m", "timing"],
    }


def run_tests(machine: Machine, studio: Studio, *, in_ci: bool) -> int:
    """Run every check, say how each ended, and pass on the first exit code that is not 0."""
    has_browser = install_browser(machine, studio)
    environment = {"OMP_NUM_THREADS": "1"}
    codes = {}
    for name, argv in test_commands(studio.python).items():
        say(f"\n== {name}")
        codes[name] = machine.follow(argv, environment=environment)
        if codes[name] == 130:
            break
    say("")
    for name, code in codes.items():
        say(f"{'ok    ' if code == 0 else 'FAILED'} {name}")
    if in_ci and not has_browser:
        say("FAILED no browser: in CI (the variable CI is set) the browser tests may not be skipped")
        codes["browser"] = 1
    return next((code for code in codes.values() if code), 0)


# ---------------------------------------------------------------------------------------------------------------------
# The demo, and the command line
# ---------------------------------------------------------------------------------------------------------------------


def demo_command(studio: Studio, run_folder: Path, *, threads: int) -> list[str]:
    """Train the example, in a run folder of its own and under a name that no earlier demo has taken."""
    launch = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [
        *(
            str(studio.python),
            "-m",
            "accelerate.commands.launch",
            *launch,
            "--num_cpu_threads_per_process",
            str(threads),
        ),
        *("-m", "trainer", "train_network", "--config_file", "config_files/example_lora.toml"),
        *("--run_dir", str(run_folder), "--output_name", run_folder.name),
    ]


def run_demo(machine: Machine, studio: Studio) -> int:
    run_folder = studio.root / "runs" / time.strftime("%Y%m%d-%H%M%S-demo")
    code = machine.follow(demo_command(studio, run_folder, threads=os.cpu_count() or 1))
    if code:
        say(f"The demo ended with exit code {code}; what it wrote is in {run_folder}.")
        return code
    pictures = sorted((run_folder / "samples").rglob("*.png"))
    say(f"\nTrained. {len(pictures)} pictures, before and after, are in {run_folder / 'samples'}")
    say(f"The finished LoRA: {studio.root / 'outputs'}")
    return 0


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="setup",
        allow_abbrev=False,
        description="Install the studio into .venv and open its page; every other flag goes to gui.py "
        "(--no-launch, --listen ADDRESS, --port N, --share, ...).",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--test", action="store_true", help="install what the tests need and run them all")
    mode.add_argument("--demo", action="store_true", help="train the example without a browser")
    mode.add_argument("--install-only", action="store_true", help="install and stop")
    parser.add_argument("--reinstall", action="store_true", help="install again, after a new driver for instance")
    return parser.parse_known_args(argv)


def main(argv: Sequence[str], machine: Machine, studio: Studio) -> int:
    options, rest = parse(argv)
    try:
        check_python(machine.python)
        if rest and (options.test or options.demo or options.install_only):
            raise SetupError(f"Unknown flags: {' '.join(rest)}.", "see ./setup.sh --help.")
        if options.reinstall or not is_installed(studio, dev=options.test):
            install(machine, studio, dev=options.test)
    except SetupError as error:
        say(f"\n{error}")
        return 1
    if options.install_only:
        return 0
    if options.test:
        return run_tests(machine, studio, in_ci=bool(os.environ.get("CI")))
    if options.demo:
        return run_demo(machine, studio)
    machine.hand_over([str(studio.python), str(studio.root / "gui.py"), *rest])
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a console that cannot write a path's letters
    sys.exit(main(sys.argv[1:], Machine(), Studio(ROOT)))
