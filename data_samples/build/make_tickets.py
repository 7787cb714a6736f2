"""Make tickets_ru.jsonl, orders_ru.jsonl and the same in English of the messages and their annotations, and print how far the two passes agree.

    python data_samples/build/make_tickets.py

build/tickets_passes.jsonl holds, for each message of support_ru.jsonl and support_en.jsonl, two annotations that were made
independently of one another from tickets_guide_ru.md alone, and where they differ what was settled, by the same guide.
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIELDS = ("topic", "order", "product", "needs_human", "mood")
FILES = {"tickets": FIELDS, "orders": ("order", "product")}  # which fields a file asks for
INSTRUCTION = {
    "tickets_ru": "Разбери обращение в JSON: topic, order, product, needs_human, mood.",
    "tickets_en": "Turn the message into JSON: topic, order, product, needs_human, mood.",
    "orders_ru": "Выпиши из обращения в JSON: order, product.",
    "orders_en": "Take from the message, as JSON: order, product.",
}


def passes() -> list[dict]:
    return [json.loads(line) for line in (HERE / "tickets_passes.jsonl").read_text(encoding="utf-8").splitlines()]


def ticket(line: dict) -> dict:
    """The settled ticket: what both passes say, else what was settled."""
    both = dict(zip(FIELDS, line["first"], strict=True))
    return both | line.get("settled", {})


def agreement(lines: list[dict]) -> dict[str, float]:
    """Field -> share of the messages in which both passes say the same; "all fields" likewise."""
    pairs = [(line["first"], line["second"]) for line in lines]
    shares = {name: sum(a[n] == b[n] for a, b in pairs) / len(pairs) for n, name in enumerate(FIELDS)}
    return shares | {"all fields": sum(a == b for a, b in pairs) / len(pairs)}


def main() -> None:
    for language in ("ru", "en"):
        lines = [line for line in passes() if line["language"] == language]
        source = (HERE.parent / f"support_{language}.jsonl").read_text(encoding="utf-8").splitlines()
        for file, fields in FILES.items():
            with (HERE.parent / f"{file}_{language}.jsonl").open("w", encoding="utf-8") as out:
                for row, line in zip(map(json.loads, source), lines, strict=True):
                    settled = ticket(line)
                    answer = json.dumps({name: settled[name] for name in fields}, ensure_ascii=False)
                    made = {"instruction": INSTRUCTION[f"{file}_{language}"], "input": row["input"], "output": answer}
                    out.write(json.dumps(made, ensure_ascii=False) + "\n")
        print(language, len(lines), {name: round(share, 3) for name, share in agreement(lines).items()})


if __name__ == "__main__":
    main()
