"""The process of a server: what it may open, and how much of that it gives to connections."""

from __future__ import annotations

import resource

import pytest

from lightship.serve.run import connections_within


@pytest.mark.parametrize(("files", "connections"), [(256, 128), (1024, 800), (4096, 3488), (100, 1)])
def test_connections_leave_files_for_the_server_itself(files, connections):
    """For models, the registry and the control plane, and for a burst that is yet to be sent away."""
    assert connections_within(files) == connections
    assert connections_within(files, more_workers=7) == max(1, connections - 42)


def test_a_server_opens_as_many_files_as_it_may(home, launch):
    """The soft limit is raised to the hard one; nothing is said while there is room for all connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"needs a hard limit of 4096 files, this process has {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        running = launch(home, "digits", "--auth", "none")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    assert "connections instead of" not in running.log.read_text()
