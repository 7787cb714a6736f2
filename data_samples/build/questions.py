"""Simple general questions in Russian and English: what the tiny Gemma 3 is pre-trained on, and nothing about a shop.

Every kind is a small function `rng -> (question, answer, key)`; `key` is the part of the answer that must be right.
A tenth of all questions, chosen by a checksum of their text, is held out and never trained on.
"""

import random
import zlib
from typing import NamedTuple


class Question(NamedTuple):
    kind: str
    language: str
    question: str
    answer: str
    key: str


KINDS = {}


def kind(make):
    KINDS[make.__name__] = make
    return make


def held_out(question: str) -> bool:
    return zlib.crc32(question.encode()) % 10 == 0


def draw(rng: random.Random, *, test: bool = False, kinds: list[str] | None = None) -> Question:
    """One question of a random kind, from the held-out tenth if `test`, from the rest otherwise."""
    while True:
        name = rng.choice(kinds or DRAWN)
        question, answer, key = KINDS[name](rng)
        if held_out(question) == test:
            return Question(name[:-3], name[-2:], question, answer, key)


# --------------------------------------------------------------------------------------------- word lists
def pairs(text):
    return [tuple(item.split(":")) for item in text.replace("\n", " ").split(" ") if item]


CAPITALS_RU = [
    tuple(x.split(":"))
    for x in (
        "России:Москва,Франции:Париж,Японии:Токио,Италии:Рим,Испании:Мадрид,Германии:Берлин,Китая:Пекин,Египта:Каир,"
        "Польши:Варшава,Греции:Афины,Австрии:Вена,Венгрии:Будапешт,Чехии:Прага,Швеции:Стокгольм,Норвегии:Осло,"
        "Финляндии:Хельсинки,Дании:Копенгаген,Португалии:Лиссабон,Турции:Анкара,Индии:Дели,Кубы:Гавана,Канады:Оттава,"
        "Ирландии:Дублин,Сербии:Белград,Армении:Ереван,Грузии:Тбилиси,Болгарии:София,Латвии:Рига,Эстонии:Таллин,Перу:Лима"
    ).split(",")
]
CAPITALS_EN = [
    tuple(x.split(":"))
    for x in (
        "Russia:Moscow,France:Paris,Japan:Tokyo,Italy:Rome,Spain:Madrid,Germany:Berlin,China:Beijing,Egypt:Cairo,"
        "Poland:Warsaw,Greece:Athens,Austria:Vienna,Hungary:Budapest,Norway:Oslo,Sweden:Stockholm,Finland:Helsinki,"
        "Denmark:Copenhagen,Portugal:Lisbon,Turkey:Ankara,India:Delhi,Cuba:Havana,Canada:Ottawa,Ireland:Dublin,"
        "Serbia:Belgrade,Armenia:Yerevan,Georgia:Tbilisi,Bulgaria:Sofia,Latvia:Riga,Estonia:Tallinn,Peru:Lima,Iceland:Reykjavik"
    ).split(",")
]
OPPOSITES_RU = pairs(
    "большой:маленький горячий:холодный быстрый:медленный новый:старый светлый:тёмный высокий:низкий широкий:узкий "
    "тяжёлый:лёгкий мягкий:твёрдый сухой:мокрый чистый:грязный полный:пустой громкий:тихий длинный:короткий сильный:слабый "
    "добрый:злой день:ночь утро:вечер верх:низ вход:выход начало:конец север:юг зима:лето правда:ложь война:мир"
)
OPPOSITES_EN = pairs(
    "big:small hot:cold fast:slow new:old light:dark high:low wide:narrow heavy:weightless soft:hard dry:wet clean:dirty "
    "full:empty loud:quiet long:short strong:weak kind:cruel day:night morning:evening top:bottom in:out start:end "
    "north:south winter:summer true:false open:closed"
)
WORDS_RU = (
    "кот дом лес река гора стол окно книга город поле море снег хлеб чай дождь ключ лампа мост сад птица рыба камень трава "
    "небо звезда луна солнце ветер песок лодка поезд школа мяч шар нос рука нога голова сердце друг брат сестра дед внук "
    "музыка песня танец игра слово буква число лист корень цветок яблоко груша слива малина морковь лук гриб мёд соль"
).split()
WORDS_EN = (
    "cat house forest river hill table window book city field sea snow bread tea rain key lamp bridge garden bird fish stone "
    "grass sky star moon sun wind sand boat train school ball nose hand leg head heart friend brother sister music song "
    "dance game word letter number leaf root flower apple pear plum carrot onion mushroom honey salt king queen road"
).split()
COLOURS_RU = pairs(
    "трава:зелёная кровь:красная сажа:чёрная сметана:белая малина:красная ночь:тёмная роза:красная морковь:оранжевая "
    "ель:зелёная соль:белая берёза:белая пшеница:жёлтая"
)
COLOURS_EN = pairs(
    "grass:green blood:red coal:black snow:white milk:white sky:blue lemon:yellow carrot:orange tomato:red chocolate:brown "
    "cucumber:green banana:yellow"
)
SOUNDS_RU = pairs("мяу:кошка гав:собака му:корова хрю:свинья ме:коза бе:овца кря:утка ку-ку:кукушка кар:ворона ква:лягушка")
SOUNDS_EN = pairs("meow:cat woof:dog moo:cow oink:pig quack:duck baa:sheep neigh:horse cuckoo:cuckoo caw:crow croak:frog")
CLASSES_RU = {
    "животное": "кошка собака корова лошадь волк медведь лиса заяц тигр слон".split(),
    "растение": "берёза дуб сосна роза ромашка клевер мох тополь липа ель".split(),
    "город": "Москва Париж Рим Берлин Прага Вена Лондон Мадрид Казань Томск".split(),
    "число": "один два три четыре пять шесть семь восемь девять десять".split(),
}
CLASSES_EN = {
    "an animal": "cat dog cow horse wolf bear fox hare tiger elephant".split(),
    "a plant": "oak pine rose daisy clover moss birch lime fir fern".split(),
    "a city": "Moscow Paris Rome Berlin Prague Vienna London Madrid Oslo Cairo".split(),
    "a number": "one two three four five six seven eight nine ten".split(),
}
DAYS_RU = "понедельник вторник среда четверг пятница суббота воскресенье".split()
DAYS_RU_GEN = "понедельника вторника среды четверга пятницы субботы воскресенья".split()
DAYS_EN = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS_RU = "январь февраль март апрель май июнь июль август сентябрь октябрь ноябрь декабрь".split()
MONTHS_RU_GEN = "января февраля марта апреля мая июня июля августа сентября октября ноября декабря".split()
MONTHS_EN = "January February March April May June July August September October November December".split()
NAMES_RU = (
    "Анна Борис Вера Глеб Дарья Егор Жанна Захар Ирина Кирилл Лидия Марк Нина Олег Павел Роман Софья Тимур Ульяна Фёдор".split()
)
NAMES_EN = "Ada Ben Cleo Dan Eve Finn Gus Hana Ivo Jun Kate Leo Mia Noah Olga Paul Rosa Sam Tina Will".split()
TRANSLATIONS = list(zip(WORDS_RU[:30], WORDS_EN[:30], strict=True))
PLURALS_EN = pairs(
    "cat:cats book:books key:keys city:cities child:children man:men foot:feet mouse:mice box:boxes leaf:leaves "
    "bird:birds tooth:teeth day:days baby:babies knife:knives"
)
PLURALS_RU = pairs(
    "кот:коты стол:столы книга:книги ключ:ключи город:города друг:друзья окно:окна птица:птицы дерево:деревья "
    "брат:братья рука:руки лист:листья слово:слова песня:песни мост:мосты"
)
SUBJECTS_RU = (
    "Кошка,Старый мастер,Молодая художница,Маленький мальчик,Весёлый почтальон,Сосед,Учительница,Рыбак,Лётчик,Доктор,"
    "Белый голубь,Лесной ёж,Дедушка,Бабушка,Строитель,Музыкант,Внимательный читатель,Садовник,Пекарь,Капитан"
).split(",")
VERBS_RU = (
    "спит,поёт,работает,отдыхает,читает газету,пьёт чай,смотрит в окно,ждёт друга,рисует дом,считает звёзды,ищет ключ,"
    "пишет письмо,слушает музыку,играет,думает о море,рассказывает сказку,собирает грибы,чинит часы,варит суп,ест яблоко"
).split(",")
PLACES_RU = (
    "на диване,в саду,у реки,под мостом,в старом доме,на высокой горе,в школе,за столом,у окна,в поле,на берегу моря,в лесу,"
    "на крыше,в библиотеке,возле станции,в большом городе,на кухне,под деревом,в парке,на палубе"
).split(",")
SUBJECTS_EN = (
    "The cat,An old master,A young artist,The little boy,The postman,A neighbour,The teacher,A fisherman,The pilot,The doctor,"
    "A white dove,The hedgehog,Grandfather,Grandmother,The builder,A musician,The reader,The gardener,The baker,A captain"
).split(",")
VERBS_EN = (
    "sleeps,sings,works,rests,reads a newspaper,drinks tea,looks out,waits for a friend,draws a house,counts stars,"
    "looks for a key,writes a letter,listens to music,plays,thinks of the sea,tells a story,picks mushrooms,mends a clock,"
    "cooks soup,eats an apple"
).split(",")
PLACES_EN = (
    "on the sofa,in the garden,by the river,under the bridge,in an old house,on a high hill,at school,at the table,by the window,"
    "in the field,on the beach,in the forest,on the roof,in the library,near the station,in the big city,in the kitchen,"
    "under a tree,in the park,on the deck"
).split(",")
# Things that carry a number (nominative, genitive). No order, parcel, receipt or card: the shop is kept out of pre-training.
NUMBERED_RU = (
    "билет:билета,поезд:поезда,кабинет:кабинета,автобус:автобуса,вагон:вагона,рецепт:рецепта,дом:дома,документ:документа,"
    "рейс:рейса,пропуск:пропуска,шкаф:шкафа,том:тома,участок:участка,зал:зала,экзамен:экзамена"
).split(",")
NUMBERED_RU = [tuple(x.split(":")) for x in NUMBERED_RU]
NUMBERED_EN = "ticket,train,room,bus,wagon,recipe,house,document,flight,pass,locker,volume,field,hall,exam".split(",")
SYLLABLES_RU = [a + b for a in "бвгдзклмнпрстфх" for b in "аеиоуыя"] + ["ств", "ни", "ть", "ем", "ого", "ный", "при", "ров"]
SYLLABLES_EN = [a + b for a in "bdfgklmnprstvw" for b in "aeiou"] + ["ing", "er", "st", "th", "on", "ent"]


