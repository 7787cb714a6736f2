"""Which Gemma 3, will it fit, and how is it loaded and adapted.

`memory_plan` predicts the peak of a training from figures alone, `fit_table` does so for every Gemma 3 on three GPUs, and
`plan_training` says what to change where it doesn't fit, or what would be faster where it does. `load_model` and `lora_config`
return what transformers and peft know. Behind the door: the preflight, Colab and Kaggle, and the unpacking of GGUF files.
"""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "choose_model": "gemma_colab.handover.settings",
        "dimensions_of": "gemma_colab.core.catalog",
        "load_tokenizer": "gemma_colab.core.chat",
        "load_model": "gemma_colab.core.loading",
        "quantization_config": "gemma_colab.core.loading",
        "LoraSettings": "gemma_colab.core.settings",
        "lora_config": "gemma_colab.core.trainer",
        "memory_plan": "gemma_colab.model.memory",
        "fit_table": "gemma_colab.model.planner",
        "plan_training": "gemma_colab.model.planner",
    },
)
