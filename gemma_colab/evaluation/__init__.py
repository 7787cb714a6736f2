"""Is the tuned model better than the one it began with, and can it be shipped?

`evaluate` asks base, few-shot and tuned the same held-out questions, and `worth_training` looks at the first two. `paired_bootstrap`
says which differences are clear of chance, `general_knowledge` what was forgotten, `rule_checks` whether answers keep a house's rules,
and `suspects` which training rows to read. `assess` does it all, with a verdict and a report.
"""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "load_tuned": "gemma_colab.handover.assess",
        "evaluate": "gemma_colab.evaluation.candidates",
        "generate_answers": "gemma_colab.evaluation.generation",
        "worth_training": "gemma_colab.evaluation.worth",
        "answer_losses": "gemma_colab.evaluation.loss",
        "paired_bootstrap": "gemma_colab.evaluation.compare",
        "general_knowledge": "gemma_colab.evaluation.knowledge",
        "assess": "gemma_colab.handover.assess",
        "rule_checks": "gemma_colab.evaluation.metrics",
        "suspects": "gemma_colab.handover.blame",
    },
)