def digits(rng, low=3, high=7):
    # five digits more often than the others, as in most numbers people meet
    n = 5 if rng.random() < 0.4 else rng.randint(low, high)
    return "".join(rng.choice("0123456789") for _ in range(n))


def made_up(rng, syllables):
    return "".join(rng.choice(syllables) for _ in range(rng.randint(1, 4)))


def sentence_ru(rng):
    if rng.random() < 0.15:  # a number that is nobody's number, so that copying has to look at what stands before it
        return rng.choice(["Это было {} лет назад.", "Их было {}.", "До леса {} километров.", "Ждать {} минут."]).format(
            rng.randint(2, 990)
        )
    return f"{rng.choice(SUBJECTS_RU)} {rng.choice(VERBS_RU)} {rng.choice(PLACES_RU)}."


def sentence_en(rng):
    if rng.random() < 0.15:
        return rng.choice(["It was {} years ago.", "There were {} of them.", "Wait {} minutes."]).format(rng.randint(2, 990))
    return f"{rng.choice(SUBJECTS_EN)} {rng.choice(VERBS_EN)} {rng.choice(PLACES_EN)}."


def noise_ru(rng):
    return cap(" ".join(made_up(rng, SYLLABLES_RU) for _ in range(rng.randint(3, 12)))) + "."


