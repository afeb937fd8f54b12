"""Set-up with a faked machine (platform, programs, nvidia-smi, disk), and the real setup.sh looking for Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import setup_studio
from setup_studio import GIB, Build, Card, Machine, Ran, SetupError, Studio
from trainer import host

ROOT = Path(__file__).resolve().parents[2]
SMI_13 = "| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0     |"
SMI_NEW = "| NVIDIA-SMI 610.10       KMD Version: 610.10       CUDA UMD Version: 13.2     |"
PIP_OFFERS = "torch (2.13.0+{tag})\nAvailable versions: 2.13.0+{tag}, 2.12.0+{tag}\n"


class FakeMachine(Machine):
    """A computer whose programs answer what the test says; it writes down what was started."""

    def __init__(
        self,
        answers: Callable[[list[str]], Ran | None] = lambda argv: None,
        *,
        system: str = "Linux",
        processor: str = "x86_64",
        python: tuple[int, int] = (3, 12),
        programs: Sequence[str] = (),
        free: int = 100 * GIB,
    ) -> None:
        self.system, self.processor, self.python = system, processor, python
        self.answers, self.programs, self.num_free = answers, programs, free
        self.asked: list[list[str]] = []
        self.worked: list[list[str]] = []
        self.followed: list[list[str]] = []
        self.handed_over: list[list[str]] = []

    def ask(self, argv: Sequence[str], *, seconds: float = 60) -> Ran:
        self.asked.append(list(argv))
        return self.answers(list(argv)) or Ran(0, "")

    def work(self, argv: Sequence[str], log: Path) -> Ran:
        self.worked.append(list(argv))
        ran = self.answers(list(argv))
        if ran is None and argv[1:3] == ["-m", "venv"]:
            make_python(Path(argv[3]))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        return ran or Ran(0, "")

    def follow(self, argv: Sequence[str], *, environment: dict[str, str] | None = None) -> int:
        self.followed.append(list(argv))
        ran = self.answers(list(argv))
        return ran.code if ran else 0

    def hand_over(self, argv: list[str]) -> None:
        self.handed_over.append(argv)

    def which(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.programs else None

    def free(self, folder: Path) -> int:
        return self.num_free

    @property
    def pip_installs(self) -> list[list[str]]:
        """What pip was told to install, without its own options."""
        return [argv[4:] for argv in self.worked if argv[1:4] == ["-m", "pip", "install"]]


def make_python(venv: Path) -> None:
    python = host.venv_python(venv)
    python.parent.mkdir(parents=True)
    python.touch()
    (venv / ("Lib" if host.WINDOWS else "lib/python3.12") / "site-packages").mkdir(parents=True)


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """A studio's folder with a blank and letters that are not ASCII, with things of the person's in it."""
    root = tmp_path / "mein Studio é 絵"
    root.mkdir()
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, root)
    for folder in ("runs", "presets", "settings", "outputs"):
        (root / folder).mkdir()
        (root / folder / "mine.txt").write_text("mine")
    return Studio(root)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def pip_index(*tags: str) -> Callable[[list[str]], Ran | None]:
    """Answers of `pip index versions torch`: only the indexes of these tags exist, and no local wheels."""

    def answer(argv: list[str]) -> Ran | None:
        if "index" not in argv:
            return None
        url = argv[argv.index("--index-url") + 1] if "--index-url" in argv else ""
        tag = url.rpartition("/")[2]
        return Ran(0, PIP_OFFERS.format(tag=tag)) if tag in tags else Ran(1, "ERROR: No matching distribution found")

    return answer


# ---- which torch


@pytest.mark.parametrize(
    ("text", "cuda"), [(SMI_13, (13, 0)), (SMI_NEW, (13, 2)), ("CUDA Version: 12.4", (12, 4)), ("no devices", None)]
)
def test_the_driver_is_read_from_nvidia_smi(text: str, cuda: tuple[int, int] | None) -> None:
    assert setup_studio.parse_cuda(text) == cuda


def test_the_oldest_card_counts() -> None:
    assert setup_studio.parse_capability("8.9\n6.1\n") == 6.1
    assert setup_studio.parse_capability("N/A") is None


@pytest.mark.parametrize(
    ("system", "processor", "card", "tags"),
    [
        ("Linux", "x86_64", "no NVIDIA driver found", ["cpu", ""]),
        ("Windows", "amd64", "no NVIDIA driver found", ["cpu", ""]),
        ("Darwin", "arm64", "macOS", [""]),
        ("Linux", "aarch64", "no NVIDIA driver found", ["cpu", ""]),
        ("Linux", "x86_64", Card((13, 2), 8.9), ["cu132", "cu130", "cu128", "cu126", ""]),
        ("Linux", "x86_64", Card((13, 0), 12.0), ["cu130", "cu128", ""]),
        ("Windows", "amd64", Card((12, 8), 8.6), ["cu128", "cu126", ""]),
        ("Linux", "x86_64", Card((12, 4), 8.6), ["cu126", ""]),
        ("Linux", "x86_64", Card((13, 0), 6.1), ["cu126", ""]),
        ("Linux", "x86_64", Card((11, 8), 8.6), ["cpu", ""]),
        ("Linux", "aarch64", Card((13, 0), 12.1), ["cu130", ""]),
    ],
)
def test_builds_by_driver_and_card(system: str, processor: str, card: Card | str, tags: list[str]) -> None:
    builds = setup_studio.choose_builds(system, processor, card)
    assert [build.tag for build in builds] == tags
    assert builds[0].reason


def test_a_card_whose_driver_does_not_answer_gets_the_cpu_build_and_a_sentence() -> None:
    machine = FakeMachine(lambda argv: Ran(9, "NVIDIA-SMI has failed"), programs=["nvidia-smi"])
    assert "does not answer" in str(setup_studio.find_card(machine))


def test_the_card_is_found() -> None:
    answers = {"nvidia-smi": Ran(0, SMI_13), "--query-gpu=compute_cap": Ran(0, "9.0\n")}
    machine = FakeMachine(lambda argv: answers.get(argv[1] if len(argv) > 1 else argv[0]), programs=["nvidia-smi"])
    assert setup_studio.find_card(machine) == Card((13, 0), 9.0)


def test_the_first_index_that_has_the_build_is_taken(studio: Studio) -> None:
    machine = FakeMachine(pip_index("cu128"))
    builds = setup_studio.choose_builds("Linux", "x86_64", Card((13, 0), 8.6))
    assert setup_studio.find_build(machine, studio, builds).tag == "cu128"
    assert all("--retries" in argv and "--timeout" in argv for argv in machine.asked)


def test_without_pytorchs_index_the_plain_package_is_taken_and_said(
    studio: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    builds = setup_studio.choose_builds("Linux", "x86_64", "no card")
    assert setup_studio.find_build(FakeMachine(pip_index()), studio, builds).index == ""
    assert said(capsys).count("\n") == 1


def test_a_local_wheel_needs_no_index(studio: Studio) -> None:
    machine = FakeMachine(lambda argv: Ran(0, PIP_OFFERS.format(tag="cpu")))
    builds = setup_studio.choose_builds("Linux", "x86_64", "no card")
    assert setup_studio.find_build(machine, studio, builds).index == ""
    assert len(machine.asked) == 1 and "--no-index" in machine.asked[0]


def test_another_index_that_pip_knows_does_not_count_as_a_hit() -> None:
    assert not setup_studio.offers("Available versions: 2.14.1, 2.13.0, 12.13.0+cu130", "cu130")
    assert not setup_studio.offers("Available versions: 2.13.0+cu1301", "cu130")
    assert setup_studio.offers("Available versions: 2.14.1, 2.13.0+cu130", "cu130")


# ---- checks before installing


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_other_pythons_are_refused(
    version: tuple[int, int], studio: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup_studio.main([], FakeMachine(python=version), studio) == 1
    assert "3.11, 3.12 or 3.13" in said(capsys)


def test_debian_without_venv_says_the_line(studio: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FakeMachine(lambda argv: Ran(1, "No module named ensurepip") if "-c" in argv else None)
    assert setup_studio.main([], machine, studio) == 1
    assert "apt-get install -y python3.12-venv" in said(capsys)


def test_a_disk_that_is_too_small_stops_before_anything_is_made(
    studio: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = FakeMachine(free=GIB)
    assert setup_studio.main([], machine, studio) == 1
    text = said(capsys)
    assert "to download" in text and "3.0 GB on disk; 1.0 GB are free" in text and "What to do" in text
    assert not machine.worked and not studio.venv.exists()


def test_download_and_disk_are_said(studio: Studio) -> None:
    text = setup_studio.check_disk(Build("cpu", "", 600 * setup_studio.MIB, 3 * GIB), 50 * GIB, studio.root)
    assert text.startswith("About 600 MB to download, 3.0 GB on disk; 50.0 GB are free in ")


def test_a_path_that_python_cannot_use_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="move the studio"):
        setup_studio.check_path(tmp_path / f"a{os.pathsep}b")


# ---- installing


def test_first_start_installs_and_opens_the_page(studio: Studio) -> None:
    machine = FakeMachine(pip_index("cpu"))
    assert setup_studio.main(["--port", "7999", "--no-launch"], machine, studio) == 0
    torch, packages = machine.pip_installs
    assert torch[:3] == ["torch==2.13.0+cpu", "--index-url", "https://download.pytorch.org/whl/cpu"]
    assert packages[:2] == ["-r", str(studio.root / "requirements.txt")]
    assert "requirements-dev" not in str(packages)
    assert machine.handed_over == [[str(studio.python), str(studio.root / "gui.py"), "--port", "7999", "--no-launch"]]


def test_second_start_does_nothing_but_hand_over(studio: Studio) -> None:
    setup_studio.main([], FakeMachine(pip_index("cpu")), studio)
    again = FakeMachine()
    assert setup_studio.main(["--listen"], again, studio) == 0
    assert not again.worked and not again.asked
    assert again.handed_over[0][2:] == ["--listen"]


def test_changed_requirements_are_installed(studio: Studio) -> None:
    setup_studio.main([], FakeMachine(pip_index("cpu")), studio)
    (studio.root / "requirements.txt").write_text("gradio==6.32.0\n")
    again = FakeMachine(pip_index("cpu"))
    setup_studio.main([], again, studio)
    assert len(again.pip_installs) == 2


def test_a_moved_folder_and_a_broken_stamp_are_noticed(studio: Studio) -> None:
    setup_studio.main([], FakeMachine(pip_index("cpu")), studio)
    assert setup_studio.is_installed(studio, dev=False)
    moved = Studio(Path(shutil.move(studio.root, studio.root.with_name("moved"))))
    assert not setup_studio.is_installed(moved, dev=False)
    moved.stamp.write_text("{")
    assert not setup_studio.is_installed(moved, dev=False)


def test_the_test_tools_are_installed_once_and_serve_the_page_too(studio: Studio) -> None:
    setup_studio.main([], FakeMachine(pip_index("cpu")), studio)
    assert not setup_studio.is_installed(studio, dev=True)
    setup_studio.main(["--test"], FakeMachine(pip_index("cpu"), programs=["chromium"]), studio)
    assert setup_studio.is_installed(studio, dev=True) and setup_studio.is_installed(studio, dev=False)


def test_nothing_of_the_persons_is_touched(studio: Studio) -> None:
    setup_studio.main(["--reinstall"], FakeMachine(pip_index("cpu")), studio)
    made = {path.relative_to(studio.root).parts[0] for path in studio.root.rglob("*")}
    assert made == {".venv", "requirements.txt", "requirements-dev.txt", "runs", "presets", "settings", "outputs"}
    for folder in ("runs", "presets", "settings", "outputs"):
        assert [path.name for path in (studio.root / folder).iterdir()] == ["mine.txt"]


def test_a_failed_step_says_what_to_do_and_where_the_log_is(studio: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    index = pip_index("cpu")
    machine = FakeMachine(lambda argv: Ran(1, "no\nroute to host") if "torch==2.13.0+cpu" in argv else index(argv))
    assert setup_studio.main([], machine, studio) == 1
    text = said(capsys)
    assert "Installing torch failed (exit code 1)" in text and "route to host" in text
    assert "check the network" in text and str(studio.log) in text
    assert not machine.handed_over and not setup_studio.is_installed(studio, dev=False)


def test_extras_come_with_a_card_and_their_failure_is_one_line(
    studio: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    index = pip_index("cu130")

    def answers(argv: list[str]) -> Ran | None:
        if argv[0] == "nvidia-smi":
            return Ran(0, SMI_13 if len(argv) == 1 else "8.9\n")
        if "bitsandbytes==0.50.2" in argv:
            return Ran(1, "no wheel")
        return Ran(1, "no kernel image") if setup_studio.XFORMERS_TEST in argv else index(argv)

    machine = FakeMachine(answers, programs=["nvidia-smi"])
    assert setup_studio.main(["--install-only"], machine, studio) == 0
    text = said(capsys)
    assert text.count("bitsandbytes") == 1 and text.count("xformers") == 1
    assert any(argv[3:6] == ["uninstall", "-y", "xformers"] for argv in machine.worked)


def test_no_extras_without_a_card(studio: Studio) -> None:
    machine = FakeMachine(pip_index("cpu"))
    setup_studio.main(["--install-only"], machine, studio)
    assert "bitsandbytes" not in str(machine.worked) and "xformers" not in str(machine.worked)


def test_the_project_is_found_from_everywhere(studio: Studio) -> None:
    """The .pth file is ASCII, since Python 3.11 and 3.12 read it in the system's encoding."""
    setup_studio.main(["--install-only"], FakeMachine(pip_index("cpu")), studio)
    (file,) = studio.venv.rglob("studio.pth")
    line = file.read_text(encoding="ascii")
    code = f"{line}\nprint(sys.path[-1].encode())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == str(str(studio.root).encode())


