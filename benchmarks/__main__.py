"""`python -m benchmarks [--full] [ROW ...]` prints rows as a table; ratios of one run, the minimum of three rounds."""

from __future__ import annotations

import argparse
import os


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="20,000 pictures where CI takes 3,000 to 6,000")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only these")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.full:
        os.environ["BENCHMARK_PICTURES"] = "20000"

    from benchmarks.rows import ROWS

    print("| what | ours, s | bare, s | ratio | goal |\n|---|---|---|---|---|")
    for measure in ROWS:
        if not chosen.rows or measure.__name__ in chosen.rows:
            row = measure(chosen.rounds)
            print(f"| {row.name} | {row.ours:.3f} | {row.bare:.3f} | {row.ratio:.3f} | {row.goal:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
