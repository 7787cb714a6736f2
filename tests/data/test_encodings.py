"""Encodings: the right letters, or a refusal; and the marks of joined files."""

import json

import pytest

from gemma_colab.core.errors import DatasetError
from gemma_colab.core.rows import answer
from gemma_colab.data.encodings import SPOKEN, readable
from gemma_colab.data.looking import question
from gemma_colab.data.reading import read_rows

TEXTS = {
    "ru": "вопрос\tответ\nГде мой заказ?\tВаш заказ уже в пути и придёт завтра утром.\nМожно ли вернуть товар?\tДа, в течение двух недель.\n"
    "Как связаться с оператором?\tПозвоните нам или напишите в чат, мы ответим быстро.\n",
    "el": "question\tanswer\nΠού είναι η παραγγελία μου;\tΤο δέμα σας είναι στον δρόμο και φτάνει αύριο.\n"
    "Πώς επιστρέφω ένα προϊόν;\tΣτείλτε το πίσω μέσα σε δεκατέσσερις ημέρες.\n",
    "tr": "soru\tcevap\nSiparişim nerede?\tSiparişiniz yolda, yarın öğleden önce ulaşır.\n"
    "İade edebilir miyim?\tEvet, on dört gün içinde iade edebilirsiniz.\n",
    "he": "question\tanswer\nאיפה ההזמנה שלי?\tההזמנה שלך בדרך ותגיע מחר בבוקר.\nאפשר להחזיר מוצר?\tכן, בתוך ארבעה עשר ימים.\n",
    "pl": "pytanie\todpowiedź\nGdzie jest moje zamówienie?\tZamówienie już do ciebie jedzie i będzie jutro rano.\n"
    "Czy mogę zwrócić?\tTak, w ciągu czternastu dni, wysyłając paczkę.\n",
    "de": "Frage\tAntwort\nWo ist meine Bestellung?\tSie ist unterwegs und kommt übermorgen.\n"
    "Kann ich zurückgeben?\tJa, innerhalb von vierzehn Tagen können Sie das Gerät zurückschicken. Größe L.\n",
    "en": "question\tanswer\nWhat’s new?\t“Don’t worry” — it’s fine, and we’re here… 5 €\nWhy?\tIt is what it is.\n",
    "ja": "question\tanswer\n注文はどこですか。\tご注文は明日の朝に届きます。\n返品できますか。\tはい、十四日以内に返品できます。\n",
}
RIGHT = [
    ("ru", "cp1251", "Windows-1251"),
    ("ru", "koi8_r", "KOI8-R"),
    ("ru", "cp866", "code page 866 (DOS)"),
    ("ru", "mac_cyrillic", "Mac Cyrillic"),
    ("ru", "iso8859_5", "ISO 8859-5"),
    ("el", "cp1253", "Windows-1253"),
    ("tr", "cp1254", "Windows-1254"),
    ("he", "cp1255", "Windows-1255"),
    ("de", "cp1252", "Windows-1252"),
    ("en", "cp1252", "Windows-1252"),
]
OTHERS = {
    "el": "mac_greek iso8859_7",
    "tr": "mac_turkish iso8859_9",
    "pl": "cp1250 iso8859_2 mac_latin2 cp852",
    "de": "mac_roman cp850",
}
OTHERS |= {"en": "mac_roman", "ja": "cp932 euc_jp", "ru": "cp1251 koi8_r cp866 mac_cyrillic iso8859_5"}


def read(path, text, codec):
    path.write_bytes(text.encode(codec))
    columns = text.split("\n")[0].split("\t")
    return read_rows(path, mapping=dict(zip(("instruction", "output"), columns, strict=True)))