def cap(text):
    return text[:1].upper() + text[1:]


# ------------------------------------------------------------------------------------------------ facts
@kind
def capital_ru(r):
    country, city = r.choice(CAPITALS_RU)
    q = r.choice(
        [
            "Какая столица {}?",
            "Назови столицу {}.",
            "Столица {} — какой это город?",
            "Какой город — столица {}?",
            "Скажи, какая столица у {}.",
        ]
    )
    return q.format(country), f"Столица {country} — {city}.", city


@kind
def capital_en(r):
    country, city = r.choice(CAPITALS_EN)
    q = r.choice(
        [
            "What is the capital of {}?",
            "Name the capital of {}.",
            "Which city is the capital of {}?",
            "Tell me the capital of {}.",
            "{}: what is its capital?",
        ]
    )
    return q.format(country), f"The capital of {country} is {city}.", city


@kind
def country_ru(r):
    c, city = r.choice(CAPITALS_RU)
    q = r.choice(
        ["{} — столица какой страны?", "Столица какой страны — {}?", "Для какой страны {} — столица?", "Город {}: столица чего?"]
    )
    return q.format(city), f"{city} — столица {c}.", c


@kind
def country_en(r):
    c, city = r.choice(CAPITALS_EN)
    q = r.choice(
        [
            "{} is the capital of which country?",
            "Which country has {} as its capital?",
            "Whose capital is {}?",
            "Name the country whose capital is {}.",
        ]
    )
    return q.format(city), f"{city} is the capital of {c}.", c


