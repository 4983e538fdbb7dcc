"""Run every case of the suite and write what came of it, as a table, into out/fuzz/ or another folder.

``python tests/fuzz/table.py [--output FOLDER] [WORD ...]``: only cases whose name holds one of the words.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]


def main() -> int:
    """Write ``table.tsv`` and print a summary; 1 where a case did not end as foreseen."""
    import conftest
    from fuzz.families import ALL
    from fuzz.harness import Workshop, scratch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("out/fuzz"))
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    chosen = [case for case in ALL if not options.words or any(word in case.key for word in options.words)]
    options.output.mkdir(parents=True, exist_ok=True)
    counted: Counter[tuple[str, str]] = Counter()
    failed = 0
    start = time.perf_counter()
    with scratch() as base, (options.output / "table.tsv").open("w", newline="") as file:
        workshop = Workshop(conftest.make_tiny_folder(base), conftest.make_tiny_zarr(base), base)
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(("family", "input", "as foreseen", "outcome", "message", "seconds"))
        for case in chosen:
            began = time.perf_counter()
            outcome = workshop.attempt(case)
            took = time.perf_counter() - began
            message = (
                outcome.message.replace(str(base), "")
                .replace(str(Path.cwd()), "")[:400]
                .encode("unicode_escape")
                .decode()
            )
            verdict = "yes" if outcome.as_expected else "NO"
            failed += verdict == "NO"
            counted[case.family, outcome.ended] += 1
            rows.writerow((case.family, case.name, verdict, outcome.ended, message, f"{took:.2f}"))
            if verdict == "NO":
                print(
                    f"NOT FORESEEN {case.key} [{took:.1f} s]: {outcome.ended}: {message}"
                    + ("" if outcome.unchanged else " INPUT CHANGED")
                    + f"\n    wanted {case.expected}",
                    flush=True,
                )
    for (family, ended), count in sorted(counted.items()):
        print(f"{family}: {ended} {count}")
    print(f"{len(chosen)} cases, {failed} not as foreseen, {time.perf_counter() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
