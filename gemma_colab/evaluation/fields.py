"""Answers that are JSON objects: is there one, does it fit, and which of its fields are right."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pandas as pd
from jsonschema.validators import validator_for

from gemma_colab.evaluation.metrics import Metric, Scores, described, valid_json

FEW_VALUES = (
    20  # a field with at most so many different texts, each seen five times on average, is taken for a list to choose from
)
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", list: "array", dict: "object"}


def first_object(text: str) -> dict | None:
    """The first whole JSON object in a text; None if there is none. A model that talks on behind its answer is read fairly so."""
    decoder = json.JSONDecoder()
    for brace in re.finditer(r"\{", text):
        try:
            return decoder.raw_decode(text, brace.start())[0]
        except (ValueError, RecursionError):
            continue
    return None


def schema_of(answers: Sequence[str]) -> dict | None:
    """The JSON Schema that right answers have in common: their keys, the types of each, and where few values come again and again,
    these. None where they are not all JSON objects with the same keys in the same order."""
    try:
        objects = [json.loads(answer) for answer in answers]
    except (ValueError, RecursionError):
        return None
    if not objects or not all(isinstance(one, dict) and list(one) == list(objects[0]) for one in objects) or not objects[0]:
        return None
    fields = {}
    for name in objects[0]:
        values = [one[name] for one in objects]
        fields[name] = {"type": sorted({TYPES[type(value)] for value in values})}
        different = {value for value in values if isinstance(value, str)}
        if different and len(different) <= min(FEW_VALUES, len(values) / 5):
            fields[name]["enum"] = sorted(different) + [None] * (None in values)
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def json_metrics(schema: dict) -> dict[str, Metric]:
    """Measures of answers in the form of `schema`, each of the first JSON object in the answer: "all fields" right; "valid JSON", one
    that fits the schema; each field by its name; and "nothing but JSON", where nothing stands around it."""
    check = validator_for(schema)(schema).is_valid

    def valid(predictions: Sequence[str], references: Sequence[str]) -> Scores:
        return [float(check(first_object(p))) for p in predictions]

    def field(name: str | None) -> Metric:
        def metric(predictions: Sequence[str], references: Sequence[str]) -> Scores:
            pairs = [(first_object(p), json.loads(r)) for p, r in zip(predictions, references, strict=True)]
            if name is None:
                return [float(mine == right) for mine, right in pairs]
            return [float(mine is not None and name in mine and mine[name] == right[name]) for mine, right in pairs]

        what = "all fields of its first JSON object are" if name is None else f"{name} in its first JSON object is"
        return described(metric, f"1 where {what} as in the right answer")

    fields = {name: field(name) for name in schema["properties"]}
    return {
        "all fields": field(None),
        "valid JSON": described(valid, "1 where its first JSON object has the form of the right answers"),
        **fields,
        "nothing but JSON": described(valid_json(schema), "1 where the answer is such an object and nothing else"),
    }


def confusions(predictions: Sequence[str], references: Sequence[str], field: str) -> pd.DataFrame:
    """How often each right value of a field (rows) was answered as what (columns); "none" where there was no such answer."""
    said = [(first_object(p) or {}).get(field, "none") for p in predictions]
    right = [json.loads(r)[field] for r in references]
    order = [str(value) for value in pd.Series(right).value_counts(dropna=False).index]
    said, right = [str(value) for value in said], [str(value) for value in right]
    other = [value for value in dict.fromkeys(said) if value not in order]
    table = pd.crosstab(pd.Series(right, name="right"), pd.Series(said, name="answered"))
    return table.reindex(index=order, columns=order + other, fill_value=0)
