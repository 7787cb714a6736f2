"""Which Gemma 3, will it fit, and how is it loaded and adapted.

`memory_plan` predicts the peak of a training from figures alone, `fit_table` does so for every Gemma 3 on three GPUs, and
`plan_training` says what to change where it doesn't fit, or what would be faster where it does. `load_model` and `lora_config`
return what transformers and peft know. Behind the door: the preflight, Colab and Kaggle, and the unpacking of GGUF files.
"""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "gemma_colab.handover.settings": "choose_model",
        "gemma_colab.core.catalog": "dimensions_of",
        "gemma_colab.core.chat": "load_tokenizer",
        "gemma_colab.core.loading": "load_model quantization_config",
        "gemma_colab.core.settings": "LoraSettings",
        "gemma_colab.core.trainer": "lora_config",
        "gemma_colab.model.memory": "memory_plan",
        "gemma_colab.model.planner": "fit_table plan_training",
    },
)
