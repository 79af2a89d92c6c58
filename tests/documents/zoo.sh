fill
cp -r "$store" zoo
publish sst2:1.0.2 sst2:1.1.0 tickets plain-lora
upt-zoo tag sst2:1.0.1 stable
upt-zoo tag sst2:1.0.1 canary
upt-zoo export peft plain-lora ./my-lora
upt-zoo export adapterhub tickets ./my-unipelt
# adapters made elsewhere: the catalogue's, as files
python - <<'PYTHON'
from pathlib import Path

from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.references import Reference

store = embedded_catalogue()
for name, folder in (("sst2", "build/sst2"), ("mrpc", "build/mrpc"), ("sst2", ".")):
    Path(folder).mkdir(parents=True, exist_ok=True)
    blobs = store.resolve(Reference.parse(name)).manifest.blobs
    for blob, file in zip(blobs, ("spec.json", "tensors.safetensors", "card.md"), strict=True):
        digest = blob.digest.removeprefix("sha256:")
        Path(folder, file).write_bytes((store.root / "blobs" / "sha256" / digest).read_bytes())
PYTHON
