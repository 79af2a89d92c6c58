"""What must hold between the parts of an adapter: manifest, spec, tensors and card. Pure.

Whoever publishes, copies or verifies an adapter asks here. Loading asks less (``Store.load``): what
is in a store has been checked on its way in.
"""

from collections.abc import Sequence

from upt_zoo.errors import Corrupt, InvalidSpec
from upt_zoo.layout import check_shapes, parameter_counts
from upt_zoo.manifest import Manifest
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import read_tensors

_COMPARISON_ONLY = {
    "full": "it changes the backbone, which all adapters share",
    "bitfit": "it changes the backbone's own biases",
    "ia3_prefix_bottleneck": "the engine has no IA3",
    "stacked_unipelt": "the engine has no stacked blocks",
}


def check_spec(spec: AdapterSpec) -> None:
    """Check what a valid spec may still get wrong.

    Raises:
        InvalidSpec: the method exists for comparison only, or the lineage counts other parameters
            than the spec's tensors have.
    """
    reason = _COMPARISON_ONLY.get(spec.method)
    if reason is not None:
        raise InvalidSpec(
            f"method {spec.method} is trained for comparison only and cannot be served: {reason}"
        )
    expected = parameter_counts(spec)
    counted = (spec.lineage.served_parameters, spec.lineage.head_parameters)
    if counted != expected:
        raise InvalidSpec(
            f"expected served_parameters {expected[0]} and head_parameters {expected[1]}, as many "
            f"as the spec's tensors have, got {counted[0]} and {counted[1]}"
        )


def read_spec(manifest: Manifest, data: bytes) -> AdapterSpec:
    """Parse the config of a manifest.

    Raises:
        Corrupt: not a spec, or that of an adapter of another name.
    """
    try:
        spec = AdapterSpec.from_json(data)
    except InvalidSpec as error:
        raise Corrupt(f"{manifest.name}:{manifest.version}: {error}") from error
    if spec.task.name != manifest.name:
        raise Corrupt(
            f"{manifest.name}:{manifest.version}: expected the task's name as the adapter's, got a "
            f"spec of the task {spec.task.name}"
        )
    return spec


def check_blobs(manifest: Manifest, blobs: Sequence[bytes]) -> AdapterSpec:
    """Return the spec if the blobs, whose digests are right, are those of an adapter.

    Raises:
        Corrupt: a blob is not of its format, or they do not fit together.
    """
    name, (config, tensors, card) = f"{manifest.name}:{manifest.version}", blobs
    spec = read_spec(manifest, config)
    try:
        check_spec(spec)
        card.decode()
    except InvalidSpec as error:
        raise Corrupt(f"{name}: {error}") from error
    except UnicodeDecodeError as error:
        raise Corrupt(f"the card of {name} is not UTF-8: {error}") from error
    check_shapes(spec, {name: tensor.shape for name, tensor in read_tensors(tensors).items()})
    return spec
