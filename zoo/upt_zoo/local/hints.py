"""What to tell whoever names an adapter that is not there. Pure."""

from pathlib import Path

from upt_zoo.close_names import did_you_mean
from upt_zoo.errors import AdapterNotFound
from upt_zoo.local.listing import Listing
from upt_zoo.references import Reference, version_order


def not_found(reference: Reference, listing: Listing, root: Path) -> AdapterNotFound:
    """Return the error that says what the store at ``root`` has instead."""
    if known := sorted(listing.versions.get(reference.name, ()), key=version_order):
        aliases = sorted(listing.aliases.get(reference.name, ()))
        tags = ", ".join([*known, *aliases])
        if reference.tag is None and reference.digest is None:
            return AdapterNotFound(f"every version of {reference} is yanked; name one: {tags}")
        return AdapterNotFound(f"no {reference}; it has {tags}", f"(in {root})")
    return AdapterNotFound(
        f"no adapter {reference.name}{did_you_mean(reference.name, listing.versions)}",
        f"(in {root}: `upt-zoo ls` lists what is there, `upt-zoo ls --catalogue` what "
        f"`upt-zoo pull NAME` can fetch)",
    )
