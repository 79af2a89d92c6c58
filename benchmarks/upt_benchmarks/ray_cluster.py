"""A Ray of this machine alone, which runs the configurations that it is told.

Each line of standard input is the path of a configuration of Ray Serve, as ``serve run`` takes it;
``ready`` is printed when its replicas are up. Ray ends with standard input.
"""

import logging
import sys
import time

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.serve.scripts import cli

_CPUS = 8  # for replicas to ask for: more than there are, as they may wait for each other
_OBJECT_STORE_BYTES = 100 * 2**20  # calls and answers are small
_PAUSE_S = 0.05


def main() -> None:
    """Run what is told."""
    ray.init(
        include_dashboard=False,
        num_cpus=_CPUS,
        object_store_memory=_OBJECT_STORE_BYTES,
        logging_level=logging.WARNING,
    )
    for line in sys.stdin:
        cli(["run", "--non-blocking", line.strip()], standalone_mode=False)
        while not _is_running():
            time.sleep(_PAUSE_S)
        print("ready", flush=True)


def _is_running() -> bool:
    applications = serve.status().applications.values()
    return all(each.status is ApplicationStatus.RUNNING for each in applications)


if __name__ == "__main__":
    main()
