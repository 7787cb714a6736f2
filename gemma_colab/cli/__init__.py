"""`gemma-colab`: the series without a browser. Here is what can be said to each command; `commands.py` does it."""

import argparse
import ast
import json
import os
import sys
import time
from contextlib import redirect_stdout
from typing import NoReturn

from gemma_colab import GemmaColabError
from gemma_colab.cli import commands
from gemma_colab.model import LoraSettings
from gemma_colab.training import TrainSettings

USAGE = 4
DESCRIPTION = """The series without a browser. Exit status of check and prepare: 0 ready, 1 warnings, 2 blocked, 3 unreadable;
of doctor: 0 all well, 1 warnings, 2 something must be done first; of plan: 0 fits, 1 tight, 2 does not fit; of train: 0 trained,
1 trained, but it did not learn, overfitted or was unstable, or rows were left out or cut, 2 stopped, by an interrupt or because it broke (with several processes
accelerate launch says 0 for both kinds of trained, 1 for all else); of evaluate: 0 ship it, or read first, 1 not yet, 2 no; of export: 0 written,
1 written, but a merged model that differs from what was trained; of all: 4 wrong usage."""


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not (name and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no pair; write one like output=Ответ, r=16 or valid JSON=0.95")
    return name, value


def _setting(text: str) -> tuple[str, object]:
    """A name, and the value that Python reads, or the text itself."""
    name, value = _pair(text)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _from(least: int):
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least}")
        return int(text)

    return number


def _workspace(left_by: str) -> dict:
    return {"--workspace": dict(required=True, metavar="DIR", help=left_by)}


