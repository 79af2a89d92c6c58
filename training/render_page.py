"""Write into a page what the commands in it print.

    python training/render_page.py docs/results.md [--check]

A block of such a page is a command of ``upt-train table`` in a fence of its own, and behind it what
it prints, up to a comment; a command that cannot print gives its one line of error in italics:

    ```sh
    upt-train table training/records
    ```

    ...
    <!-- end -->

``--check`` writes nothing and exits with 1 where page and commands differ. The commands run in the
root of the repository; the plots that they draw are written either way.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"^(?P<fence>```sh\n(?P<command>upt-train table .*?)\n```\n).*?^<!-- end -->$",
    re.MULTILINE | re.DOTALL,
)


def main() -> int:
    """Render one page."""
    parser = argparse.ArgumentParser(description="Write what a page's commands print.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    arguments = parser.parse_args()
    text = arguments.page.read_text(encoding="utf-8")
    rendered = render(text, printed)
    if arguments.check:
        return int(rendered != text)
    arguments.page.write_text(rendered, encoding="utf-8")
    return 0


def render(text: str, run: Callable[[Sequence[str]], str]) -> str:
    """Return the page with every block as ``run`` prints its command."""

    def block(found: re.Match[str]) -> str:
        words = shlex.split(found["command"].replace("\\\n", " "))
        return f"{found['fence']}\n{run(words).strip()}\n\n<!-- end -->"

    return _BLOCK.sub(block, text)


def printed(words: Sequence[str]) -> str:
    """Run ``upt-train`` with the words behind its name and return what it prints."""
    command = [sys.executable, "-m", "upt_training.cli", *words[1:]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"*{result.stderr.strip()}*" if result.returncode else result.stdout


if __name__ == "__main__":
    sys.exit(main())