# ---- tests and demo


def test_test_runs_every_check_and_passes_the_code_on(studio: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    index = pip_index("cpu")
    machine = FakeMachine(lambda argv: Ran(3, "") if "mypy" in argv else index(argv), programs=["chromium"])
    assert setup_studio.main(["--test"], machine, studio) == 3
    assert len(machine.followed) == 6
    assert "FAILED mypy" in said(capsys)
    assert "requirements-dev.txt" in str(machine.pip_installs)


def test_tests_run_in_two_stages() -> None:
    commands = list(setup_studio.test_commands(Path("python")).values())
    assert commands[-2][3:5] == ["-n", "2"]
    assert commands[-2][-4:] == ["--durations", "15", "-m", "not timing"]
    assert commands[-1][-2:] == ["-m", "timing"]


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_missing_browser_fails_in_ci_only(
    ci: str, code: int, studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    assert setup_studio.main(["--test"], FakeMachine(pip_index("cpu")), studio) == code
    assert "Chromium" in said(capsys)


def test_chromium_comes_from_debian(studio: Studio) -> None:
    machine = FakeMachine(pip_index("cpu"), programs=["apt-get"])
    setup_studio.main(["--test"], machine, studio)
    installs = [argv for argv in machine.worked if "apt-get" in argv]
    assert [argv[-1] for argv in installs] == ["update", "chromium"]


def test_flags_of_the_page_are_refused_elsewhere(studio: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    assert setup_studio.main(["--test", "--prot", "1"], FakeMachine(), studio) == 1
    assert "--prot" in said(capsys)


def test_demo_trains_the_example_and_says_where_the_pictures_are(
    studio: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = FakeMachine(pip_index("cpu"))
    assert setup_studio.main(["--demo"], machine, studio) == 0
    (command,) = machine.followed
    assert command[-9:-5] == ["-m", "trainer", "train_network", "--config_file"][-4:]
    assert "config_files/example_lora.toml" in command
    assert str(studio.root / "runs") in said(capsys)


# ---- the real scripts


def run_setup_sh(folder: Path, path: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": path, "LC_ALL": "C.UTF-8", **environment}
    shell = shutil.which("sh")
    assert shell is not None
    return subprocess.run(
        [shell, str(folder / "setup.sh"), *flags], env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what set-up needs, in a folder with a blank and letters that are not ASCII."""
    folder = tmp_path / "bin ich schön 絵"
    (folder / "trainer").mkdir(parents=True)
    for name in ("setup.sh", "setup_studio.py", "trainer/__init__.py", "trainer/host.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def fake_path(folder: Path, programs: dict[str, str]) -> str:
    """A PATH of one folder: uname, dirname and the given programs (name: body of a shell script)."""
    folder.mkdir()
    for tool in ("uname", "dirname"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return str(folder)


posix = pytest.mark.skipif(sys.platform == "win32", reason="setup.sh is for Linux and macOS")


@posix
def test_setup_sh_passes_over_a_python_that_does_not_fit(checkout: Path, tmp_path: Path) -> None:
    path = fake_path(tmp_path / "bin dir é", {"python3": "exit 1", "python3.12": f'exec "{sys.executable}" "$@"'})
    ran = run_setup_sh(checkout, path, "--help")
    assert ran.returncode == 0, ran.stderr
    assert "--demo" in ran.stdout


@posix
def test_setup_sh_says_how_to_get_python(checkout: Path, tmp_path: Path) -> None:
    ran = run_setup_sh(checkout, fake_path(tmp_path / "bin", {"apt-get": "exit 0", "python3": "exit 1"}), "--help")
    assert ran.returncode == 1
    if sys.platform == "linux":
        assert "apt-get install -y python3 python3-venv" in ran.stderr
    assert "3.11, 3.12 or 3.13 was not found" in ran.stderr and "PYTHON=" in ran.stderr


@posix
def test_setup_sh_takes_the_python_it_is_given(checkout: Path, tmp_path: Path) -> None:
    ran = run_setup_sh(checkout, fake_path(tmp_path / "bin", {}), "--help", PYTHON=sys.executable)
    assert ran.returncode == 0, ran.stderr


@posix
def test_setup_sh_does_not_replace_a_given_python_that_does_not_fit(checkout: Path, tmp_path: Path) -> None:
    ran = run_setup_sh(checkout, os.environ["PATH"], "--help", PYTHON=fake_path(tmp_path / "bin", {}) + "/python2")
    assert ran.returncode == 1
    assert "python2 is not a Python 3.11" in ran.stderr


def test_setup_bat_calls_the_same_script() -> None:
    data = (ROOT / "setup.bat").read_bytes()
    assert data.count(b"\n") == data.count(b"\r\n") > 5
    assert b'"%~dp0setup_studio.py" %*\r\n' in data
    assert b"winget install" in data
    data.decode("ascii")


@posix
@pytest.mark.timing
def test_a_second_start_adds_under_two_seconds(checkout: Path) -> None:
    """From `setup.sh` to gui.py's first line, with everything installed; a page of one line stands for gui.py."""
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "gui.py").write_text("import sys, time\nprint(time.time(), sys.argv[1:])\n")
    studio = Studio(checkout)
    studio.python.parent.mkdir(parents=True)
    studio.python.symlink_to(sys.executable)
    setup_studio.write_stamp(studio, dev=False)
    seconds = []
    for _ in range(3):
        started = time.time()
        ran = run_setup_sh(checkout, os.environ["PATH"], "--no-launch", PYTHON=sys.executable)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        seconds.append(float(ran.stdout.split()[0]) - started)
        assert "['--no-launch']" in ran.stdout
    assert min(seconds) < 2.0, seconds
