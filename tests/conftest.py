"""For all tests: nothing of the user's machine comes in, and tensor signatures are checked.

Both happen while this file is imported, which is before any module of ours is.
"""

import os

import pytest
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.devnull
os.environ.pop("UPT_ZOO_HOME", None)
install_import_hook("upt_zoo.nn", "beartype.beartype")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``data`` run where the folder of the real data sets is named."""
    if item.get_closest_marker("data") and not os.environ.get("UPT_DATA_DIR"):
        pytest.skip("UPT_DATA_DIR is not set")
