"""Command lines whose mistakes are reported in one line."""

import argparse
import difflib
import sys
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """Errors are one line, with the closest flag for an unknown one."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {self.worded(message)}", file=sys.stderr)
        sys.exit(2)

    def worded(self, message: str) -> str:
        """What argparse says, with the closest flag for an unknown one."""
        if message.startswith("unrecognized arguments: --"):
            unknown = message.split()[2].split("=")[0]
            match = difflib.get_close_matches(unknown, self._option_string_actions, n=1)
            message = f"unknown flag {unknown}" + (f" (closest match: {match[0]})" if match else "")
        return message
