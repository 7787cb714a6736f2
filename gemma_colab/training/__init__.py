"""Train an adapter, watched, and resumed where it stopped."""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "TrainSettings": "gemma_colab.core.settings",
        "token_lengths": "gemma_colab.core.chat",
        "settings_for": "gemma_colab.handover.settings",
        "sft_config": "gemma_colab.core.trainer",
        "build_trainer": "gemma_colab.core.trainer",
        "find_learning_rate": "gemma_colab.training.learning_rate",
        "short_run": "gemma_colab.training.short",
        "compare_runs": "gemma_colab.training.records",
        "trial_run": "gemma_colab.training.trial",
        "train_adapter": "gemma_colab.handover.adapter",
    },
)
