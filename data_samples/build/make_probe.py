"""Draws general questions: python data_samples/build/make_probe.py

`general_probe.jsonl` from the held-out tenth, to measure what is forgotten; `general_rows.jsonl` from the rest, to mix into training.
"""

import json
import random
import re
from pathlib import Path

import questions

PER_LANGUAGE = {"general_probe": 60, "general_rows": 120}


def draw(seed: int, per_language: int, test: bool) -> list[questions.Question]:
    rng, seen, drawn = random.Random(seed), set(), []
    for language in ("ru", "en"):
        kinds = [name for name in questions.KINDS if name.endswith(language) and "made_up" not in name]
        for i in range(per_language):
            q = questions.draw(rng, test=test, kinds=[kinds[i % len(kinds)]])
            while q.question in seen:
                q = questions.draw(rng, test=test, kinds=[kinds[i % len(kinds)]])
            seen.add(q.question)
            drawn.append(q)
    return drawn


def bare(key: str) -> str:
    """What must stand in anybody's answer: not the words around it."""
    return re.sub(r"^(= |идёт |comes )|\.$", "", key)


def save(name: str, rows: list[dict]) -> None:
    path = Path(__file__).resolve().parent.parent / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main():
    probe = draw(2026, PER_LANGUAGE["general_probe"], test=True)
    fields = ("kind", "language", "question", "answer", "key")
    save("general_probe", [{field: getattr(q, field) for field in fields} | {"key": bare(q.key)} for q in probe])
    rows = draw(2027, PER_LANGUAGE["general_rows"], test=False)
    save("general_rows", [{"instruction": q.question, "input": "", "output": q.answer, "label": q.kind} for q in rows])


if __name__ == "__main__":
    main()
