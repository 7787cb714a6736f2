"""Answers that are JSON objects: is there one, does it fit, and which of its fields are right."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice

import pandas as pd
from jsonschema.validators import validator_for

from gemma_colab.evaluation.compare import LOSS
from gemma_colab.evaluation.metrics import Metric, Scores, Texts

# A field with at most so many different texts, each seen five times on average, is taken for a list to choose from.
FEW_VALUES = 20
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", list: "array", dict: "object"}


def first_object(text: str) -> dict | None:
    """Return the first whole JSON object in a text, or None. A model that talks on behind its answer is read fairly so."""
    decoder = json.JSONDecoder()
    for brace in islice(re.finditer(r"\{", text), 20):  # each may be read up to the end
        try:
            return decoder.raw_decode(text, brace.start())[0]
        except (ValueError, RecursionError):
            continue
    return None


def schema_of(answers: Texts) -> dict | None:
    """Return the JSON Schema that right answers have in common: their keys, the types of each, and where few values come again and
    again, these. None where they are not all JSON objects with the same keys."""
    try:
        objects = [json.loads(answer) for answer in answers]
    except (ValueError, RecursionError):
        return None
    if not objects or not all(isinstance(one, dict) and one and one.keys() == objects[0].keys() for one in objects):
        return None
    fields = {}
    for name in objects[0]:
        values = [one[name] for one in objects]
        fields[name] = {"type": sorted({TYPES[type(value)] for value in values})}
        different = {value for value in values if isinstance(value, str)}
        only_texts = all(value is None or isinstance(value, str) for value in values)
        if different and only_texts and len(different) <= min(FEW_VALUES, len(values) / 5):
            fields[name]["enum"] = sorted(different) + [None] * (None in values)
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def json_metrics(schema: dict) -> dict[str, Metric]:
    """Make the measures of answers in the form of `schema`, each of the first JSON object in the answer: "all fields" right; "valid JSON", one
    that fits the schema; each field by its name; and "nothing but JSON", where nothing is around it."""
    fits = validator_for(schema)(schema).is_valid
    its = "in its first JSON object is as in the right answer"
    return {
        "all fields": _measure(_same, "1 where all fields of its first JSON object are as in the right answer"),
        "valid JSON": _measure(lambda text, _: fits(text), "1 where its first JSON object has the form of the right answers"),
        **{field(name): _measure(partial(_same_field, name), f"1 where {name} {its}") for name in schema["properties"]},
        "nothing but JSON": _measure(lambda text, _: fits(text), "1 where the answer is such an object and nothing else", _whole),
    }


def field(name: str) -> str:
    """Return what the measure of a field is called: its name, unless another measure has it."""
    return f"field {name}" if name in ("all fields", "valid JSON", "nothing but JSON", LOSS) else name


def _measure(holds: Callable[[dict, dict], bool], meaning: str, read: Callable[[str], dict | None] = first_object) -> Metric:
    """holds: a function of what was read in an answer and in the right one. meaning: what a report says of it."""

    def metric(predictions: Texts, references: Texts) -> Scores:
        return [float(holds(read(p), read(r))) for p, r in zip(predictions, references, strict=True)]

    metric.__doc__ = meaning
    return metric


def _same_field(name: str, mine: dict | None, right: dict | None) -> bool:
    return name in (mine or {}) and _same(mine[name], (right or {}).get(name))


def _whole(text: str):
    """Read a text that is JSON and nothing else; None where it isn't."""
    try:
        return json.loads(text, parse_constant=int)  # which refuses NaN: Python reads it, but it is no JSON
    except (ValueError, RecursionError):
        return None


def _same(one, other) -> bool:
    """Tell whether two values are written alike in JSON, where 1 is not true; the order of keys aside."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def most_frequent(answers: Texts) -> str:
    """Return the answer of somebody who never reads the question: each field's most frequent value in `answers`, all of one form."""
    objects = [json.loads(answer) for answer in answers]
    values = {name: Counter(json.dumps(one[name]) for one in objects).most_common(1)[0][0] for name in objects[0]}
    return json.dumps({name: json.loads(value) for name, value in values.items()}, ensure_ascii=False)


def mixed_up(said: Texts, right: Texts, known: Texts) -> dict[str, dict[str, dict[str, int]]]:
    """Count what was said where what was right: field -> said -> right -> rows. The fields are those in which the answers of `known` have
    few values; answers that are one of a few texts, such as labels, count as one field, "answer"; free texts have none."""
    read = {"answer": str.strip} if 1 < len(set(known)) <= min(FEW_VALUES, len(known) / 5) else {}
    if schema := schema_of(known):
        few = [name for name, kind in schema["properties"].items() if "enum" in kind or kind["type"] == ["boolean"]]
        read = {name: lambda text, name=name: str((first_object(text) or {}).get(name)) for name in few}
    found = {}
    for name, value in read.items():
        values = {*map(value, known)}
        mine = [one if one in values else "something else" for one in map(value, said)]
        found[name] = pd.crosstab(pd.Series([*map(value, right)]), pd.Series(mine)).to_dict()
    return found


def telling_examples(answers: Texts, examples: int) -> list[int]:
    """Choose answers, all of one form, that show as many different values as so few can; returns their numbers. Drawn at random, three out of three
    may happen to be null in the very field that matters."""
    objects = [{(name, json.dumps(value)) for name, value in json.loads(answer).items()} for answer in answers]
    order, seen, chosen = random.Random(0).sample(range(len(answers)), len(answers)), set(), []
    for _ in range(examples):
        chosen.append(max((i for i in order if i not in chosen), key=lambda i: len(objects[i] - seen)))
        seen |= objects[chosen[-1]]
    return chosen
