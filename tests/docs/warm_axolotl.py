"""Runs several ``axolotl`` commands, each in a process of its own that has the imports done already.

    python warm_axolotl.py < commands.json     # a list of lists of words, without the program's name

Importing Axolotl takes longer than all that a tiny model does, so the imports are done once and each command runs in
a fork. Ends with the exit code of the first command that fails.
"""

import json
import os
import sys


def main():
    import axolotl.cli.merge_lora
    import axolotl.cli.train  # noqa: F401
    import peft  # noqa: F401
    from axolotl.cli.main import cli

    for words in json.load(sys.stdin):
        print(f"$ axolotl {' '.join(words)}", flush=True)
        child = os.fork()
        if child == 0:
            cli.main(words, prog_name="axolotl")  # ends the process
        _, status, used = os.wait4(child, 0)
        print(f"# {used.ru_utime + used.ru_stime:.0f} s of CPU time", flush=True)
        if status:
            return os.waitstatus_to_exitcode(status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
