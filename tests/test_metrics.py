"""Metrics on answers one can score by hand, in Cyrillic too; failure modes and memorization of planted answers."""

import json
import random
import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
from recipes import recipe

from gemma_colab.core.rows import answer, to_messages
from gemma_colab.core.workspace import read_sample, samples
from gemma_colab.evaluation import metrics as m
from gemma_colab.evaluation.candidates import Evaluation
from gemma_colab.evaluation.compare import compare, loss_gap
from gemma_colab.evaluation.failures import failures, other_language, repeating, unlike
from gemma_colab.evaluation.knowledge import memorization, own_wording
from gemma_colab.evaluation.verdict import verdict


def test_likeness():
    assert m.exact_match(["да ", "нет", "два  слова"], ["да", "да", "два слова"]) == [1.0, 0.0, 1.0]
    assert m.token_f1(["Заказ в пути", "", "раз"], ["заказ уже в пути", "а", "два"]) == [pytest.approx(6 / 7), 0.0, 0.0]
    # The longest common subsequence of "b a c" and "a b c" has two words; as a bag they are equal.
    assert m.rouge_l(["б а в", "", "ёж"], ["а б в", "а", "ЕЖ"]) == [pytest.approx(2 / 3), 0.0, 1.0]
    assert m.token_f1(["б а в"], ["а б в"]) == [1.0]
    assert m.token_f1(["👍", "👍", ""], ["👍", "да", ""]) == m.rouge_l(["👍", "👍", ""], ["👍", "да", ""]) == [1.0, 0.0, 1.0]
    near, far, same = m.chrf(["заказа", "колбаса", "заказ"], ["заказ"] * 3)
    assert same == 1 > near > 0.5 > far


def test_rouge_l_equals_the_usual_definition_on_english():
    # 5 of 6 and 5 of 7 words in order: P = 5/6, R = 5/7
    (score,) = m.rouge_l(["the cat sat on the mat"], ["the big cat sat on a mat"])
    assert score == pytest.approx(2 * (5 / 6) * (5 / 7) / (5 / 6 + 5 / 7))


