"""Draws `general_probe.jsonl` from the held-out questions: python data_samples/build/make_probe.py"""

import json
import random
from pathlib import Path

import questions

PER_LANGUAGE = 60


def main():
    rng, seen, rows = random.Random(2026), set(), []
    for language in ("ru", "en"):
        kinds = [name for name in questions.KINDS if name.endswith(language) and "made_up" not in name]
        for i in range(PER_LANGUAGE):
            q = questions.draw(rng, test=True, kinds=[kinds[i % len(kinds)]])
            while q.question in seen:
                q = questions.draw(rng, test=True, kinds=[kinds[i % len(kinds)]])
            seen.add(q.question)
            rows.append({"kind": q.kind, "language": q.language, "question": q.question, "answer": q.answer, "key": q.key})
    path = Path(__file__).resolve().parent.parent / "general_probe.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
