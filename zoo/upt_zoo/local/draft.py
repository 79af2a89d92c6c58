"""What is to be published: a spec, its tensors and a card, before they have a digest. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from upt_zoo.errors import InvalidReference, InvalidSpec
from upt_zoo.layout import check_shapes
from upt_zoo.manifest import Manifest
from upt_zoo.references import is_version, newest, next_patch
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import Array, write_tensors

_COMPARISON_ONLY = {
    "full": "it changes the backbone, which all adapters share",
    "bitfit": "it changes the backbone's own biases",
    "ia3_prefix_bottleneck": "the engine has no IA3",
    "stacked_unipelt": "the engine has no stacked blocks",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is to be published; ``version`` None means the patch after the newest version."""

    spec: AdapterSpec
    tensors: Mapping[str, Array]
    card: str
    version: str | None = None

    def check(self) -> None:
        """Refuse what no store takes.

        Raises:
            Corrupt: the tensors are not those of the spec.
            InvalidReference: the version is not MAJOR.MINOR.PATCH.
            InvalidSpec: the method exists for comparison only.
        """
        _refuse_comparisons(self.spec)
        if self.version is not None and not is_version(self.version):
            raise InvalidReference(f"expected a version MAJOR.MINOR.PATCH, got {self.version!r}")
        check_shapes(self.spec, {name: tensor.shape for name, tensor in self.tensors.items()})

    def blobs(self) -> tuple[bytes, bytes, bytes]:
        """Return spec, tensors and card as bytes."""
        return self.spec.to_json(), write_tensors(self.tensors), self.card.encode()

    def manifest(self, blobs: tuple[bytes, bytes, bytes], known: Iterable[str]) -> Manifest:
        """Describe the blobs under the draft's version, else the patch after the known versions."""
        version, (spec, tensors, card) = self.version or next_patch(newest(known)), blobs
        return Manifest.of(self.spec.task.name, version, spec=spec, tensors=tensors, card=card)


def _refuse_comparisons(spec: AdapterSpec) -> None:
    reason = _COMPARISON_ONLY.get(spec.method)
    if reason is not None:
        raise InvalidSpec(
            f"method {spec.method} is trained for comparison only and cannot be served: {reason}"
        )
