"""Fetch from the Hugging Face Hub or a folder, and say in one sentence why it failed."""

from __future__ import annotations

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from gemma_colab.errors import ModelError


def from_hub(cls, name: str, source: str, **options):
    """`cls.from_pretrained(source, **options)`. Raises `ModelError` that names `name` and the remedy."""
    try:
        return cls.from_pretrained(source, **options)
    except Exception as e:  # five libraries may raise here; a beginner gets one sentence
        raise ModelError(_in_plain_words(name, e)) from None


def _in_plain_words(name: str, error: BaseException) -> str:
    """One sentence for the common failures of a download, found by type along the chain of causes."""
    first_line, chain = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}", []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for e in chain:
        if isinstance(e, GatedRepoError):
            return (
                f"{name} asks you to accept Google's licence first: open https://huggingface.co/{name}, accept it, and give "
                "this notebook a token (Colab: the key icon, a secret named HF_TOKEN)"
            )
        if isinstance(e, RepositoryNotFoundError):
            return f"{name} is not on the Hugging Face Hub, or your token may not see it; check the spelling and HF_TOKEN"
        if isinstance(e, HfHubHTTPError) and e.response is not None and e.response.status_code == 401:
            return f"the Hugging Face Hub refused your token for {name}; make a new one and store it as HF_TOKEN"
    if any(isinstance(e, OfflineModeIsEnabled | LocalEntryNotFoundError | ConnectionError) for e in chain):
        return f"{name} can't be downloaded: no connection to the Hugging Face Hub; check the network, or use 'tiny-gemma3'"
    return f"{name} can't be loaded: {first_line}"
