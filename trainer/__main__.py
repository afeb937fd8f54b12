"""`python -m trainer TASK ...` and `accelerate launch -m trainer TASK ...`."""

from __future__ import annotations

import sys

from trainer.errors import EXIT_CODE
from trainer.schema import nearest
from trainer.tasks import commands


def main() -> int:
    """Hand the arguments to the task named first; kohya's script names (with .py) are task names."""
    known = commands()
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write("python -m trainer TASK [options]; --help after a task shows its options\n\n")
        sys.stdout.write("".join(f"  {name:<20} {command.about}\n" for name, command in known.items()))
        return 0 if words else EXIT_CODE
    name = words[0].removesuffix(".py")
    if name not in known:
        near = nearest(name, list(known))
        said = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
        sys.stderr.write(f"{words[0]} is not a task; {said}\n")
        return EXIT_CODE
    return known[name].main(words[1:])


if __name__ == "__main__":
    raise SystemExit(main())
