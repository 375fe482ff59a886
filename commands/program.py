"""``ellips COMMAND ...``: every command of the project, from a clone or from the installed package alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module

from ellips.distributed import close_process_group

from .ending import stopping
from .messages import in_one_message, say

FIT_COMMANDS = ("fit", "validate", "test", "predict")
LIGHTNING = (*FIT_COMMANDS, "train-encoder", "certify", "reproduce")
"""Commands that Lightning's trainer stops at a signal, when the batch is done."""
COMMANDS = {
    "fit": "train a projector and fit the Gaussians",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint and draw its curves",
    "predict": "write class and radius of the pictures of a folder; without one, run over the test split",
    "train-encoder": "train an encoder, on noise or 1-Lipschitz, or a denoiser",
    "plan": "say what a run needs in memory, disk and hours, before it runs",
    "encode": "fill the feature cache ahead of time",
    "certify": "certify the images of a split, one by one",
    "certify-image": "print class and radius of picture files",
    "check": "check saved certificates, without trusting what made them",
    "audit": "attack every claim of a certification run",
    "compare": "put several runs, and files of other tools, side by side",
    "reproduce": "run or resume a table of the paper, with published rows beside ours",
    "collect": "put the runs of a sweep into one table",
    "theory": "does a robust classifier exist, how Gaussian are the latents, what does that cost",
    "configs": "copy the shipped configurations into a folder",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The command line without the program's name; None: that of this process.

    Returns:
        The exit code: 0 where all is done, 1 where a result is incomplete or does not hold, 2 where the input cannot be
        used.

    Raises:
        SystemExit: With 143 after SIGTERM and 130 after SIGINT.
    """
    given = list(sys.argv[1:] if args is None else args)
    name = given[0] if given else "--help"
    if name not in COMMANDS:
        wide = max(map(len, COMMANDS))
        if name not in ("-h", "--help"):
            near = get_close_matches(name, COMMANDS, n=1)
            say(f"ellips: there is no command {name!r}.{f' Did you mean {near[0]}?' if near else ''}\n")
        print("usage: ellips COMMAND ...   (ellips COMMAND --help tells more; --debug shows where an error arose)\n")
        print("\n".join(f"  {command:<{wide}}  {what}" for command, what in COMMANDS.items()))
        return 0 if name in ("-h", "--help") else 2
    # Imported when asked for: no command waits for what only another one needs.
    module, function, rest = name.replace("-", "_"), "main", given[1:]
    if name == "certify-image":
        module = "pictures"
    elif name == "predict" and rest[:1] and not rest[0].startswith("-"):
        module, function = "pictures", "predict"
    elif name in FIT_COMMANDS:
        module, rest = "training", given
    run: Callable[[Sequence[str]], int | None] = getattr(import_module(f"ellips.commands.{module}"), function)
    with stopping(at_sigterm=name not in LIGHTNING):
        code = run(rest)
    close_process_group()
    return code or 0


def console() -> int:
    """Run the command of this process's command line: errors in one message, unless ``--debug`` is given."""
    return in_one_message(main, sys.argv[1:])
