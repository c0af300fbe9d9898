"""What `--version` says beside the version of the package: of the formats, and of the model that is shipped."""

from device.bundle import DEFAULT_BUNDLE, SCHEMA, read_bundle
from device.store.database import VERSION


def versions() -> list[str]:
    """A line each of the bundle's schema, the store's, and the shipped bundle."""
    shipped = read_bundle(DEFAULT_BUNDLE)
    return [
        f"bundle schema {SCHEMA}",
        f"store schema {VERSION}",
        f"shipped bundle {shipped.manifest.name} {shipped.fingerprint[:12]}",
    ]
