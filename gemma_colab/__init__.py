"""Fine-tune Gemma 3 on your own data: the thin package that the notebooks call."""

__version__ = "0.1.0"
