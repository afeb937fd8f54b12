"""`python -m benchmarks` prints every row as a table; ratios of one run, one thread, minimum of three rounds."""

from __future__ import annotations

from benchmarks.rows import ROWS


def main() -> int:
    """Print the table."""
    print("| what | ours, s | bare, s | ratio | goal |\n|---|---|---|---|---|")
    for measure in ROWS:
        row = measure()
        print(f"| {row.name} | {row.ours:.3f} | {row.bare:.3f} | {row.ratio:.2f} | {row.goal:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
