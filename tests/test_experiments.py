"""Sets of rows are compared fairly: on rows that none of them holds, at equal steps, and the sentence follows from the figures."""

import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from steps import load_4bit

from gemma_colab.core.rows import answer
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.workspace import samples
from gemma_colab.data.reading import read_rows
from gemma_colab.handover import experiments
from gemma_colab.handover.experiments import apart, artefacts, compare_sets, in_form, two_ways

SETTINGS = TrainSettings(
    learning_rate=5e-3, per_device_train_batch_size=4, gradient_accumulation_steps=1, num_train_epochs=1, warmup_steps=0
)


def with_answer(row, text, question=None):
    (asked, said) = row["messages"]
    return {"messages": [asked | {"content": question or asked["content"]}, said | {"content": text}]}


def test_no_twin_of_a_held_out_row_is_left(support_rows):
    held, others = support_rows[1:20], support_rows[40:120]
    html = [with_answer(row, f"<p>{answer(row)}</p>") for row in held]
    cut = [with_answer(row, answer(row)[:30]) for row in held]
    reworded = [with_answer(row, answer(row), "Здравствуйте! " + row["messages"][0]["content"] + " Спасибо.") for row in held]
    assert apart([*html, *others, *cut, *reworded], held) == others


def test_the_export_and_the_poor_rows_keep_no_twin_either(support_rows):
    for name in ("support_ru_raw.csv", "support_ru_poor.jsonl"):
        rows, held = read_rows(samples() / name, on_bad="aside").rows, support_rows[100:150]
        kept = apart(rows, held)
        assert 0.5 * len(rows) < len(kept) < len(rows)
        situations = {row["messages"][0]["content"].split("\n\n")[0] for row in held}
        assert not situations & {row["messages"][0]["content"].split("\n\n")[0] for row in kept}


def test_artefacts_are_seen_in_answers(support_rows):
    good = [answer(row) for row in support_rows[1:40]]
    assert not any(artefacts(good))
    bad = ["<p>Да, можно.</p>", "Цена 300&nbsp;рублей.", "Здравствуйте, {{name}}.", "Да. 2. Вопрос: где заказ? Ответ: в пути."]
    bad += ["по заказу можно вернуть " * 12, "РџРѕ Р·Р°РєР°Р·Сѓ СЃРєР°Р·Р°С‚СЊ", "Да.<end_of_turn>"]
    assert artefacts([*bad, *good]) == [True] * len(bad) + [False] * len(good)


def test_the_form_is_that_of_the_right_answers(support_rows):
    right = [answer(row) for row in support_rows]
    assert all(in_form(text, right) for text in right)
    text = right[1]
    assert not any(
        in_form(bad, right) for bad in [text[:-1], text + "!", text.replace(".", "!"), text * 4, text[:20], "", f"<p>{text}</p>"]
    )


def test_contradicting_answers_are_paired_with_the_right_one(support_rows):
    rows = support_rows[1:9]
    wrong = with_answer(rows[2], "Нет, этого мы не делаем.")
    assert [*two_ways({"export": [*rows, wrong, wrong], "reviewed": rows})] == [(rows[2], wrong)]
    assert [*two_ways({"export": rows, "reviewed": rows})] == []


@pytest.fixture
def told(monkeypatch, tokenizer, support_rows):
    """told(losses, **how) -> the table of runs that ended with these losses per token, for each set one for each seed."""
    asked = []

    def tell(losses, sets, **how):
        queue = iter(losses)

        def run(model, tokenizer, rows, settings, lora, dtype, **options):
            asked.append((rows, settings.seed, options["max_steps"]))
            loss = next(queue) + np.linspace(-0.05, 0.05, 12)
            return pd.DataFrame({"loss": 10 * loss, "tokens": 10}), {}, ""

        monkeypatch.setattr(experiments.short, "short_run", run)
        model = type("Model", (), {"name_or_path": "tiny-gemma3"})()
        held = support_rows[1:13]
        table, ax = compare_sets(model, tokenizer, sets, held, SETTINGS, LoraSettings(), torch.float32, **how)
        return table, ax, asked

    return tell


