"""Build the documents as a site in build/site: ``python docs/build_site.py``.

The pages are README.md, CONTRIBUTING.md, CHANGELOG.md and all of docs/. They are gathered in
build/pages; what they link to elsewhere in the repository is named there and not linked, since a
site has no such file. A broken link or anchor, and a page that would fetch anything from another
host, ends with exit code 1. It runs in the environment of docs/requirements.txt, without upt.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
GATHERED = ROOT / "build" / "pages"
SITE = ROOT / "build" / "site"
HOME = "README.md"
_TOP = (HOME, "CONTRIBUTING.md", "CHANGELOG.md")
_KINDS = (".md", ".svg", ".png", ".json", ".csv")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_FOREIGN = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
)


def main() -> int:
    """Gather, build and look at what came out; return the exit code."""
    gather(GATHERED)
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if built.returncode:
        words = _COLOUR.sub("", built.stderr).partition("Traceback")[0]
        sys.stderr.write(f"{built.stdout}{words}")
        return 1
    wrong = foreign_parts(SITE)
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


def gather(target: Path) -> None:
    """Write all pages and pictures into an empty folder, as a site links them."""
    shutil.rmtree(target, ignore_errors=True)
    files = [ROOT / name for name in _TOP]
    files += [each for each in sorted(ROOT.glob("docs/**/*")) if each.suffix in _KINDS]
    places = {each.relative_to(ROOT).as_posix(): place_of(each) for each in files}
    for file in files:
        source = file.relative_to(ROOT).as_posix()
        output = target / places[source]
        output.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            output.write_text(relinked(file.read_text("utf-8"), source, places), encoding="utf-8")
        else:
            shutil.copyfile(file, output)


def place_of(file: Path) -> str:
    """Return where a file of the repository stands on the site."""
    name = file.relative_to(ROOT).as_posix().removeprefix("docs/")
    return "index.md" if name == HOME else name


def relinked(text: str, source: str, places: dict[str, str]) -> str:
    """Turn the links of a page, blocks of code excepted."""

    def turn(found: re.Match[str]) -> str:
        meant = os.path.normpath(PurePosixPath(source).parent / found["path"])
        if meant not in places:
            words = found["text"].strip("`")
            return f"`{meant}`" if words.strip("/") == meant else f"{words} (`{meant}`)"
        here = PurePosixPath(places[source]).parent
        return f"[{found['text']}]({os.path.relpath(places[meant], here)}{found['anchor'] or ''})"

    parts = _FENCE.split(text)
    return "".join(part if index % 2 else _LINK.sub(turn, part) for index, part in enumerate(parts))


def foreign_parts(site: Path) -> list[str]:
    """Name what a page would fetch from another host."""
    return [
        f"{page.relative_to(site)}: from another host: {found}"
        for page in sorted(site.rglob("*.html"))
        for found in _FOREIGN.findall(page.read_text(encoding="utf-8"))
    ]


if __name__ == "__main__":
    sys.exit(main())
