"""``ellips COMMAND ...``: every command of the project, from a clone or from the installed package alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from ellips.distributed import close_process_group

from .ending import ended, stopping

FIT_COMMANDS = ("fit", "validate", "test", "predict")
LIGHTNING = (*FIT_COMMANDS, "train-encoder", "certify")
"""Commands that Lightning's trainer stops at a signal, when the batch is done."""
COMMANDS = {
    "fit": "train a projector and fit the Gaussians",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint and draw its curves",
    "predict": "run a checkpoint over the test split",
    "train-encoder": "train an encoder, on noise or 1-Lipschitz, or a denoiser",
    "plan": "say what a run needs in memory, disk and hours, before it runs",
    "encode": "fill the feature cache ahead of time",
    "certify": "certify the images of a split, one by one",
    "check": "check saved certificates, without trusting what made them",
    "audit": "attack every claim of a certification run",
    "compare": "put several runs, and files of other tools, side by side",
    "collect": "put the runs of a sweep into one table",
    "theory": "does a robust classifier exist, how Gaussian are the latents, what does that cost",
    "configs": "copy the shipped configurations into a folder",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The command line without the program's name; None: that of this process, whose errors are then printed
            (:func:`ellips.commands.ending.ended`).

    Returns:
        The exit code: 0 where all is done, 1 where a result is incomplete or does not hold, 2 where the input cannot be
        used.

    Raises:
        SystemExit: With 143 after SIGTERM and 130 after SIGINT.
    """
    if args is None:
        return ended(lambda: main(sys.argv[1:]))
    given = list(args)
    name = given[0] if given else "--help"
    if name not in COMMANDS:
        wide = max(map(len, COMMANDS))
        print("usage: ellips COMMAND ...   (ellips COMMAND --help tells more)\n")
        print("\n".join(f"  {command:<{wide}}  {what}" for command, what in COMMANDS.items()))
        return 0 if name in ("-h", "--help") else 2
    # Imported when asked for: no command waits for what only another one needs.
    module = "training" if name in FIT_COMMANDS else name.replace("-", "_")
    run: Callable[[Sequence[str]], int | None] = import_module(f"ellips.commands.{module}").main
    with stopping(at_sigterm=name not in LIGHTNING):
        code = run(given if name in FIT_COMMANDS else given[1:])
    close_process_group()
    return code or 0
