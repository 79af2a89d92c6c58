"""The command ``upt-train``: results on stdout, progress on stderr, one line for an error.

Exit codes are those of ``upt_zoo.terminal``. Only its options read the environment
(``UPT_DATA_DIR``, ``UPT_ZOO_HOME``), and only it sets it. Everything beyond typer is imported
inside the commands, which keeps ``--help`` fast.
"""

import json
import os

import typer

from upt_training.commands.evaluating import evaluate, report
from upt_training.commands.examples import add_example
from upt_training.commands.learning import add_learning_commands
from upt_training.commands.starting import init
from upt_training.commands.sweeping import sweep
from upt_training.commands.tables import table
from upt_zoo.options import AsJson
from upt_zoo.terminal import make_app, run_command

app = make_app("Train adapters, evaluate them and register them in the zoo.")
app.command()(init)
add_learning_commands(app)
for command in (sweep, evaluate, report, table):
    app.command()(command)
app.command("add-example")(add_example)


def main() -> None:
    """Run the command line and exit with its code."""
    # oneDNN compiles a kernel a shape; its default memory of 1,024 is too short for an epoch
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers of each sweep
    run_command(app, "upt-train")


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks of the catalogue."""
    from upt_zoo.tasks import TASKS

    if as_json:
        listed = [
            {"name": each.name, "fields": each.fields, "head": each.kind, "metrics": each.metrics}
            for each in TASKS.values()
        ]
        typer.echo(json.dumps(listed, indent=2))
        return
    for each in TASKS.values():
        typer.echo(f"{each.name:<20} {', '.join(each.metrics):<24} {each.description}")


if __name__ == "__main__":
    main()
