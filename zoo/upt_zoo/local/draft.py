"""What is to be published: a spec, its tensors and a card, before they have a digest. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from upt_zoo.contents import check_spec
from upt_zoo.errors import InvalidInput, InvalidReference
from upt_zoo.layout import check_shapes
from upt_zoo.manifest import Manifest
from upt_zoo.references import is_version, newest, next_patch
from upt_zoo.spec import AdapterSpec
from upt_zoo.tensors import Array, write_tensors


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
            InvalidSpec: as ``contents.check_spec``.
        """
        check_spec(self.spec)
        if self.version is not None and not is_version(self.version):
            raise InvalidReference(f"expected a version MAJOR.MINOR.PATCH, got {self.version!r}")
        check_shapes(self.spec, {name: tensor.shape for name, tensor in self.tensors.items()})

    def blobs(self) -> tuple[bytes, bytes, bytes]:
        """Return spec, tensors and card as bytes.

        Raises:
            InvalidInput: one of them cannot be written.
        """
        try:
            card = self.card.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"the card cannot be written as UTF-8: {error}") from error
        return self.spec.to_json(), write_tensors(self.tensors), card

    def manifest(self, blobs: tuple[bytes, bytes, bytes], known: Iterable[str]) -> Manifest:
        """Describe the blobs under the draft's version, else the patch after the known versions."""
        version, (spec, tensors, card) = self.version or next_patch(newest(known)), blobs
        return Manifest.of(self.spec.task.name, version, spec=spec, tensors=tensors, card=card)