@kind
def opposite_ru(r):
    a, b = r.sample(r.choice(OPPOSITES_RU), 2)
    q = r.choice(
        [
            "Назови противоположное слово: {}.",
            "Какое слово противоположно слову «{}»?",
            "Что противоположно слову «{}»?",
            "Антоним слова «{}»?",
            "Скажи наоборот: {}.",
        ]
    )
    return q.format(a), f"Противоположное слово: {b}.", b


@kind
def opposite_en(r):
    a, b = r.sample(r.choice(OPPOSITES_EN), 2)
    q = r.choice(
        [
            "What is the opposite of {}?",
            "Name the opposite of {}.",
            "Give a word that means the opposite of {}.",
            "Opposite of {}?",
            "The opposite of {} is what?",
        ]
    )
    return q.format(a), f"The opposite of {a} is {b}.", b


@kind
def colour_ru(r):
    a, b = r.choice(COLOURS_RU)
    q = r.choice(["Какого цвета {}?", "Скажи, какого цвета бывает {}.", "{}: какого она цвета?", "Какая по цвету {}?"])
    return cap(q.format(a)), f"{cap(a)} {b}.", b


@kind
def colour_en(r):
    a, b = r.choice(COLOURS_EN)
    q = r.choice(["What colour is {}?", "Tell me the colour of {}.", "Which colour does {} have?", "{}: what colour is it?"])
    return cap(q.format(a)), f"{cap(a)} is {b}.", b


@kind
def sound_ru(r):
    a, b = r.choice(SOUNDS_RU)
    q = r.choice(["Кто говорит «{}»?", "Чей это голос: «{}»?", "Какое животное говорит «{}»?", "Кто сказал «{}»?"])
    return q.format(a), f"«{cap(a)}» говорит {b}.", b


@kind
def sound_en(r):
    a, b = r.choice(SOUNDS_EN)
    q = r.choice(["Who says {}?", "Which animal says {}?", "What animal goes {}?", "Whose voice is it: {}?"])
    return q.format(a), f"The {b} says {a}.", b


@kind
def belongs_ru(r):
    right, wrong = r.sample(list(CLASSES_RU), 2)
    word = r.choice(CLASSES_RU[right])
    a, b = r.sample([right, wrong], 2)
    q = r.choice(["{} — это {} или {}?", "Что такое {}: {} или {}?"])
    return cap(q.format(word, a, b)), f"{cap(word)} — это {right}.", right


@kind
def belongs_en(r):
    right, wrong = r.sample(list(CLASSES_EN), 2)
    word = r.choice(CLASSES_EN[right])
    a, b = r.sample([right, wrong], 2)
    q = r.choice(["{}: is it {} or {}?", "What is {}: {} or {}?"])
    return cap(q.format(word, a, b)), f"{cap(word)} is {right}.", right


