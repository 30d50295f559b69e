"""docs/conversions.md says what becomes what: all it says is refused is tried, and a format from each kind of file.

What TensorFlow wrote is tried by tests/unit/test_keras.py.
"""

import pytest

from tests.conformance.conversions import FORMATS, said, sources, tried
from tests.unit import formats_kit


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_says_what_happens(tmp_path):
    formats_kit.use_home()
    page, seen = said(), []
    for at, source in enumerate(sources(tmp_path)):
        for name in FORMATS:
            expected = page.pop((source.kind, name))
            if expected != "right" or name == FORMATS[at % len(FORMATS)]:
                seen.append((source.kind, name, expected, tried(source, name)))
    assert set(page.values()) == {"right"}, "what TensorFlow wrote goes everywhere"
    assert {outcome for _, _, outcome, _ in seen} == {"right", "refused"}
    for kind, name, expected, found in seen:
        assert found.partition(": ")[0] == expected, (
            f"{kind} to {name}: {found}; python -m tests.conformance.conversions"
        )
