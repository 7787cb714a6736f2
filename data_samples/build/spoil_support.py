"""Make `support_ru_raw.csv`, a shop's export as one really meets it, and the list of every defect planted in it.

The good rows are those of `support_ru.jsonl`. Rows with defects that need a person (contradictions, personal data, ...) were
written by hand and lie in `spoilt_rows.jsonl`; the mechanical ones are made here, from a seed. The file is written in
Windows-1251, where `₽` has no place: like many exports, it writes `&#8381;` instead, and that is planted too.

    python data_samples/build/spoil_support.py
"""

import csv
import io
import json
import random
import re
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parent
HEADER = ["Номер", "Дата", "Канал", "Категория", "Тема", "Вопрос", "Ответ"]
CATEGORIES = [  # the first that matches
    ("возврат", r"возвра|вернут|обмен|брак|гарант|ремонт|разбит|слома|недоста|не тот|трещин|скол"),
    ("оплата", r"оплат|плат[её]ж|карт|чек|рассроч|сбп|бонус|промокод|сертификат|счёт|скидк|деньги|списал"),
    ("доставка", r"достав|курьер|пункт|посылк|привез|отслед|статус|где заказ|подъём"),
    ("аккаунт", r"аккаунт|кабинет|код из смс|вход|войти|профил|номер телефона"),
    ("заказ", r"заказ"),
]


def category(row: dict) -> str:
    text = (row["instruction"] + " " + row["input"]).lower()
    return next((name for name, pattern in CATEGORIES if re.search(pattern, text)), "прочее")


def mangled(text: str) -> str | None:
    """UTF-8 read as Windows-1251, or None where that gives bytes that the encoding lacks."""
    try:
        return text.encode("utf-8").decode("cp1251")
    except UnicodeDecodeError:
        return None


def encodable(text: str) -> str:
    """What Windows-1251 lacks as an entity; before the cell is quoted, since an entity ends on the delimiter."""
    return text.encode("cp1251", "xmlcharrefreplace").decode("cp1251")


HTML_FORMS = [
    lambda t: f"<p>{t}</p>",
    lambda t: re.sub(r"(?<=[.?]) ", "<br>", t, count=1) if re.search(r"[.?] ", t) else t + "<br>",
    lambda t: re.sub(r"(\d) ", r"\1&nbsp;", t) if re.search(r"\d ", t) else f"&nbsp;{t}",
    lambda t: t.replace("«", "&laquo;").replace("»", "&raquo;") if "«" in t else f'<span style="color:black">{t}</span>',
    lambda t: f'<div class="msg">{t}</div>',
]


def spoil(rows: list[dict], by_hand: list[dict], rng: random.Random) -> list[dict]:
    """All rows of the export in order, each {"kinds": [...], "instruction", "input", "output"}."""
    good = [row | {"kinds": []} for row in rows]
    used = {d["like"] for d in by_hand if d["like"] is not None} | {0}
    free = [i for i in range(len(good)) if i not in used and "₽" not in str(good[i])]
    rng.shuffle(free)

    for i, form in zip(free[:20], HTML_FORMS * 4, strict=True):
        field = rng.choice(["input", "output"])
        good[i] |= {field: form(good[i][field]), "kinds": ["HTML"]}
    for i in free[20:28]:
        good[i] |= {"output": rng.choice(["", " ", "\xa0"]), "kinds": ["empty text"]}
    for i in free[28:34]:  # a soft hyphen, which nobody sees
        word = max(good[i]["output"].split(), key=len)
        good[i] |= {"output": good[i]["output"].replace(word, word[:4] + "\xad" + word[4:], 1), "kinds": ["invisible characters"]}
    for i in free[-6:]:  # no defect: customers press Enter, and the file then has quoted line breaks
        good[i]["input"] = re.sub(r"(?<=[.?!]) ", "\n", good[i]["input"], count=1)
    broken = [(i, m) for i in free[34:] if (m := mangled(good[i]["output"]))][:12]
    for i, text in broken:
        good[i] |= {"output": text, "kinds": ["mojibake"]}
    twins = [i for i in free[34:] if i not in {j for j, _ in broken}][:14]

    extra = [(d["like"], {k: d[k] for k in ("instruction", "input", "output")} | {"kinds": [d["kind"]]}) for d in by_hand]
    extra += [(i, {**good[i], "kinds": ["exact duplicate"]}) for i in twins]
    # A twin stands after its original, at any distance; a new row anywhere but at the top.
    places = sorted((rng.uniform(3 if like is None else like + 0.5, len(good)), n) for n, (like, _) in enumerate(extra))
    order = sorted([(float(i), row) for i, row in enumerate(good)] + [(p, extra[n][1]) for p, n in places], key=lambda x: x[0])
    found = [row for _, row in order]
    questions = {}
    for row in found:  # both sides of a contradiction are named
        questions.setdefault(row["instruction"] + row["input"], []).append(row)
    for group in questions.values():
        if any("contradiction" in row["kinds"] for row in group):
            for row in group:
                row["kinds"] = sorted({*row["kinds"], "contradiction"})
    for row in found:
        if "₽" in row["instruction"] + row["input"] + row["output"] and "HTML" not in row["kinds"]:
            row["kinds"] = [*row["kinds"], "HTML"]
    return found


def main() -> None:
    rng = random.Random(20)
    files = OUT / "support_ru.jsonl", HERE / "spoilt_rows.jsonl"
    rows, by_hand = ([json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in files)
    table = io.StringIO(newline="")
    writer = csv.writer(table, delimiter=";", lineterminator="\r\n")
    writer.writerow(HEADER)
    planted, number, breaks = [], 40_000, [150, 420]
    for i, row in enumerate(spoil(rows, by_hand, rng)):
        number += rng.randint(1, 9)
        day = f"{1 + i * 27 // 700:02d}.10.2026 {rng.randint(9, 20):02d}:{rng.randint(0, 59):02d}"
        cells = [
            number,
            day,
            rng.choice(["чат", "чат", "чат", "почта"]),
            category(row),
            row["instruction"],
            row["input"],
            row["output"],
        ]
        line = table.getvalue().count("\n") + 1
        if breaks and i >= breaks[0] and not row["kinds"]:  # the export broke off in the middle of a row
            cells, row["kinds"] = cells[:5], ["unreadable row"]
            breaks.pop(0)
        writer.writerow([encodable(str(cell)) for cell in cells])
        planted += [{"line": line, "number": number, "kind": kind} for kind in row["kinds"]]
    (OUT / "support_ru_raw.csv").write_bytes(table.getvalue().encode("cp1251"))
    text = json.dumps(planted, ensure_ascii=False).replace("}, {", "},\n {")
    (OUT / "support_ru_raw.answers.json").write_text(text + "\n", "utf-8")
    print(i + 1, "rows,", len(planted), "planted defects")


if __name__ == "__main__":
    main()
