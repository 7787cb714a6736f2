"""Fine-tune Gemma 3 on your own data: the package that the notebooks call.

Here is what every notebook begins with: the machine, the workspace, and whether both suffice. The rest is behind six doors:
`gemma_colab.data`, `.model`, `.training`, `.evaluation`, `.export` and `.ui`. Nothing is imported before it is used.
"""

from gemma_colab.core.door import door, plugs

__version__ = "0.1.0"

plugs |= {"unpacked": "gemma_colab.model.unpack", "pass_over_old_torchao": "gemma_colab.model.libraries"}
_hub = ("explain", "before_asking", "before_reading", "after_reading")
plugs |= dict.fromkeys(_hub, "gemma_colab.model.hub") | {"personal_data": "gemma_colab.data.personal"}
plugs["score_answers_only"] = "gemma_colab.training.guard"
__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "gemma_colab.core.workspace": "open_workspace samples",
        "gemma_colab.model.lent": "settle_in describe_machine",
        "gemma_colab.core.machine": "pick_dtype",
        "gemma_colab.model.preflight": "preflight",
        "gemma_colab.model.libraries": "stack_versions quiet_libraries",
        "gemma_colab.core.errors": "GemmaColabError BlockedError",
    },
)
