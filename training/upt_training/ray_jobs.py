"""Jobs as plain Ray tasks: on this machine, or on the cluster that it belongs to.

The one module that needs Ray. Ray places the tasks, and starts one again whose worker died; that
goes on from the checkpoint, so all machines have to see the folders of the jobs.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import ray
from ray.exceptions import RayError, RayTaskError

from upt_training.jobs import Job, Result, attempt
from upt_zoo.errors import InvalidInput, Unavailable
from upt_zoo.tensors import Array

_RETRIES = 5  # a worker that dies again and again has a fault of its own, such as too little memory


def in_parallel(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
    """Do the jobs on all CPUs that Ray has, each on its ``threads``, one without; as they end.

    One whose device is not the CPU also takes a GPU of Ray's for itself. Without a running cluster
    one is started here until the last job is done.

    Raises:
        InvalidInput: no node of Ray's has the GPU or the threads that the jobs are for.
        RayTaskError: a fault of upt in a worker.
    """
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        _check_devices({job.team.device for job in jobs})
        _check_threads(max(job.threads or 1 for job in jobs))
        train = ray.remote(max_retries=_RETRIES)(_attempt)
        starts = {job.recipe.initial_adapter: job.initial for job in jobs}
        shared = {name: ray.put(tensors) for name, tensors in starts.items()}
        waiting = {}
        for job in jobs:
            threads = job.threads or 1
            light = replace(job, initial=None, threads=threads)
            task = train.options(name=job.name, num_cpus=threads, num_gpus=_gpus(job))
            waiting[task.remote(light, shared[job.recipe.initial_adapter])] = job
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            job = waiting.pop(done)
            yield job, _result(job, done)
    finally:
        ray.shutdown()


def _attempt(job: Job, initial: Mapping[str, Array] | None) -> Result:
    return attempt(replace(job, initial=initial), as_json=True)


def _check_devices(devices: set[str]) -> None:
    """Check that Ray has what the jobs would else wait for, for ever."""
    if not devices <= {"cpu", "cuda"}:
        raise InvalidInput(
            f"--device: expected cpu, or cuda for any GPU of Ray's, got {', '.join(devices)}"
        )
    has_gpu = ray.cluster_resources().get("GPU")  # type: ignore[no-untyped-call]  # Ray leaves it so
    if "cuda" in devices and not has_gpu:
        raise InvalidInput("--device cuda: expected a GPU, Ray knows of none")


def _check_threads(threads: int) -> None:
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it so
    most = max(node["Resources"].get("CPU", 0) for node in nodes)
    if threads > most:
        raise InvalidInput(
            f"--threads: expected at most the {most:g} CPUs of Ray's largest node, got {threads}"
        )


def _gpus(job: Job) -> int:
    return 0 if job.team.device == "cpu" else 1


def _result(job: Job, done: "ray.ObjectRef[Result]") -> Result:
    try:
        return ray.get(done)
    except RayTaskError:
        raise
    except RayError as error:
        return Unavailable(
            f"{job.name}: expected a worker that lives, got {type(error).__name__} in "
            f"{_RETRIES + 1} tries; start the sweep again to go on from the checkpoint"
        )