@pytest.mark.parametrize(
    ("halves", "wholes", "says"),
    [
        ((3.2, 3.3, 3.1), (3.1, 3.2, 3.0), "loss -0.10 (-0.10 to -0.10), lower for 3 of 3 seeds: more rows would help"),
        ((3.2, 3.3, 3.1), (3.1, 3.2, 3.2), "lower for 2 of 3 seeds: more rows of this kind would hardly help"),
        (
            (3.2, 3.3, 3.1),
            (3.4, 3.5, 3.3),
            "loss +0.20 (+0.20 to +0.20), lower for 0 of 3 seeds: more rows of this kind would hardly help",
        ),
    ],
)
def test_whether_more_rows_would_help_is_computed(halves, wholes, says, told, support_rows, capsys):
    table, ax, asked = told([3.5, 3.5, 3.5, *halves, *wholes], support_rows[40:80], seeds=(0, 1, 2))
    assert table.attrs["sentence"].startswith("Twice the rows: ")
    assert says in table.attrs["sentence"]
    assert table.attrs["sentence"] in capsys.readouterr().out
    assert list(table.index) == ["25%", "50%", "100%"]
    assert list(table["steps"]) == [10, 10, 10]  # one pass over all 40 rows: only the rows differ
    assert list(table["rows"]) == [10, 20, 40]
    assert (table.loc["50%", "lowest"], table.loc["50%", "highest"]) == pytest.approx((min(halves), max(halves)))
    assert [seed for _, seed, _ in asked] == [0, 1, 2] * 3
    quarters = [{row["line"] for row in rows} for rows, _, _ in asked[:3]]
    assert quarters[0] != quarters[1] != quarters[2]
    assert "tiny-gemma3" in ax.get_title()


def test_sets_are_judged_against_the_last_and_may_share_its_steps(told, support_rows):
    sets = {"little": support_rows[40:44], "much $^ more$": support_rows[40:80], "as many steps": support_rows[40:44]}
    table, ax, _asked = told([3.5, 3.0, 3.2004], sets, max_steps={"as many steps": "much $^ more$"})
    assert list(table["steps"]) == [1, 10, 10]
    assert list(table["loss"]) == [3.5, 3.0, 3.2]
    assert list(table["loss above “as many steps”"]) == ["+0.30 (+0.30 to +0.30)", "-0.20 (-0.20 to -0.20)", "–"]
    assert "“little” against “as many steps”: loss +0.30 (+0.30 to +0.30), worse" in table.attrs["sentence"]
    assert "“much $^ more$” against “as many steps”: loss -0.20 (-0.20 to -0.20), better" in table.attrs["sentence"]
    assert [label.get_text() for label in ax.get_xticklabels()][1] == "much $^ more$\n40 rows"
    ax.figure.savefig(io.BytesIO())  # a name is no mathematics


@pytest.mark.parametrize("sets", [3, 5, 6])
def test_the_names_of_sets_leave_room_for_one_another(sets, told, support_rows):
    names = ["few good rows, one pass", "many poor rows, as many steps", "many good rows, as many steps"]
    given = {f"{names[i % 3]}{' ' * i}": support_rows[40:44] for i in range(sets)}
    _, ax, _asked = told([3.0] * sets, given)
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_real_comparison_asks_and_leaves_the_model_as_it_was(random_gemma, tokenizer, support_rows, capsys):
    model, rows = load_4bit(random_gemma, torch.float32), support_rows[1:29]
    wrong = with_answer(rows[9], "Нет, этого мы не делаем.")
    sets = {"dirty": [*rows, wrong], "clean": rows[6:]}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    how = {"max_steps": 2, "ask": True, "apart_from": rows[4:6]}
    table, ax = compare_sets(model, tokenizer, sets, rows[:4], SETTINGS, LoraSettings(r=4), torch.float32, **how)
    said = capsys.readouterr().out
    assert "dirty: 6 of 29 rows are like held-out ones, and are left out." in said
    assert all(f"An answer after “{name}”: " in said for name in ("untrained", "dirty", "clean"))
    assert list(table.index) == ["untrained", "dirty", "clean"]
    assert list(table["rows"]) == [0, 23, 22]
    assert list(table["steps"]) == [0, 2, 2]
    assert list(table["in the right form"]) == ["0 of 4 (0% to 49%)"] * 3
    assert len({*table["loss"]}) == 3
    assert [*ax.figure.axes[1].get_legend_handles_labels()[1]] == ["artefacts", "in the right form"]
    assert set(table["prefers a wrong answer"]) <= {"0 of 1 (0% to 79%)", "1 of 1 (21% to 100%)"}
    assert np.isfinite(table["loss"]).all()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert experiments.SHARES[-1] == 1