FLAG = {"action": "store_true"}
READING = {
    "file": dict(help="JSONL, JSON, CSV, TSV, Excel, Parquet, any of these gzipped, or hf://datasets/OWNER/NAME of Hugging Face"),
    "--map": dict(action="append", type=_pair, default=[], metavar="NAME=COLUMN", help="such as output=Ответ"),
    "--sheet": dict(type=lambda text: int(text) if text.isdecimal() else text, default=0, help="of Excel: name, or number from 0"),
    "--split": dict(default="train", help="of a Hugging Face dataset"),
    "--limit": dict(type=int, metavar="N", help="read at most N rows"),
    "--accept": dict(action="append", default=[], metavar="FINDING", help="overrule a finding, by its name"),
    "--keep": dict(action="append", default=[], metavar="CONTACT", help="an e-mail or phone of yours; after `--keep only`, no others stay"),
    "--model": dict(metavar="NAME", help="count tokens with this model's tokenizer (tiny-gemma3, a name, a folder)"),
    "--max-length": dict(type=_from(16), default=1024, metavar="TOKENS", help="of a row in training (default %(default)s)"),
}  # fmt: skip
PREPARING = _workspace("where the rows go") | {
    "--too-long": dict(choices=("keep", "drop", "split"), default="keep", help="rows beyond --max-length; needs --model"),
    "--steps": dict(nargs="+", metavar="STEP", help="of cleaning; by default those that repair what storage has spoilt"),
    "--also": dict(nargs="+", metavar="STEP", default=[], help="further steps; the report names those that would change rows"),
    "--groups": dict(metavar="COLUMN", help="rows with the same value of it stay together, such as those of one customer"),
    "--originals": FLAG | dict(help="also keep the logs with personal data as in the file, unmasked_*.jsonl, which undo needs"),
    "--validation-size": dict(type=float, default=0.1, help="default %(default)s"),
    "--test-size": dict(type=float, default=0.15, help="default %(default)s"),
    "--seed": dict(type=int, default=0, help="default %(default)s"),
}
DOCTOR = {
    "model": dict(nargs="?", help="also: may this model be downloaded, and is there room for it"),
    "--workspace": dict(default=".", metavar="DIR", help="also: is there room for the work (default: here)"),
}
PLAN = {
    "model": dict(help="such as gemma-3-4b-it, tiny-gemma3, a Hub id or a folder"),
    "--gpu": dict(default="T4", metavar="GPU", help="T4, L4, A100, or its memory in GiB (default %(default)s)"),
    "--tokens": dict(type=int, default=1024, metavar="N", help="length of the longest row (default %(default)s)"),
    "--batch": dict(type=int, default=TrainSettings.per_device_train_batch_size, metavar="N", help="rows computed at once"),
    "--r": dict(type=int, default=LoraSettings.r, metavar="N", help="rank of LoRA (default %(default)s)"),
    "--16bit": dict(dest="load_in_4bit", action="store_false", help="keep the weights in 16 bit"),
    "--no-checkpointing": dict(dest="checkpointing", action="store_false", help="keep all activations"),
}
TRAIN = _workspace("where prepare, or notebook 01, put the rows") | {
    "--set": dict(action="append", type=_setting, default=[], metavar="NAME=VALUE", help="such as learning_rate=1e-4; may be repeated"),
    "--model": dict(metavar="NAME", help="instead of the workspace's; tiny-gemma3, gemma-3-1b-it, auto, a folder"),
    "--16bit": dict(dest="load_in_4bit", action="store_const", const=False, help="keep the weights in 16 bit"),
    "--resume": FLAG | dict(help="go on from the newest whole checkpoint"),
    "--anyway": FLAG | dict(help="also from one of other settings; also a model that looks too large"),
    "--shorter-rows": FLAG | dict(help="rows may be cut if nothing else saves enough memory"),
    "--report-to": dict(choices=("none", "tensorboard", "trackio", "wandb"), default="none", help="where else to log"),
}  # fmt: skip
EVALUATE = _workspace("where train, or notebook 04, put the adapter") | {
    "--rows": dict(dest="test_rows", type=_from(1), metavar="N", help="at most so many test rows, drawn at random (default all)"),
    "--examples": dict(type=_from(0), default=3, metavar="N", help="solved rows in the few-shot prompt; 0 leaves it out"),
    "--max-new-tokens": dict(type=_from(1), metavar="N", help="of an answer (default: enough for the longest right one)"),
    "--batch": dict(dest="batch_size", type=_from(1), default=32, metavar="N", help="questions at once (default %(default)s)"),
    "--bar": dict(action="append", type=_setting, default=[], metavar="MEASURE=SHARE",
                  help="ship only if at least this share of test rows is right; may be repeated; kept"),
    "--anyway": FLAG | dict(help="also a model that looks too large for this machine"),
}  # fmt: skip
EXPORT = _workspace("where train, or notebook 04, left the adapter") | {
    "--to": dict(required=True, choices=("adapter", "merged", "ollama", "gguf", "hub"),
                 help="merged is compared with the adapter; gguf needs llama.cpp"),
    "--rows": dict(type=int, default=20, metavar="N", help="test rows to compare on, 0 for none (default %(default)s)"),
    "--whole": dict(dest="text_only", action="store_const", const=False, help="keep the vision part of a base that sees images"),
    "--outtype": dict(choices=("f32", "bf16", "f16", "q8_0"), default="q8_0", help="of a GGUF file (default %(default)s)"),
    "--repo": dict(dest="repo_id", metavar="OWNER/NAME", help="of the Hub; a name alone is one of your own account"),
    "--form": dict(choices=("adapter", "merged"), default="adapter", help="what goes to the Hub (default %(default)s)"),
    "--public": dict(dest="private", action="store_false", help="everybody may see it on the Hub; else only you may"),
    "--exist-ok": FLAG | dict(help="write a new version into a repository of the Hub that is there"),
    "--also": dict(action="append", default=[], metavar="FILE", help="send this one to the Hub too, or in spite of personal data in it"),
    "--system": dict(metavar="TEXT", help="for ollama: said to the model before the first question"),
}  # fmt: skip
# What can be exported -> options that change nothing elsewhere.
ONLY_FOR = {"gguf": "--outtype", "hub": "--repo --form --public --exist-ok --also", "ollama": "--system"}
ONLY_FOR |= {"merged, ollama, gguf or hub": "--whole"}
COMMANDS = {  # name -> what runs it, what can be said to it, its help
    "check": (commands.check, READING, "report what is wrong with a dataset; changes nothing"),
    "prepare": (commands.prepare, READING | PREPARING, "clean, split and save it in a workspace"),
    "doctor": (commands.doctor, DOCTOR, "what this machine is, what is missing, and the next step to take"),
    "plan": (commands.plan, PLAN, "how much GPU memory training will take, before anything is downloaded"),
    "train": (commands.train, TRAIN, "train an adapter on the rows and with the settings of a workspace"),
    "evaluate": (commands.evaluate, EVALUATE, "compare base, few-shot and tuned on the test rows; writes a report"),
    "export": (commands.export, EXPORT, "take home what was trained: adapter, merged model, Ollama, GGUF, or to the Hub"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {GemmaColabError(message)}\n")  # argparse would say 2, which means "blocked" here


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="gemma-colab", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parsers, actions = parser.add_subparsers(dest="command", required=True), {}
    for name, (run, options, what) in COMMANDS.items():
        command = parsers.add_parser(name, help=what)
        command.set_defaults(run=run)
        for option, how in options.items():
            actions.setdefault(name, {})[option] = command.add_argument(option, **how)
        command.add_argument("--json", action="store_true", help="the result as JSON; everything else goes to the error output")
    args = parser.parse_args(argv)
    if wrong := _without_effect(args, actions[args.command]):
        parsers.choices[args.command].error(wrong)
    return args


def _without_effect(args: argparse.Namespace, actions: dict[str, argparse.Action]) -> str:
    """Say what would change nothing, if there is anything."""
    if not getattr(args, "workspace", ".").strip():  # of an unset variable, say; for Python it is the current folder
        return f"--workspace {args.workspace!r} must be the name of a folder"
    if len(dict(pairs := getattr(args, "map", []))) < len(pairs):
        return "--map names something twice; say it once, and join two columns before"
    if getattr(args, "too_long", "keep") != "keep" and not args.model:
        return f"--too-long {args.too_long} needs --model, whose tokens are counted"
    for forms, options in ONLY_FOR.items() if args.command == "export" else ():
        for option in options.split():
            if args.to not in forms and getattr(args, actions[option].dest) != actions[option].default:
                return f"{option} is for --to {forms}, not for --to {args.to}; leave it out"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` names, and return its exit status; the result is printed in words or, for `--json`, as JSON."""
    for stream in (sys.stdout, sys.stderr):  # a console that lacks Cyrillic shows escapes instead of failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args, first = _parsed(argv), os.environ.get("RANK", "0") == "0"  # of several processes the first speaks
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if not first else sys.stderr if args.json else sys.stdout):
            status, found, said = args.run(args)
        if first:
            GemmaColabError.say(json.dumps(found, ensure_ascii=False, indent=1) if args.json else said)
        return status
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        where = e.filename or getattr(args, "workspace", ".")  # what is open already isn't named
        GemmaColabError.say(f"{e.strerror or e}: {where}; make room there, or name another place", file=sys.stderr)
        return USAGE
    except GemmaColabError as e:
        if not first:  # with the first that ends, accelerate ends all: one that is still there met something of its own
            time.sleep(5)
        GemmaColabError.say(f"{type(e).__name__}: {e}", file=sys.stderr)
        return e.status