@kind
def calendar_ru(r):
    names, genitive, word = r.choice([(DAYS_RU, DAYS_RU_GEN, "день"), (MONTHS_RU, MONTHS_RU_GEN, "месяц")])
    i = r.randrange(len(names))
    after = names[(i + 1) % len(names)]
    q = r.choice(["Какой {w} идёт после {x}?", "Назови {w} после {x}.", "После {x} идёт какой {w}?", "Что наступает после {x}?"])
    return q.format(w=word, x=genitive[i]), f"После {genitive[i]} идёт {after}.", after


@kind
def calendar_en(r):
    names, word = r.choice([(DAYS_EN, "day"), (MONTHS_EN, "month")])
    i = r.randrange(len(names))
    after = names[(i + 1) % len(names)]
    q = r.choice(["Which {w} comes after {x}?", "Name the {w} after {x}.", "What {w} follows {x}?", "After {x} comes which {w}?"])
    return q.format(w=word, x=names[i]), f"After {names[i]} comes {after}.", after


@kind
def translate_ru(r):
    ru, en = r.choice(TRANSLATIONS)
    q = r.choice(
        ["Переведи на английский: {}.", "Как по-английски «{}»?", "Как будет по-английски «{}»?", "Английское слово для «{}»?"]
    )
    return q.format(ru), f"По-английски: {en}.", en


@kind
def translate_en(r):
    ru, en = r.choice(TRANSLATIONS)
    q = r.choice(
        ["Translate into Russian: {}.", "How do you say {} in Russian?", "What is {} in Russian?", "The Russian word for {}?"]
    )
    return q.format(en), f"In Russian: {ru}.", ru


@kind
def plural_ru(r):
    a, b = r.choice(PLURALS_RU)
    q = r.choice(
        [
            "Назови во множественном числе: {}.",
            "Один — {}, а много?",
            "Как сказать «{}» во множественном числе?",
            "{}: какое множественное число?",
        ]
    )
    return cap(q.format(a)), f"Много: {b}.", b


@kind
def plural_en(r):
    a, b = r.choice(PLURALS_EN)
    q = r.choice(["What is the plural of {}?", "One {}, two what?", "Give the plural of {}.", "{} in the plural?"])
    return cap(q.format(a)), f"Two {b}.", b


# -------------------------------------------------------------------------------------------- arithmetic
@kind
def add_ru(r):
    a, b = r.randint(0, 9), r.randint(0, 9)
    q = r.choice(
        [
            "Сколько будет {} + {}?",
            "Сложи {} и {}.",
            "Чему равна сумма {} и {}?",
            "{} плюс {} — это сколько?",
            "Вычисли: {} + {}.",
        ]
    )
    return q.format(a, b), f"{a} + {b} = {a + b}.", f"= {a + b}."


@kind
def add_en(r):
    a, b = r.randint(0, 9), r.randint(0, 9)
    q = r.choice(
        ["What is {} + {}?", "Add {} and {}.", "What is the sum of {} and {}?", "{} plus {} makes what?", "Compute {} + {}."]
    )
    return q.format(a, b), f"{a} + {b} = {a + b}.", f"= {a + b}."


@kind
def larger_ru(r):
    a, b = r.sample(range(0, 10), 2)
    q = r.choice(["Что больше: {} или {}?", "Какое число больше, {} или {}?", "{} и {}: что больше?", "Выбери большее: {}, {}."])
    return q.format(a, b), f"Больше {max(a, b)}.", str(max(a, b))


@kind
def larger_en(r):
    a, b = r.sample(range(0, 10), 2)
    q = r.choice(
        [
            "Which is larger: {} or {}?",
            "Which number is bigger, {} or {}?",
            "{} and {}: which is larger?",
            "Pick the larger: {}, {}.",
        ]
    )
    return q.format(a, b), f"The larger is {max(a, b)}.", str(max(a, b))


@kind
def count_ru(r):
    a = r.randint(0, 15)
    b = a + r.randint(2, 6)
    q = r.choice(["Посчитай от {} до {}.", "Назови числа от {} до {}.", "Считай от {} до {}.", "Перечисли числа с {} по {}."])
    text = ", ".join(map(str, range(a, b + 1)))
    return q.format(a, b), f"{text}.", text


