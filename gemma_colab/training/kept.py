"""Which rows a run can learn from: TRL leaves out, without a word, those that have no answer token within max_length."""

from collections.abc import Callable, Sequence

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.errors import SettingsError, TrainingError
from gemma_colab.core.rows import place
from gemma_colab.core.settings import TrainSettings

NAMED = 20  # places in a sentence, at most; `training.json` holds all
Lost = dict[str, dict[str, list[str]]]
WHY = {"left_out": "the answer begins beyond", "cut": "an answer ends beyond, and its end is not learned,"}


def fit_rows(
    splits: dict[str, Sequence[dict]], tokenizer: PreTrainedTokenizerBase, settings: TrainSettings, say: Callable[[str], None]
) -> tuple[dict[str, list[int]], Lost]:
    """Find what `settings.max_length` leaves of the rows of each split, "train" and "validation", and say what it does not.

    Returns split -> numbers of the rows that have something to learn, and "left_out" or "cut" -> split -> where the rows are that have
    not, or that lose the end of an answer. Raises `SettingsError` where a split has nothing left.
    """
    kept, lost, limit = {}, {how: {split: [] for split in splits} for how in WHY}, settings.max_length
    for split, rows in splits.items():
        kind, kept[split], longest = {"train": "training"}.get(split, split), [], 0
        for i, row in enumerate(tqdm(rows, desc="tokens", disable=len(rows) < 2000, leave=False)):
            labels = tokenize_row(row, tokenizer, settings.last_answer_only)["labels"]
            learned = any(label != -100 for label in labels[:limit])
            kept[split] += [i] * learned
            # More than the line break behind an answer.
            if not learned or tokenizer.decode([label for label in labels[limit:] if label != -100]).strip():
                general = row.get("line", 0) is None  # of replay: it is in no file of yours
                lost["cut" if learned else "left_out"][split].append("a general row" if general else place(row, i + 1))
                longest = max(longest, len(labels))
        remedy = f"max_length={longest} would keep all, if the memory suffices; or " * (longest <= 131_072) + "shorten them"
        if not kept[split]:
            why = f"of all {len(rows)} {kind} rows {WHY['left_out']} max_length={limit}; {remedy}"
            none = f"there are 0 {kind} rows; split the rows anew (notebook 01, or gemma-colab prepare)"
            raise SettingsError(f"nothing is left for {kind}: {why if len(rows) else none}")
        for how, why in WHY.items():
            if n := len(places := lost[how][split]):
                where = ", ".join(places[:NAMED]).replace(", line ", ", ") + f" and {n - NAMED} more" * (n > NAMED)
                say(f"{how.replace('_', ' ')}: {n} of {len(rows)} {kind} rows, {why} max_length={limit} ({where}); {remedy}")
    return kept, lost


def compare_held(trainer: SFTTrainer, given: int) -> None:
    """Raise `TrainingError` unless the trainer holds all the training rows that it was given, packed or not."""
    held = trainer.train_dataset
    count = sum(map(len, held["seq_lengths"])) if trainer.args.packing else len(held)
    if count != given:
        raise TrainingError(f"TRL holds {count} training rows and was given {given}; take the version of trl in constraints.txt")