@pytest.mark.parametrize(("language", "codec", "name"), RIGHT)
@pytest.mark.parametrize("before", [0, 3000])
def test_the_letters_are_right_and_the_guess_is_said(tmp_path, language, codec, name, before):
    header, rest = TEXTS[language].split("\n", 1)
    source = read(tmp_path / "a.tsv", f"{header}\n" + "plain\tASCII only\n" * before + rest, codec)
    assert [f"{question(row)}\t{answer(row)}" for row in source.rows[before:]] == rest.splitlines()
    assert source.details.endswith(name)
    assert source.notes == (f"the encoding, {name}, was guessed: look whether the letters are right",)
    assert source.notes[0] in repr(source)


@pytest.mark.parametrize(
    ("language", "codec"), [(language, codec) for language, codecs in OTHERS.items() for codec in codecs.split()]
)
@pytest.mark.parametrize("rows", [1, 2])
def test_right_letters_or_a_refusal_but_never_gibberish(tmp_path, language, codec, rows):
    text = "\n".join(TEXTS[language].split("\n")[: rows + 1]).encode(codec, "ignore").decode(codec)
    try:
        told = [f"{question(row)}\t{answer(row)}" for row in read(tmp_path / "a.tsv", text, codec).rows]
    except DatasetError as e:
        told = str(e)
    refused = "a.tsv: the encoding of its text can't be told; save it as UTF-8 and try again"
    assert told in (refused, text.split("\n")[1:])


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("language", ["ru", "en", "he"])
def test_unicode_with_a_mark_and_without(tmp_path, codec, language):
    source = read(tmp_path / "a.csv", TEXTS[language], codec)
    assert [answer(row) for row in source.rows] == [line.split("\t")[1] for line in TEXTS[language].splitlines()[1:]]
    assert not source.notes  # nothing was guessed
    lines = "".join(json.dumps({"question": "a", "answer": answer(row)}, ensure_ascii=False) + "\n" for row in source.rows)
    (tmp_path / "a.jsonl").write_bytes(lines.encode(codec))
    assert [answer(row) for row in read_rows(tmp_path / "a.jsonl").rows] == [answer(row) for row in source.rows]


def test_every_encoding_that_may_be_guessed_has_a_name():
    names = [readable(codec) for codec in SPOKEN]
    assert len(set(names)) == len(names)
    assert {"Windows-1251", "KOI8-U", "code page 852 (DOS)", "Mac Greek", "ISO 8859-2"} <= set(names)


def test_marks_in_the_middle_of_joined_files_are_taken_out_and_counted(tmp_path):
    row = '{"question": "Где заказ?", "answer": "В пути."}\n'
    for name, text, lines in (
        ("a.jsonl", row + "\ufeff" + row + row + "\ufeff" + row, "2, 4"),
        ("a.csv", 'question,answer\nа,б\n\ufeff"в, г",д\n', "3"),
        ("a.json", "[\n" + row.strip() + ",\n\ufeff" + row + "]", "3"),
    ):
        for codec in ("utf-8", "utf-16"):
            (tmp_path / name).write_bytes(text.encode(codec))
            source = read_rows(tmp_path / name)
            assert not any("\ufeff" in question(row) for row in source.rows)
            assert source.notes == (f"a byte order mark in the middle, as of joined files, taken out: line {lines}",)
    assert [question(row) for row in read_rows(tmp_path / "a.csv").rows] == ["а", "в, г"]
    (tmp_path / "b.json").write_text(f"[\n{row}]\n\ufeff[{row},\n{row}]")
    assert [row["line"] for row in read_rows(tmp_path / "b.json").rows] == [2, 4, 6]  # no list of the second file is one bad row


def test_a_mac_file_of_one_template_is_not_taken_for_windows(tmp_path):
    """The capital letters of the one are signs of punctuation in the other, and all small ones but one are the same."""
    text = "question\tanswer\n" + "".join(
        f"Вопрос номер {i}: где мой заказ\tВаш заказ {i} уже в пути, ждите.\n" for i in range(60)
    )
    source = read(tmp_path / "a.csv", text, "mac_cyrillic")
    assert source.details.endswith("Mac Cyrillic")
    assert question(source.rows[5]) == "Вопрос номер 5: где мой заказ"
