"""Do the tests notice a change? mutmut makes small changes to the core and to what guards privacy, data and statistics (the list is in
pyproject.toml); a seeded sample of them is tried, each on the quickest of the tests that call the changed function, to the first failure.

    make mutants                 # 30 of each file
    make mutants MUTANTS=1000    # as good as all
    python tools/mutants.py --only core.rows --each 1000

Left out are mutants that say nothing about behaviour, or can't be switched on: those that differ only inside a sentence for people (see
`wording`), and those of functions that run while the package is imported, before mutmut switches a mutant on (`AT_IMPORT`).

Prints the share that was killed for each file, and each survivor as a diff, unless its changed line stands in tests/mutants.md, with
the reason why it may survive.
"""

import argparse
import os
import random
import re
import sys
from itertools import accumulate, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REASONS = ROOT / "tests" / "mutants.md"
AT_IMPORT = re.compile(r"core\.(door\.x_door|settings\.x_(within|one_of))__mutmut")
STRING = re.compile(r"""(['"])((?:(?!\1)[^\\]|\\.)*)\1""")
SOURCES = "\n".join(path.read_text("utf-8") for end in ("py", "html") for path in ROOT.glob(f"gemma_colab/**/*.{end}"))


def changed(diff: str) -> list[str]:
    """The lines that the mutant has in the place of others, without their indent."""
    return [line[1:].strip() for line in diff.splitlines() if re.match(r"\+(?!\+\+)", line)]


def wording(diff: str) -> bool:
    """Whether a mutant (XX…XX, lower or upper case) changes only the words of a sentence for people, the label of a progress bar, or
    the case of UTF-8.

    A sentence is a string of three words or more that stands once in the package, and is neither a key, a column, nor compared.
    """
    old, new = ([line[1:] for line in diff.splitlines() if re.match(rf"[{sign}](?![{sign}]{{2}})", line)] for sign in "-+")
    if len(old) != 1 or len(new) != 1:
        return False
    for found in STRING.finditer(old[0]):
        text, before, after = found[2], old[0][: found.start()], old[0][found.end() :]
        quote = found[1]
        if new[0] in [f"{before}{quote}{other}{quote}{after}" for other in (f"XX{text}XX", text.lower(), text.upper())]:
            if text == "utf-8":  # in capitals the same
                return True
            label = re.search(r"\bdesc(ription)?(: str)?[\"']? ?[=:] ?$", before)
            compared = re.match(r"\s*([:\]]|[=!]=|in\b)", after) or re.search(r"(\[|[=!]=|\bin)\s*$", before)
            once = SOURCES.count(f"{quote}{text}{quote}") == 1
            words = re.findall(r"\b[^\W\d_]{2,}\b", text)
            return bool(label or (once and not compared and " " in text and len(words) > 2))
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=30, metavar="N", help="mutants of each file (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=30, help="of tests for a mutant, the quickest first (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="only mutants with this in their names, such as core.rows")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    from mutmut import __main__ as mutmut
    from mutmut.runners.harness import PytestRunner
    from mutmut.state import state
    from scipy.stats import binomtest

    in_any_order = PytestRunner._pytest_args_regular_run

    def quickest(self, tests):
        seconds = {test: state().duration_by_test.get(test, 0.0) for test in tests}
        in_order = sorted(tests, key=seconds.get)
        together = accumulate(map(seconds.get, in_order))
        return in_any_order(
            self, [test for test, sum_ in zip(in_order, together, strict=True) if sum_ <= args.seconds] or in_order[:1]
        )

    PytestRunner._pytest_args_regular_run = quickest
    Path("mutants").mkdir(exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.create_mutants(args.processes)
    sample = []
    for path in mutmut.walk_mutatable_files():
        (made := mutmut.SourceFileMutationData(path=path)).load()
        names = sorted(name for name in made.exit_code_by_key if args.only in name and not AT_IMPORT.search(name))
        random.Random(f"{args.seed} {path}").shuffle(names)
        sample += islice((name for name in names if not wording(mutmut.get_diff_for_mutant(name))), args.each)
    mutmut._run(sample, args.processes)

    listed, killed_in_all, survivors = REASONS.read_text("utf-8") if REASONS.exists() else "", 0, []
    for path in mutmut.walk_mutatable_files():
        (made := mutmut.SourceFileMutationData(path=path)).load()
        found = {
            name: mutmut.status_by_exit_code[made.exit_code_by_key[name]] for name in sample if name in made.exit_code_by_key
        }
        if not found:
            continue
        killed = sum(status in ("killed", "timeout", "segfault") for status in found.values())
        killed_in_all += killed
        print(f"{path!s:<42} {killed:>4} of {len(found):>4} killed, of {len(made.exit_code_by_key):>5} mutants")
        survivors += [(name, status) for name, status in found.items() if status not in ("killed", "timeout", "segfault")]
    unlisted = 0
    for name, status in survivors:
        diff = mutmut.get_diff_for_mutant(name)
        if not all(f"`{line}`" in listed for line in changed(diff)):
            unlisted += 1
            print(f"\n{name}: {status}\n{diff}")
    low, high = binomtest(killed_in_all, len(sample)).proportion_ci(method="wilson")
    print(f"\nkilled: {killed_in_all} of {len(sample)}, {killed_in_all / len(sample):.1%} (95 %: {low:.1%} to {high:.1%});")
    print(f"survived: {len(survivors)}, of which {len(survivors) - unlisted} stand in {REASONS.relative_to(ROOT)} with a reason")
    return int(unlisted > 0)


if __name__ == "__main__":
    sys.exit(main())
