"""For all tests: nothing of the user's machine comes in, and tensor signatures are checked.

Both happen while this file is imported, which is before any module of ours is.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.environ["HF_TOKEN_PATH"] = os.devnull
for name in ("HF_TOKEN", "HF_ENDPOINT", "UPT_ZOO_HOME", "UPT_ZOO_REMOTES", "UPT_ZOO_OFFLINE"):
    os.environ.pop(name, None)
for name in [name for name in os.environ if name.startswith("UPT_SERVER_")]:
    os.environ.pop(name)
install_import_hook("upt_zoo.nn", "beartype.beartype")
# how long a busy machine takes says nothing of what is tested
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
settings.register_profile("fuzz", max_examples=100_000, deadline=None)  # see CONTRIBUTING.md


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``data`` run where the folder of the real data sets is named."""
    if item.get_closest_marker("data") and not os.environ.get("UPT_DATA_DIR"):
        pytest.skip("UPT_DATA_DIR is not set")