@kind
def count_en(r):
    a = r.randint(0, 15)
    b = a + r.randint(2, 6)
    q = r.choice(
        [
            "Count from {} to {}.",
            "Name the numbers from {} to {}.",
            "Please count: {} to {}.",
            "List the numbers from {} up to {}.",
        ]
    )
    text = ", ".join(map(str, range(a, b + 1)))
    return q.format(a, b), f"{text}.", text


@kind
def after_number_ru(r):
    a = r.randint(0, 98)
    q = r.choice(["Какое число идёт после {}?", "Назови следующее число: {}.", "Что идёт после {}?", "{}, а дальше?"])
    return q.format(a), f"После {a} идёт {a + 1}.", f"идёт {a + 1}."


@kind
def after_number_en(r):
    a = r.randint(0, 98)
    q = r.choice(["Which number comes after {}?", "Name the next number: {}.", "What comes after {}?", "{}, and then?"])
    return q.format(a), f"After {a} comes {a + 1}.", f"comes {a + 1}."


# ------------------------------------------------------------------------------------------------ copying
@kind
def repeat_words_ru(r):
    words = " ".join(r.sample(WORDS_RU, r.randint(2, 6)))
    return r.choice(["Повтори слова: {}", "Повтори: {}", "Скажи ещё раз: {}"]).format(words), words, words


@kind
def repeat_words_en(r):
    words = " ".join(r.sample(WORDS_EN, r.randint(2, 6)))
    return r.choice(["Repeat the words: {}", "Repeat: {}", "Say again: {}"]).format(words), words, words


@kind
def repeat_made_up_ru(r):
    words = " ".join(made_up(r, SYLLABLES_RU) for _ in range(r.randint(1, 5)))
    return r.choice(["Повтори слова: {}", "Повтори: {}", "Скажи ещё раз: {}"]).format(words), words, words


@kind
def repeat_made_up_en(r):
    words = " ".join(made_up(r, SYLLABLES_EN) for _ in range(r.randint(1, 5)))
    return r.choice(["Repeat the words: {}", "Repeat: {}", "Say again: {}"]).format(words), words, words


@kind
def repeat_sentence_ru(r):
    text = sentence_ru(r)
    return r.choice(["Повтори предложение: {}", "Перепиши: {}", "Прочитай вслух: {}"]).format(text), text, text


@kind
def repeat_sentence_en(r):
    text = sentence_en(r)
    return r.choice(["Repeat the sentence: {}", "Copy: {}", "Read aloud: {}"]).format(text), text, text


@kind
def repeat_number_ru(r):
    n = digits(r)
    return (
        r.choice(["Повтори число {}.", "Запиши число {}.", "Повтори: {}", "Какое число я назвал: {}?"]).format(n),
        f"Число {n}.",
        n,
    )


@kind
def repeat_number_en(r):
    n = digits(r)
    return (
        r.choice(["Repeat the number {}.", "Write down {}.", "Say again: {}", "Which number did I name: {}?"]).format(n),
        f"The number {n}.",
        n,
    )


@kind
def edge_word_ru(r):
    words = r.sample(WORDS_RU, r.randint(3, 5))
    q = r.choice(["Какое слово {}: {}?", "Назови {} слово: {}", "{} слово здесь какое: {}?"])
    name, right = r.choice([("первое", words[0]), ("последнее", words[-1])])
    return cap(q.format(name, " ".join(words))), f"{cap(name)} слово: {right}.", right


@kind
def edge_word_en(r):
    words = r.sample(WORDS_EN, r.randint(3, 5))
    name, right = r.choice([("first", words[0]), ("last", words[-1])])
    q = r.choice(["Which word is {}: {}?", "Name the {} word: {}", "What is the {} word here: {}?"])
    return q.format(name, " ".join(words)), f"The {name} word: {right}.", right


@kind
def name_ru(r):
    n, about = r.choice(NAMES_RU), sentence_ru(r)
    q = r.choice(
        ["Меня зовут {n}. Как меня зовут?", "Меня зовут {n}. {s} Как меня зовут?", "{s} Моё имя — {n}. Какое у меня имя?"]
    )
    return q.format(n=n, s=about), f"Вас зовут {n}.", n


