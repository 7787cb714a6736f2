"""Is the tuned model better than the one it began with, and can it be shipped?

`evaluate` asks base, few-shot and tuned the same held-out questions, and `worth_training` looks at the first two. `paired_bootstrap`
says which differences are clear of chance, `general_knowledge` what was forgotten, `rule_checks` whether answers keep a house's rules,
and `suspects` which training rows to read. `assess` does it all, with a verdict and a report.
"""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "gemma_colab.handover.assess": "load_tuned assess",
        "gemma_colab.evaluation.candidates": "evaluate",
        "gemma_colab.evaluation.generation": "generate_answers",
        "gemma_colab.evaluation.worth": "worth_training",
        "gemma_colab.evaluation.loss": "answer_losses",
        "gemma_colab.evaluation.compare": "paired_bootstrap",
        "gemma_colab.evaluation.knowledge": "general_knowledge",
        "gemma_colab.evaluation.metrics": "rule_checks",
        "gemma_colab.handover.blame": "suspects",
    },
)
