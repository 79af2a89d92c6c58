"""Every command and every piece of Python in the documents does what a reader would have it do."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from upt_testing.documents import NAMES, blocks, run_page

PAGES = [name for name in NAMES if any(each.is_code and not each.reason for each in blocks(name))]
AT_ONCE = 2  # pages wait more than they compute: for servers to start


@pytest.fixture(scope="session")
def pages(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[str]]]:
    """Run all pages that this session asks for, some at once."""
    with ThreadPoolExecutor(AT_ONCE) as executor:
        asked = [each for each in PAGES if any(each in item.name for item in request.session.items)]
        yield {
            name: executor.submit(run_page, name, tmp_path_factory.mktemp("page"), os.environ)
            for name in asked
        }


@pytest.mark.slow
@pytest.mark.timeout(0)  # a page waits for its turn, and has a deadline of its own
@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, pages: dict[str, Future[str]]) -> None:
    pages[page].result()
