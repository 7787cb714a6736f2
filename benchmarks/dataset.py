"""How fast a dataset is read, checked and split, what memory that takes, and how well near duplicates are found.

    python benchmarks/dataset.py [repeats]

Needs only the package. Takes about seven minutes on two cores; prints the tables that stand in `benchmarks/README.md`.
"""

import json
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from itertools import combinations, pairwise
from pathlib import Path

import pandas as pd

from gemma_colab.core.rows import to_messages
from gemma_colab.core.workspace import samples
from gemma_colab.data.looking import texts

SIZES = (1_000, 10_000, 52_000)
TWINS = 0.05  # share of rows that are an earlier row with some words changed


class Babble:
    """Text without sense that looks like the sample's: each word follows one that it followed there."""

    def __init__(self, rng: random.Random):
        self.rng, self.next, self.starts = rng, {}, {}
        for language in ("ru", "en"):
            following, starts = defaultdict(list), []
            for line in (samples() / f"support_{language}.jsonl").read_text("utf-8").splitlines():
                for text in texts(to_messages(json.loads(line))).values():
                    words = text.split()
                    starts.append(words[0])
                    for a, b in pairwise(words):
                        following[a].append(b)
            self.next[language], self.starts[language] = dict(following), starts

    def text(self, language: str, words: int) -> str:
        following, starts = self.next[language], self.starts[language]
        out = [self.rng.choice(starts)]
        while len(out) < words:
            # One word in five is any word at all, or so small a text would say the same things again and again.
            known = following.get(out[-1]) if self.rng.random() > 0.2 else None
            out.append(self.rng.choice(known or starts))
        return " ".join(out)

    def vary(self, text: str, share: float, language: str) -> str:
        words = text.split()
        for i in self.rng.sample(range(len(words)), max(1, round(share * len(words)))):
            words[i] = self.text(language, 1)
        return " ".join(words)


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Half Russian, half English; answers of 10 to 120 words, like Alpaca's; `TWINS` of the rows near an earlier one."""
    rng = random.Random(seed)
    babble, rows, languages = Babble(rng), [], []
    for _ in range(count):
        if rows and rng.random() < TWINS:
            i = rng.randrange(len(rows))
            share = rng.choice([0.01, 0.03, 0.06, 0.1, 0.15])
            row, language = (
                {k: babble.vary(text, share, languages[i]) if text else "" for k, text in rows[i].items()},
                languages[i],
            )
        else:
            language = rng.choice(["ru", "en"])
            lengths = rng.randint(6, 16), rng.choice([0, 0, rng.randint(5, 40)]), int(rng.triangular(10, 120, 25))
            texts = [babble.text(language, n) if n else "" for n in lengths]
            row = dict(zip(("instruction", "input", "output"), texts, strict=True))
        rows.append(row)
        languages.append(language)
    return rows


def measure(path: str, with_tokens: bool) -> None:
    """One run in a process of its own, so that its peak memory is its own. Prints JSON."""
    from gemma_colab.data.reading import read_rows
    from gemma_colab.data.report import check_rows
    from gemma_colab.data.splitting import split_rows

    tokenizer = None
    if with_tokens:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(samples() / "tiny-gemma3", trust_remote_code=False)
    marks = [time.perf_counter()]
    rows = read_rows(path).rows
    marks.append(time.perf_counter())
    check_rows(rows, tokenizer=tokenizer)
    marks.append(time.perf_counter())
    split_rows(rows)
    marks.append(time.perf_counter())
    seconds = dict(zip(("read", "report", "split"), (b - a for a, b in pairwise(marks)), strict=True))
    print(json.dumps(seconds | {"MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def speed(with_tokens: bool, repeats: int = 2) -> pd.DataFrame:
    """Seconds and peak memory by size: of `repeats` runs, the sizes alternating, the faster."""
    runs = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows(size))
            Path(folder, f"{size}.jsonl").write_text("".join(lines), "utf-8")
        for _ in range(repeats):
            for size in SIZES:
                command = [sys.executable, __file__, "--measure", f"{folder}/{size}.jsonl", str(int(with_tokens))]
                runs[size].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    table = pd.DataFrame({size: min(some, key=lambda run: sum(run.values()) - run["MiB"]) for size, some in runs.items()}).T
    table.insert(3, "seconds", table[["read", "report", "split"]].sum(axis=1))
    table["rows per second"] = table.index / table["seconds"]
    return table


def near_duplicates(count: int = 3_000, threshold: float = 0.8) -> dict[str, float]:
    """Pairs found by MinHash against all pairs compared, with sets of strings instead of the package's hashes."""
    from gemma_colab.data.likeness import near_pairs, normalize, shingles

    texts = [" ".join(row.values()) for row in make_rows(count, seed=1)]
    plain = [re.sub(r"\d", "0", normalize(text)) for text in texts]
    sets = [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in plain]
    exact = {(j, i) for i, j in combinations(range(count), 2) if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])}
    found = {(pair.row, pair.earlier) for pair in near_pairs([shingles(text) for text in texts], threshold)}
    hit = len(found & exact)
    return {"pairs": len(exact), "found": len(found), "recall": hit / len(exact), "precision": hit / len(found)}


def main(repeats: int = 2) -> None:
    names = ("datasketch", "numpy", "pandas", "ftfy", "phonenumbers", "py3langid", "transformers")
    print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names), sep=", ")
    print("near duplicates, 3,000 rows, Jaccard >= 0.8:", near_duplicates())
    for with_tokens in (False, True):
        table = speed(with_tokens, repeats)
        print("\nwith token checks" if with_tokens else "\nwithout token checks")
        print(table.round(1).to_string())
        per_row = table["seconds"] / table.index
        print(f"time per row, 52,000 against 10,000: {per_row[52_000] / per_row[10_000]:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], bool(int(sys.argv[3])))
    else:
        main(*map(int, sys.argv[1:2]))
