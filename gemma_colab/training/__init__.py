"""Train an adapter: which settings suit, one run that loses nothing on the way, and what its losses say.

`find_learning_rate`, `short_run` and `trial_run` train a fresh adapter for a few steps and leave the model as it was.
`train_adapter` trains on the rows of a workspace: it saves by time, goes on after a kill (`resume=True`), saves memory when the
GPU's runs out, and records the run, so that `compare_runs` can lay it beside others. `compare_sets` asks which rows make the better
model, and whether more of them would help. `sft_config` is what they all train with: a native object of TRL.
"""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "gemma_colab.core.settings": "TrainSettings",
        "gemma_colab.model.lengths": "token_lengths",
        "gemma_colab.handover.settings": "settings_for",
        "gemma_colab.core.trainer": "sft_config",
        "gemma_colab.handover.experiments": "compare_sets",
        "gemma_colab.training.short": "find_learning_rate short_run trial_run",
        "gemma_colab.training.records": "compare_runs",
        "gemma_colab.handover.adapter": "train_adapter",
    },
)
