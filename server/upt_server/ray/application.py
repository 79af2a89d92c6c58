"""The application that ``serve deploy`` starts, as ``deploy/ray/serve.yaml`` says."""

from ray import serve
from ray.serve import Application

from upt_server.ray.options import ReplicaOptions
from upt_server.ray.replica import Replica


def build(args: ReplicaOptions) -> Application:
    """Return the application; its only deployment is ``Replica``."""
    return serve.deployment(name="Replica")(Replica).bind(args)
