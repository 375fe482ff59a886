"""Runs the commands of a JSON list of command lines in turn, in this one process of several."""

import json
import sys
from importlib import import_module

from ellips.distributed import close_process_group

if __name__ == "__main__":
    for name, *arguments in json.loads(sys.argv[1]):
        import_module(f"ellips.commands.{name}").main(arguments)
    close_process_group()
