"""What did tuning cost? General questions and neutral texts before and after, and training answers that are known by heart."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
from rapidfuzz.distance import Prefix
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.core.workspace import read_sample
from gemma_colab.evaluation.compare import QUESTIONS, compare, loss_gap
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.evaluation.loss import mean_loss, text_losses
from gemma_colab.evaluation.metrics import Texts, contains_answer, exact_match, words

TEXTS = "loss on neutral text"


@dataclass(frozen=True)
class GeneralKnowledge:
    """What a model still knows of the world.

    questions: one line per question, with kind, language, question, answer, and right (1.0 or 0.0). texts: one line per text, with
    loss (sum, in nats), tokens and language."""

    questions: pd.DataFrame
    texts: pd.DataFrame

    def summary(self) -> dict[str, float]:
        """Return the share of questions answered rightly, and the loss on the texts in nats per token."""
        return {QUESTIONS: float(self.questions["right"].mean()), TEXTS: mean_loss(self.texts)}

    def compare(self, before: "GeneralKnowledge") -> pd.DataFrame:
        """Compare with the model before tuning, one line per language and kind of evidence, as `compare.compare` makes them. before: of the model without its adapter."""
        scores, weights = {}, {}
        for language, then in before.questions.groupby("language", sort=False):
            now = self.questions[self.questions["language"] == language]
            scores[f"{QUESTIONS}, {language}"] = list(then["right"]), list(now["right"])
        for language, then in before.texts.groupby("language", sort=False):
            now, name = self.texts[self.texts["language"] == language], f"{TEXTS}, {language}"
            scores[name], weights[name] = (then["loss"], now["loss"]), then["tokens"]
        return compare(scores, weights=weights, lower_is_better=list(weights))


def general_knowledge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, every: int = 1, **options) -> GeneralKnowledge:
    """Ask the model the sample's general questions (`general_probe.jsonl`), and measure its loss on `neutral_text.jsonl`.

    every: 4 asks each fourth question only. options: those of `generation.generate`. An answer that begins with the whole question is
    not right, even where the question holds the answer ("a plant or an animal?"): an untaught model repeats what it reads.
    """
    probe, texts = read_sample("general_probe")[::every], read_sample("neutral_text")
    options = {"max_new_tokens": 48, "description": "general questions"} | options
    answers = generate_answers(model, tokenizer, [[{"role": "user", "content": q["question"]}] for q in probe], **options)
    holds = contains_answer(answers, [q["key"] for q in probe])
    asked = [" ".join(words(q["question"])) for q in probe]
    right = [one * (not " ".join(words(a)).startswith(q)) for one, a, q in zip(holds, answers, asked, strict=True)]
    losses = text_losses(model, tokenizer, [text["text"] for text in texts])
    questions = pd.DataFrame(probe)[["kind", "language", "question"]].assign(answer=answers, right=right)
    return GeneralKnowledge(questions, losses.assign(language=[text["language"] for text in texts]))


def memorization(
    answers: dict[str, Texts],
    references: dict[str, Texts],
    losses: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    known: Texts = (),
) -> pd.DataFrame:
    """Tell what was learned by heart; one line per split ("train", "test"): rows, and of the model's answers to its questions the share
    that is the reference word for word, of these "by heart" those with `own_wording`, and the mean and longest common prefix, as a
    share of the reference's words.

    A test answer can come out word for word too, where it is easy to foresee, so the share on training rows means something only
    beside the share on test rows. known: all training answers, where `references` has some of them. losses: (train, test), of
    `answer_losses`; they add the mean loss of either, and to the test's line its distance from the training loss with a 95 % interval
    (low, high), in nats per token.
    """
    lines, own = {}, own_wording(sum(map(list, (references | ({"train": known} if known else {})).values()), []))
    for split, said in answers.items():
        equal = exact_match(said, references[split])
        pairs = [(words(mine), words(theirs)) for mine, theirs in zip(said, references[split], strict=True)]
        shares = [Prefix.similarity(m, t) / len(t) if t else float(not m) for m, t in pairs]
        lines[split] = {
            "rows": len(said),
            "word for word": sum(equal) / max(1, len(said)),
            "by heart": sum(e for e, text in zip(equal, references[split], strict=True) if text in own) / max(1, len(said)),
            "common prefix": sum(shares) / max(1, len(said)),
            "longest prefix": max(shares, default=0.0),
        }
    table = pd.DataFrame.from_dict(lines, orient="index")
    if losses:
        table.loc[["train", "test"], "loss"] = [mean_loss(one) for one in losses]
        table.loc["test", ["gap", "low", "high"]] = loss_gap(*losses)
    return table


def own_wording(texts: Texts) -> set[str]:
    """Return those of the texts in which two words come side by side as in no other: only such can be known by heart. A label, or a
    form that is filled in, is made of what repeats, and of what one text alone has (numbers too), such as an order number: a slot."""
    split = [words(text) for text in texts]
    often = Counter(word for some in split for word in set(some))
    pairs = [set(pairwise("" if often[w] == 1 or w.isdecimal() else w for w in some)) for some in split]
    seen = Counter(pair for some in pairs for pair in some)
    return {text for text, some in zip(texts, pairs, strict=True) if any(seen[pair] == 1 for pair in some)}
