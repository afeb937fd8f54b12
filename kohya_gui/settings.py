"""Where the page finds and leaves things; made once at start and handed down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Example:
    """The model and pictures that the page opens with."""

    model: Path
    pictures: Path
    class_pictures: Path
    prompts: Path
    preset: str


@dataclass(frozen=True)
class Settings:
    """Folders of one page server.

    roots: what the folder browser may show; everything else can still be typed. project: where the programs lie.
    """

    home: Path
    project: Path
    runs: Path
    outputs: Path
    uploads: Path
    shipped_presets: Path
    user_presets: Path
    roots: tuple[Path, ...]
    example: Example

    @property
    def datasets(self) -> Path:
        """Where data sets made in the Dataset tab lie: their files, and folders of copied pictures."""
        return self.home / "datasets"

    def short(self, path: Path) -> str:
        """A path as a person would type it: from the home folder on where it lies in it."""
        return str(path.relative_to(self.home) if path.is_relative_to(self.home) else path)

    @classmethod
    def of(cls, home: Path, *, roots: Sequence[Path] = ()) -> Settings:
        """The usual places: what the person makes lies under `home`, what we ship beside the program."""
        home = home.resolve()
        own = home / "examples"
        examples = own if own.is_dir() else PROJECT / "examples"
        return cls(
            home=home,
            project=PROJECT,
            runs=home / "runs",
            outputs=home / "outputs",
            uploads=home / "uploads",
            shipped_presets=PROJECT / "presets",
            user_presets=home / "presets" / "user",
            roots=tuple(root.resolve() for root in roots)
            or tuple(dict.fromkeys([home, Path.home().resolve(), examples])),
            example=Example(
                model=examples / "model",
                pictures=examples / "dataset",
                class_pictures=examples / "regularisation",
                prompts=examples / "sample_prompts.txt",
                preset="example-house",
            ),
        )
