"""A folder that `ollama create` takes as it is: the merged weights, and a Modelfile with template, stop tokens and sampling."""

import re
from pathlib import Path

from gemma_colab.core.errors import SettingsError, WorkspaceError, say
from gemma_colab.core.workspace import whole
from gemma_colab.export.checkpoint import SAMPLING, check_merged
from gemma_colab.export.folders import BELONGS, LEFT, changed, link, refuse_overlap, refuse_strangers, signed
from gemma_colab.model.hub import refuse_links

# Gemma's chat template in Go's template language. Ollama puts <bos> before it, and joins system texts into .System; they stay
# among the messages too, where their role is "system". A blank line parts the system text from the first question.
TEMPLATE = """\
{{- $system := .System }}
{{- range .Messages }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ if $system }}{{ $system }}

{{ end }}{{ .Content }}<end_of_turn>
{{ $system = "" }}
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}
{{- end }}<start_of_turn>model
"""


def modelfile(weights: str, system: str | None = None) -> str:
    """Return the Modelfile for weights at a path seen from its folder. Raises `SettingsError` where Ollama would read `system` otherwise."""
    if not weights.isprintable():  # what follows a line break would be a command
        raise SettingsError(f"the name {weights!r} holds a line break or another unprintable character; rename the file")
    lines = [f"FROM {weights}", f'TEMPLATE """{TEMPLATE}"""']
    lines += [f'PARAMETER stop "{token}"' for token in ("<end_of_turn>", "<eos>")]
    lines += [f"PARAMETER {name} {value}" for name, value in SAMPLING.items()]  # Ollama's own defaults are others
    if system and system.strip():
        if '"""' in system:
            raise SettingsError('system has """ in it, where Ollama would end the text; take other quotes')
        # Ollama leaves out what Go doesn't call printable, a no-break space too, and glues the words together.
        if lost := [c for c in system if not c.isprintable() and c not in "\n\t"]:
            raise SettingsError(f"system has the character U+{ord(lost[0]):04X}, which Ollama leaves out; replace or delete it")
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


def write_ollama(merged: str | Path, out: str | Path, *, system: str | None = None) -> Path:
    """Write the folder `out`; there, `ollama create NAME` and `ollama run NAME`. Return `out`; an earlier one is replaced, but
    for a Modelfile that was changed since.

    merged: the folder of a merged model, which Ollama converts itself, or a .gguf file; linked (no room needed) or, on another disk,
    copied. system: a text before the first question of every conversation. What Ollama asks differs from `apply_chat_template` in one
    thing: it doesn't strip spaces and line breaks around a message. Raises errors of this package; then nothing is left behind.
    """
    merged, out = Path(merged).expanduser().resolve(), Path(out).expanduser().absolute()
    text = modelfile(f"./{merged.name}" if merged.suffix == ".gguf" else ".", system)
    if merged.suffix != ".gguf":
        check_merged(merged)
        refuse_links(merged)
    elif not merged.is_file():
        raise WorkspaceError(f"{merged} is not there; write it with write_gguf first")
    files = [merged] if merged.is_file() else [path for path in merged.iterdir() if path.is_file() and path.suffix != ".gguf"]
    files = [path for path in files if path.name != "Modelfile"]  # it would be written through its second name
    refuse_overlap(out, merged)
    was = file.read_text(encoding="utf-8", errors="replace") if (file := out / "Modelfile").is_file() else ""
    before = [] if (theirs := changed(file, text)) else re.findall(r"\AFROM \./(.+)", was)  # a .gguf file
    refuse_strangers(out, ["Modelfile", *before, *BELONGS["merged"], *(path.name for path in files)] if TEMPLATE in was else [])
    if theirs:
        say(LEFT.format(file))
    try:
        with whole(out) as part:
            part.mkdir()
            for path in files:
                link(path.resolve(), part / path.name)
            (part / "Modelfile").write_bytes(file.read_bytes() if theirs else signed(text, "# {}").encode())  # in any alphabet
    except OSError as e:
        remedy = "make room there, or name a folder you may write to"
        raise WorkspaceError(f"{out} can't be written ({e.strerror}); {remedy}") from None
    return out
