"""Row 4: what a push costs beside `sftp` of the same file over the same server."""

import shutil

import pytest

from tests.bench.transfer import push_figure
from tests.guarantees.figure import FULL_FORM, report


@pytest.mark.guarantee
@pytest.mark.skipif(not FULL_FORM, reason="a speed, measured by make guarantees in its full form and by make bench")
@pytest.mark.skipif(not shutil.which("sftp"), reason="no OpenSSH client on this machine")
def test_a_push_is_as_fast_as_sftp(tmp_path):
    figure = push_figure(tmp_path)
    report(4, f"{figure.reached} that of sftp", ok=bool(figure.ok))
