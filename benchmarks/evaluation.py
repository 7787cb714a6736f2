"""How long an evaluation takes: answers in batches against one by one, and 100 rows for three candidates.

    make demo && python benchmarks/evaluation.py [runs/demo]

Takes the adapter, the settings and the rows of a finished demo. Batches and single questions alternate (A B B A) in one run.
"""

import sys
import time

from gemma_colab.core.rows import prompt
from gemma_colab.core.workspace import Workspace
from gemma_colab.evaluation import evaluate, generate_answers, load_tuned
from gemma_colab.evaluation.candidates import adapter_for
from gemma_colab.handover.rows import ensure_rows
from gemma_colab.model.libraries import quiet_libraries, stack_versions

SINGLE = 16  # rows that are asked one by one
ROUNDS = 3


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    quiet_libraries()
    workspace = Workspace(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    model, tokenizer = load_tuned(workspace)
    rows = ensure_rows(workspace)
    some_rows = [*rows["test"], *rows["validation"], *rows["train"]][:100]
    prompts = [prompt(row) for row in some_rows]
    how = {"max_new_tokens": 144}
    generate_answers(model, tokenizer, prompts[:4], **how)

    print("| who answers | rows per second, one by one | in batches of 32 | times as many (rounds) |\n| --- | --- | --- | --- |")
    for name in ("base", "tuned"):
        single, batched = [], []
        with adapter_for(name, model):
            for order in (("single", "batched"), ("batched", "single")) * ROUNDS:
                for which in order:
                    some = prompts[:SINGLE] if which == "single" else prompts
                    took = seconds(lambda some=some, which=which: generate_answers(
                        model, tokenizer, some, batch_size=1 if which == "single" else 32, **how))  # fmt: skip
                    (single if which == "single" else batched).append(len(some) / took)
        ratios = sorted(b / s for s, b in zip(single, batched, strict=True))
        print(
            f"| {name} | {sum(single) / len(single):.1f} | {sum(batched) / len(batched):.1f} "
            f"| {ratios[len(ratios) // 2]:.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f}) |",
            flush=True,
        )

    def whole():
        evaluation = evaluate(model, tokenizer, some_rows, train_rows=rows["train"], max_length=512, **how)
        for before in ("base", "few-shot"):
            evaluation.compare(before)

    times = sorted(seconds(whole) for _ in range(ROUNDS))
    print(
        f"\n{len(some_rows)} rows x 3 candidates, answers, losses, scores, intervals: {times[1]:.1f} s ({times[0]:.1f}-{times[-1]:.1f})"
    )
    print(", ".join(f"{name} {version}" for name, version in stack_versions().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
