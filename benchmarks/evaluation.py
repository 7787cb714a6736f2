"""How long an evaluation takes: answers in batches against one by one, and 100 rows for three contestants.

    make demo && python benchmarks/evaluation.py [runs/demo]

Takes the adapter, the settings and the rows of a finished demo. Batches and single questions alternate (A B B A) in one run.
"""

import sys
import time

from gemma_colab.core.machine import describe_machine, quiet_libraries, stack_versions
from gemma_colab.core.workspace import Workspace
from gemma_colab.evaluation import contest
from gemma_colab.evaluation.generation import generate
from gemma_colab.evaluation.metrics import USUAL
from gemma_colab.handover.assess import load_tuned, the_contestants
from gemma_colab.handover.rows import ensure_rows
from gemma_colab.handover.settings import chosen_model

SINGLE = 16  # rows that are asked one by one
ROUNDS = 3


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    quiet_libraries()
    workspace = Workspace(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    machine = describe_machine()
    chosen, _ = chosen_model(workspace, machine)
    model, tokenizer = load_tuned(workspace, chosen, machine)
    rows = ensure_rows(workspace)
    chats = [*rows["test"], *rows["validation"], *rows["train"]][:100]
    prompts = [chat["messages"][:-1] for chat in chats]
    how = {"max_new_tokens": 144}
    generate(model, tokenizer, prompts[:4], **how)

    print("| who answers | rows per second, one by one | in batches of 32 | times as many (rounds) |\n| --- | --- | --- | --- |")
    for name, contestant in the_contestants(workspace, chosen, rows["train"]).items():
        if name == "few-shot":
            continue
        single, batched = [], []
        with contest.switched(model, contestant):
            for order in (("single", "batched"), ("batched", "single")) * ROUNDS:
                for which in order:
                    some = prompts[:SINGLE] if which == "single" else prompts
                    took = seconds(lambda some=some, which=which: generate(
                        model, tokenizer, some, batch_size=1 if which == "single" else 32, **how))  # fmt: skip
                    (single if which == "single" else batched).append(len(some) / took)
        ratios = sorted(b / s for s, b in zip(single, batched, strict=True))
        print(
            f"| {name} | {sum(single) / len(single):.1f} | {sum(batched) / len(batched):.1f} "
            f"| {ratios[len(ratios) // 2]:.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f}) |",
            flush=True,
        )

    def whole():
        players = the_contestants(workspace, chosen, rows["train"])
        tables = contest.play(model, tokenizer, chats, players, max_length=512, **how)
        scored = contest.scores(tables, [chat["messages"][-1]["content"] for chat in chats], USUAL)
        for before in ("base", "few-shot"):
            contest.comparison(tables, scored, before)

    times = sorted(seconds(whole) for _ in range(ROUNDS))
    print(
        f"\n{len(chats)} rows x 3 contestants, answers, losses, scores, intervals: {times[1]:.1f} s ({times[0]:.1f}-{times[-1]:.1f})"
    )
    print(", ".join(f"{name} {version}" for name, version in stack_versions().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