def test_metrics_of_the_recipe():
    own = recipe("Metrics of your own")
    assert own["form"](r"[^!]{3,}[.]")(["Да, конечно.", "Нет!", "Строка\nи ещё."], [""] * 3) == [1.0, 0.0, 1.0]
    assert own["required"]("Спасибо")(["спасибо за вопрос", "пожалуйста"], [""] * 2) == [1.0, 0.0]
    assert own["forbidden"]("гарантирую")(["Гарантирую!", "проверю"], [""] * 2) == [0.0, 1.0]
    schema = {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}
    texts = ['{"id": 7}', '{"id": "7"}', "{}", "id: 7", '```json\n{"id": 7}\n```', "[" * 100_000]
    assert own["valid_json"](schema)(texts, [""] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    copied = own["copied"](r"№\s?(\d{5})(?!\d)")
    assert copied(
        ["Заказ №12345 едет", "Заказ №12354", "Заказ №123456", "№12345 и №99999", "Да"],
        ["№12345", "№12345", "№12345", "№12345", "Номера нет"],
    ) == [1.0, 0.0, 0.0, 0.0, None]
    assert copied.__doc__.startswith("1 where the answer has the same")


@pytest.mark.parametrize("metric", [*m.USUAL.values(), m.contains_answer])
def test_as_many_answers_as_references_or_an_error(metric):
    for answers, references in ((["а", "б"], ["а"]), (["а"], ["а", "б"])):
        with pytest.raises(ValueError, match="argument 2 is"):
            metric(answers, references)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        failures(pd.DataFrame({"answer": ["а", "б"], "finished": True}), ["а"])


def test_general_answers():
    assert m.contains_answer(["Это ёлка.", "Столица — Париж!", "13"], ["елка", "париж", "3"]) == [1.0, 1.0, 0.0]
    assert m.contains_answer(["Это Чехия.", "зелёного цвета", "Вене", "cities"], ["Чехии", "зелёная", "Вена", "city"]) == [
        1,
        1,
        0,
        0,
    ]


def test_repeating():
    assert repeating("Отс have have have have")
    assert repeating("да и нет да и нет да и нет")
    assert not repeating("Это очень, очень хороший вопрос, и ответ на него простой.")
    for length in range(1, 7):
        phrase = "раз два три четыре пять шесть".split()[:length]
        assert not repeating(" ".join([*phrase * 2, *phrase[:-1]]))
        assert repeating(f"Ответ: {' '.join(phrase * 3)}, конец")
    assert repeating(" ".join(["раз два три"] * 2 + ["и раз два три", "о раз два три"] * 4))


def test_a_long_text_repeats_where_fewer_than_half_of_its_pairs_are_new():
    words = "раз два три четыре пять шесть семь восемь девять десять".split()

    def cycle(length, of):
        return " ".join(words[i % of] for i in range(length))

    assert not repeating(" ".join(f"слово{i}" for i in range(40)))
    assert not repeating(cycle(21, of=10))  # ten of twenty
    assert repeating(cycle(21, of=9))
    assert repeating(cycle(20, of=9))
    assert not repeating(cycle(19, of=8))  # too short to tell


def test_another_language_shows_from_200_letters_on():
    german = ("Vielen Dank für Ihre Nachricht. Wir werden Ihre Bestellung so schnell wie möglich prüfen. " * 5)[:300]
    english = ("Thank you for your message. We will look at your order as soon as possible and come back. " * 5)[:300]

    def with_letters(text, many):
        while len(re.findall("[A-Za-z]", text)) > many:
            text = text[:-1]
        return text

    for mine, theirs, other in ((200, 250, True), (250, 200, True), (199, 250, False), (250, 199, False)):
        assert other_language(with_letters(german, mine), with_letters(english, theirs)) == other
    assert other_language("Я", "Order")
    assert other_language("I", "Заказ")
    assert not other_language("Я", "Заказ")


def test_failures_stand_beside_their_rows():
    table = pd.DataFrame({"answer": ["", "да", "a a a"], "finished": [True, False, True]}, index=[5, 7, 9])
    found = failures(table, ["да", "да", "a a a"])
    assert list(found.index) == [5, 7, 9]
    assert list(found.columns) == ["empty", "hit the limit", "repeating", "other language"]
    assert found.to_numpy().tolist() == [[True, False, False, False], [False, True, False, False], [False] * 4]


def test_memorization_adds_the_losses_of_train_and_test():
    train = pd.DataFrame({"loss": [10.0, 12, 9, 14, 8], "tokens": [5, 5, 4, 6, 4]})
    test = pd.DataFrame({"loss": [15.0, 13, 16, 20], "tokens": [5, 4, 5, 8]})
    answers = {"train": ["а"], "test": ["б"]}
    table = memorization(answers, answers, losses=(train, test))
    columns = ["rows", "word for word", "by heart", "common prefix", "longest prefix"]
    assert list(table.columns) == [*columns, "loss", "gap", "low", "high"]
    assert table["loss"].tolist() == [53 / 24, 64 / 22]
    assert table.loc["test", ["gap", "low", "high"]].tolist() == list(loss_gap(train, test))
    assert table.loc["train", ["gap", "low", "high"]].isna().all()
    assert list(memorization(answers, answers).columns) == columns
    assert memorization({"train": []}, {"train": []}).loc["train"].tolist() == [0, 0, 0, 0, 0]


def test_whose_wording_is_its_own():
    texts = ["Заказ едет к вам", "Заказ едет домой к вам", "Заказ 12345 едет", "Да"]
    assert own_wording(texts) == {*texts[:3]}
    assert own_wording(["а б в", "а б", "б в"]) == set()


def test_other_language():
    assert other_language("I cannot help you with that", "Заказ передан в доставку")
    assert not other_language("Заказ передан", "Заказ в пути, ID 12345")
    assert not other_language("№12345", "Заказ в пути")  # no letter to judge by
    german = "Vielen Dank für Ihre Nachricht. Wir werden Ihre Bestellung so schnell wie möglich prüfen und melden uns. " * 3
    english = "Thank you for your message. We will look at your order as soon as possible and come back to you. " * 3
    assert other_language(german, english)
    assert not other_language(english, english)


def test_failure_modes_are_a_share_of_the_answers():
    table = pd.DataFrame({"answer": ["", "да", "a a a a", "ok"], "tokens": [0, 1, 4, 1], "finished": [True, True, False, True]})
    references = ["да", "да", "да", "да"]
    assert failures(table, references).sum().to_dict() == {"empty": 1, "hit the limit": 1, "repeating": 1, "other language": 2}
    line = Evaluation([{"messages": [{"content": r}]} for r in references], {"tuned": table}).failure_modes().loc["tuned"]
    assert (line["empty"], line["other language"], line["any"], line["tokens"]) == (0.25, 0.5, 0.75, 1.5)
    assert (
        not failures(table, list(table["answer"]))[["empty", "repeating", "other language"]].any().any()
    )  # as the right ones are


def test_memorization_counts_words_from_the_start():
    table = memorization({"test": ["Раз два семь", "нет", "", ""]}, {"test": ["раз, два три четыре", "да", "да", "."]})
    assert table.loc["test", "common prefix"] == (0.5 + 0 + 0 + 1) / 4
    said, right = {"train": ["а б в", "х"], "test": ["в а г", "х"]}, {"train": ["а б в", "у"], "test": ["в а в", "б"]}
    table = memorization(said, right)
    assert table.loc["train"].to_dict() == {
        "rows": 2,
        "word for word": 0.5,
        "by heart": 0.5,
        "common prefix": 0.5,
        "longest prefix": 1.0,
    }
    assert table.loc["test", "word for word"] == 0
    assert memorization({"train": ["а б"]}, {"train": ["а б"]}).loc["train", "by heart"] == 1
    as_test = memorization({"train": ["а"], "test": ["а"]}, {"train": ["а"], "test": ["а"]})
    assert verdict(BETTER, memorized=table)["against"] == ["it recites training answers"]
    assert verdict(BETTER, memorized=as_test)["against"] == []


BETTER = compare({"m": ([0.0] * 20, [1.0] * 20)})
samples_of = cache(lambda name: [answer(to_messages(row)) for row in read_sample(name)])
LABELS = ["card arrival", "card not working", "refund not showing up", "top up failed", "exchange rate"]
TAGS = ["urgent", "billing", "refund", "delivery", "bug", "praise"]
FORMS = {  # what a closed form answers to question n: nothing that could be recited
    "labels": lambda n: LABELS[n % 5],
    "yes or no": lambda n: ["Да.", "Нет."][n % 2],
    "tags": lambda n: ", ".join(TAGS[i] for i in range(6) if (n * 7) >> i & 1) or "none",
    "a number": lambda n: str(n * 37),
    "a sentence with slots": lambda n: f"Заказ №{n * 971 + 10000} приедет {n % 28 + 1} мая, заберёт курьер name{n}.",
    "a query": lambda n: f"SELECT {TAGS[n % 6]} FROM {TAGS[n % 5]} WHERE id = {n * 7}",
    "one of a few texts": lambda n: samples_of("support_en")[n % 12],
    "tickets": lambda n: samples_of("tickets_ru")[n],
    "tickets_en": lambda n: samples_of("tickets_en")[n],
}
FREE = {"support_ru": samples_of("support_ru"), "support_en": samples_of("support_en")}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_closed_form_filled_in_rightly_is_not_recited(form):
    answers = [form(n) for n in range(120)]
    right = {"train": answers[:40], "test": answers[100:]}
    said = right | {"test": ["wrong"] * 20}  # right where it was trained, wrong where it was not: overfitted, but no recital
    table = memorization(said, right, known=answers[:100])
    assert table.loc["train", "word for word"] == 1
    assert table.loc["train", "by heart"] < 0.2
    found = verdict(BETTER, memorized=table)
    assert "it recites training answers" not in found["against"]
    assert "100% of its training answers word for word" in str(found)
    assert "repeats in other right answers" in str(found)


def test_where_no_spaces_are_written_each_sign_is_a_word():
    assert m.words("Gemma 3 會說中文") == ["gemma", "3", "會", "說", "中", "文"]
    answers = [m.words(text) for text in samples_of("support_en")[:24]]
    signs = {word: chr(0x4E00 + n) for n, word in enumerate(sorted({w for some in answers for w in some}))}
    written = ["".join(map(signs.get, some)) for some in answers]  # as if English were written so
    assert memorization({"train": written}, {"train": written}).loc["train", "by heart"] >= 0.8


@pytest.mark.parametrize("answers", FREE.values(), ids=FREE)
@pytest.mark.parametrize("many", [8, 100])
def test_free_text_word_for_word_is_recited(answers, many):
    right = {"train": answers[:8], "test": answers[100:116]}
    table = memorization(right | {"test": answers[116:132]}, right, known=answers[:many])
    assert table.loc["train", "by heart"] >= 0.8
    found = verdict(BETTER, memorized=table)
    assert "it recites training answers" in found["against"]
    assert "repeats in other right answers" not in str(found)
    in_a_form = {split: [json.dumps({"topic": "delivery", "reply": text}) for text in texts] for split, texts in right.items()}
    assert memorization(in_a_form, in_a_form).loc["train", "by heart"] >= 0.8


# Right answers of `support_ru`, and the same said in other words by a person.
PARAPHRASES = [
    (
        "Вскрытый комплект вернуть не получится: постельное бельё надлежащего качества принимаем обратно только в нетронутой упаковке. Жаль, что ткань вам не подошла.",
        "К сожалению, распакованное постельное бельё мы назад не берём, если в нём нет брака. Вернуть можно только комплект в целой упаковке.",
    ),
    (
        "Поручиться за срок по заказу №31752 не могу: на решение о замене уходит до 2 рабочих дней, потом ещё доставка. Если фото пришлёте сейчас, выиграете время; другой вариант — взять деньги.",
        "По заказу №31752 не обещаю, что успеем: решение принимаем за 2 рабочих дня, и ещё нужна доставка. Отправьте фото прямо сейчас или выберите возврат денег.",
    ),
    (
        "Заказ №42058 должны были передать в службу доставки за 1 рабочий день, извините за неудобство. Задержкой займётся старший специалист, его ответ придёт сюда в течение 24 часов.",
        "Извините за неудобство, заказ №42058 действительно задержался: обычно отдаём его курьерам за 1 рабочий день. Передам вопрос старшему специалисту, он ответит за 24 часа.",
    ),
    (
        "Деньги по заказу №89034 вернутся на ту же карту в течение 10 дней после того, как гирлянда дойдёт до склада. Считайте именно с этого дня, а не с даты отправки.",
        "За заказ №89034 деньги придут на вашу карту не позже чем через 10 дней с момента, когда товар получит склад.",
    ),
    (
        "Дешевле забрать самостоятельно: доставка в пункт выдачи стоит 190 ₽, а курьером — 390 ₽. Если заказ от 3 000 ₽ и в нём нет крупногабарита, доставка будет бесплатной.",
        "Пункт выдачи выгоднее: 190 ₽ против 390 ₽ за курьера. А от 3 000 ₽ доставка вообще бесплатна, кроме крупногабаритных товаров.",
    ),
    (
        "Отмените заказ №59906 в «Моих заказах» сейчас, до отправки это бесплатно. Что будет с первым платежом и остатком рассрочки, вам напишет старший специалист в течение 24 часов.",
        "Пока заказ №59906 не отправлен, его можно бесплатно отменить в разделе «Мои заказы». По рассрочке ответит старший специалист в течение суток.",
    ),
    (
        "Закажите тарелки отдельно: 3 300 ₽ достаточно, чтобы их привезли бесплатно. Комод тяжелее 25 кг, поэтому его доставка в любом случае стоит 990 ₽.",
        "Лучше оформить посуду вторым заказом: на 3 300 ₽ доставка бесплатная. За комод весом больше 25 кг придётся заплатить 990 ₽ в любом случае.",
    ),
    (
        "Двойного тарифа нет: Калининград — обычная доставка по России, курьер привезёт заказ за 3–7 дней и 390 ₽. Таможенных сборов наши правила тоже не предусматривают.",
        "В Калининград доставляем как по всей России: 390 ₽, срок 3–7 дней. Ни двойной цены, ни таможни не будет.",
    ),
]
# What the tiny model made of three questions: the house's words, its length and its full stop, and no sense.
NONSENSE = [
    "ССс заказ №31752 промочим в течение 24 часов, а в течение 24 часов. Подите её содно, получения, и её в течение 24 часов.",
    "Перам заказ №79028 в течение 14 дней, получения, почения, почения. По заказу №79028, почения, почения, и заказ №79028.",
    "Возврат в течение 14 дней, получения, получения, почения, почения. Пришлите специалисту, и на сайте, если в течение 24 часов.",
]


def test_nonsense_in_the_words_of_the_house_is_unlike_and_a_paraphrase_is_not(support_rows):
    right = [answer(row) for row in support_rows]
    spoken = [word for text in right for word in text.split()]
    mixed = [" ".join(random.Random(n).sample(spoken, len(text.split()))) for n, text in enumerate(right)]
    assert np.mean(unlike(mixed, right)) > 0.9
    assert np.mean(unlike(right[1:] + right[:1], right)) > 0.9  # good answers, each to another question
    assert not any(unlike(right, right))
    references, said = zip(*PARAPHRASES, strict=True)
    assert not any(unlike([*said, *right], [*references, *right])[: len(said)])
    numbered = [text for text, _ in PARAPHRASES][1:4]
    assert all(unlike([*NONSENSE, *right], [*numbered, *right])[: len(NONSENSE)])


def test_what_fills_in_a_form_is_like_only_if_it_is_right():
    tickets = [answer(to_messages(row)) for row in read_sample("tickets_ru")[:200]]
    assert not any(unlike(tickets, tickets))
    wrong = [re.sub(r'"topic": "\w+"', '"topic": "other"', text).replace('"mood": "calm"', '"mood": "angry"') for text in tickets]
    changed = [said != right for said, right in zip(wrong, tickets, strict=True)]
    assert sum(changed) > 150
    assert np.mean([far for far, other in zip(unlike(wrong, tickets), changed, strict=True) if other]) > 0.8
    labels = ["yes", "no"] * 20
    assert unlike(["yes"] * 40, labels) == [label != "yes" for label in labels]
    assert unlike(["a", ""], ["a", "a"]) == [False, True]  # nothing to compare with


CHECKS = {
    "refund": {"required": [r"10 дн", "карт"], "forbidden": [r"(?<!\d)(?!10\b)\d+ дн"]},
    "*": {"forbidden": ["скидк", r"№\d"]},
}


def test_rules_of_a_house_are_required_and_forbidden():
    right = ["Деньги вернутся на карту в течение 10 дней.", "Вернём за 10 дней.", "Добрый день."]
    measures = m.rule_checks([["refund"], ["refund"], []], CHECKS)
    assert [metric(right, right) for metric in measures.values()] == [[1, 1, None], [1, 1, 1]]
    said = [
        "В течение 10\u00a0дней.",
        "Вернём на КАРТУ за 10 дней.",
        "Дадим скидку.",
    ]  # only what the right answer says is required
    assert measures["rules stated"](said, right) == [0, 1, None]
    assert measures["nothing forbidden"](said, right) == [1, 1, 0]
    assert measures["nothing forbidden"](["За 14 дней."] * 3, right) == [0, 0, 1]  # another row's rule does not hold here


def test_the_shop_keeps_its_own_rules(support_rows):
    checks = json.loads((samples() / "shop_checks_ru.json").read_text(encoding="utf-8"))
    rows = read_sample("support_ru")
    assert checks.keys() - {"*"} == {name for row in rows for name in row["rules"]}
    facts = (samples() / "shop_facts_ru.md").read_text(encoding="utf-8")
    assert all(f"\n| {name} |" in facts for name in checks.keys() - {"*"})
    right = [row["output"] for row in rows]
    stated, kept = m.rule_checks([row["rules"] for row in rows], checks).values()
    scores = stated(right, right)
    assert set(scores) == {1.0, None}
    assert sum(score is not None for score in scores) > 0.9 * len(rows)
    assert set(kept(right, right)) == {1.0}
    moved = [score for score in stated(right[1:] + right[:1], right) if score is not None]
    assert np.mean(moved) < 0.2  # an answer to another question
    bad = {
        "refund": "Деньги вернём в течение 30 дней.",
        "account": "Введите пароль.",
        "*": "Гарантируем скидку 20 %, заказ №12345.",
    }
    for rule, text in bad.items():
        _, kept = m.rule_checks([[rule]], checks).values()
        assert kept([text], ["Здравствуйте."]) == [0.0], rule