@kind
def name_en(r):
    n, about = r.choice(NAMES_EN), sentence_en(r)
    q = r.choice(["My name is {n}. What is my name?", "My name is {n}. {s} What is my name?", "{s} I am {n}. What is my name?"])
    return q.format(n=n, s=about), f"Your name is {n}.", n


def numbered_ru(r):
    thing, genitive = r.choice(NUMBERED_RU)
    n = digits(r)
    before, after = (" ".join(r.choice([sentence_ru, noise_ru])(r) for _ in range(r.choice([0, 0, 1, 2, 3]))) for _ in range(2))
    return thing, genitive, n, before, after


@kind
def number_of_ru(r):
    thing, genitive, n, before, after = numbered_ru(r)
    q = r.choice(
        [
            "У меня {t} №{n}. {s2} Какой у него номер?",
            "{s} Это {t} №{n}. {s2} Назови номер {g}.",
            "{t} №{n}, какой это номер?",
            "Какой номер у {g}? {s} Вот {t} №{n}. {s2}",
        ]
    )
    a = r.choice(["Номер {g} — №{n}.", "Номер {g} — №{n}."])
    question = " ".join(cap(q.format(t=thing, g=genitive, n=n, s=before, s2=after)).split())
    return question, a.format(g=genitive, n=n), f"№{n}"


@kind
def number_in_place_ru(r):
    thing, genitive, n, before, after = numbered_ru(r)
    verb, place = r.choice(VERBS_RU), r.choice(PLACES_RU)
    word = made_up(r, SYLLABLES_RU)
    q, a = r.choice(
        [
            ("{s} {T} №{n} стоит {p}. {s2} Где стоит {t} №{n}?", "{T} №{n} стоит {p}."),
            ("{s} Мой {t} №{n} называется «{w}». Как называется мой {t}?", "Ваш {t} №{n} называется «{w}»."),
            ("Кто-то {v}. {s} Вот {t} №{n}. {s2} Что это?", "Это {t} №{n}."),
            ("{t} №{n}, где он? {s2} Он {p}.", "{T} №{n} {p}."),
            ("Расскажи про {t} №{n}. {s}", "По вашему вопросу: {t} №{n}."),
        ]
    )
    fill = dict(t=thing, T=cap(thing), g=genitive, n=n, s=before, s2=after, v=verb, p=place, w=word)
    return " ".join(cap(q.format(**fill)).split()), a.format(**fill), f"№{n}"


@kind
def number_of_en(r):
    thing, n, before, after = r.choice(NUMBERED_EN), digits(r), sentence_en(r), sentence_en(r)
    q, a = r.choice(
        [
            ("My {t} is #{n}. What is its number?", "The number of the {t} is #{n}."),
            ("{s} My {t} is #{n}. {s2} What is its number?", "The number of the {t} is #{n}."),
            ("{s} Where is {t} #{n}? {s2}", "Your {t} #{n} is here."),
        ]
    )
    fill = dict(t=thing, n=n, s=before, s2=after)
    return q.format(**fill), a.format(**fill), f"#{n}"


@kind
def where_ru(r):
    who, verb, place = r.choice(SUBJECTS_RU), r.choice(VERBS_RU), r.choice(PLACES_RU)
    extra = sentence_ru(r) if r.random() < 0.4 else ""
    text = f"{who} {verb} {place}. {extra} Где {who[0].lower() + who[1:]}?"
    return " ".join(text.split()), f"{who} {place}.", place


@kind
def where_en(r):
    who, verb, place = r.choice(SUBJECTS_EN), r.choice(VERBS_EN), r.choice(PLACES_EN)
    extra = sentence_en(r) if r.random() < 0.4 else ""
    text = f"{who} {verb} {place}. {extra} Where is {who[0].lower() + who[1:]}?"
    return " ".join(text.split()), f"{who} is {place}.", place


# Copying a number out of a long text is the hardest kind, so it comes three times as often as the others.
DRAWN = [*KINDS, *["number_of_ru", "number_in_place_ru"] * 2]
