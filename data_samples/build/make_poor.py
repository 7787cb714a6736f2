"""Make `support_ru_poor.jsonl`: ten poor rows out of each of 48 good ones, as one gets them who wants many rows quickly.

Of each good row: three near duplicates, two with wrong facts, two with HTML, one answer that is cut off, one in another language, one with
a second example in it. Three of the ten tell nothing new, and seven teach something wrong.

    python data_samples/build/make_poor.py
"""

import json
import random
import re
from pathlib import Path

from spoil_support import HTML_FORMS

OUT = Path(__file__).parent.parent
ROWS = 48
OPENINGS = ["Здравствуйте! ", "Добрый день. ", "Подскажите, пожалуйста. ", "Ещё раз спрошу. ", "Пишу второй раз. ", "Вопрос. "]
ENDS = [" Спасибо.", " Жду ответа.", " Заранее спасибо.", " Ответьте, пожалуйста."]
ABROAD = [
    "Thank you for your message. We will look into it and get back to you soon.",
    "Your order is on its way and should arrive within a few days.",
    "Vielen Dank für Ihre Nachricht. Wir kümmern uns so schnell wie möglich darum.",
    "Merci de votre message, nous vous répondrons dans les plus brefs délais.",
    "Please contact our support team by phone, they will be happy to help.",
    "Unfortunately we can't help you with that, please try again later.",
]
# Facts of the shop, and what somebody writes who did not look them up.
WRONG = {
    r"\bне (?=\w+(?:ем|им|ете|ите|ут|ют|ят|ет|ит)\b)": "",  # "we do not" becomes "we do"
    r"\bбесплатно\b": "за 500 рублей",
    r"\bв течение года\b": "в течение недели",
    r"\bможно\b": "нельзя",
    r"\bстарш\w+ специалист\w*": "директор магазина",
}


def wrong(text: str, rng: random.Random) -> str:
    """Other figures than the right ones, the order number among them; where there are none, the opposite."""
    told = re.sub(r"\d+", lambda m: str(rng.randint(10 ** (len(m[0]) - 1), 10 ** len(m[0]) - 1)), text)
    for pattern, instead in WRONG.items():
        told = re.sub(pattern, instead, told) if told == text or rng.random() < 0.5 else told
    return told if told != text else "Да, конечно, это можно: оформите всё в день доставки. " + text.split(". ")[-1]


def poor(row: dict, other: dict, rng: random.Random) -> list[dict]:
    """The ten rows that are made of one; other: a row whose example got into the same answer."""
    asked, said = row["input"], row["output"]
    variants = [("near duplicate", begin + asked + rng.choice(ENDS), said) for begin in rng.sample(OPENINGS, 3)]
    variants += [("wrong facts", asked, wrong(said, rng)) for _ in range(2)]
    variants += [("HTML", asked, form(said)) for form in rng.sample(HTML_FORMS, 2)]
    variants += [("cut", asked, said[: rng.randint(len(said) // 4, len(said) // 2)])]
    variants += [("language", asked, rng.choice(ABROAD))]
    variants += [("merged examples", asked, f"{said} 2. Вопрос: {other['input']} Ответ: {other['output']}")]
    return [{"instruction": row["instruction"], "input": i, "output": o, "kind": kind} for kind, i, o in variants]


def main() -> None:
    rng = random.Random(48)
    rows = [json.loads(line) for line in (OUT / "support_ru.jsonl").read_text("utf-8").splitlines()]
    chosen = rng.sample(rows[1:], ROWS)  # the first one promises what no model can know
    made = [variant for i, row in enumerate(chosen) for variant in poor(row, chosen[i - 1], rng)]
    rng.shuffle(made)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    (OUT / "support_ru_poor.jsonl").write_text(text, "utf-8")
    print(len(made), "poor rows from", len(chosen))


if __name__ == "__main__":
    main()
