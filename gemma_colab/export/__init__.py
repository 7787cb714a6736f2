"""Take a trained model home: the adapter, the merged model, an Ollama folder, a GGUF file, or a repository on the Hub.

`export_workspace` writes any of these from a workspace, compares what can be compared with the model that was trained, and notes
it in `export.json`, which `exported` reads; `take_home` does so for several, and on Colab hands them to the browser. The others are
its parts: they take a model or a folder instead of a workspace.
"""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "gemma_colab.handover.export": "export_workspace",
        "gemma_colab.handover.take_home": "take_home",
        "gemma_colab.export.record": "exported",
        "gemma_colab.export.adapter": "save_adapter load_adapter",
        "gemma_colab.export.merged": "merge",
        "gemma_colab.export.ollama": "write_ollama",
        "gemma_colab.export.gguf": "write_gguf check_gguf",
        "gemma_colab.export.hub": "push",
    },
)
