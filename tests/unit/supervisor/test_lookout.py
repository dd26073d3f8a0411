"""What is seen to once a second, with a run directory and posts that are none."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from supervisor.lookout import Lookout


class Directory:
    """A run directory that somebody has taken away; ``error`` is why it cannot be made again."""

    path = Path("/run/gone")
    control_path = Path("/run/gone/control.sock")

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.tidied = 0

    def restore(self) -> bool:
        if self.error is not None:
            raise self.error
        return True

    def tidy(self, _living) -> None:
        self.tidied += 1


@pytest.fixture
def directory():
    return Directory()


@pytest.fixture
def lookout(directory):
    opened = []

    async def open_at(path: Path) -> None:
        opened.append(path)

    control = SimpleNamespace(open=open_at, opened=opened)
    post = SimpleNamespace(is_ready=True, is_reachable=False, model_id="en", everybody=list)
    asked = []
    renewals = SimpleNamespace(is_asked=lambda _post: False, ask=lambda post, _why: asked.append(post), asked=asked)
    notifier = SimpleNamespace(alive=lambda: None)
    return Lookout(directory, control, notifier, renewals, lambda: ([post], []))


async def test_a_run_directory_that_cannot_be_made_again_is_told_of_once_and_models_that_serve_are_left_alone(
    lookout, directory, caplog
):
    directory.error = FileNotFoundError(2, "No such file or directory", "/run/gone")
    for _ in range(3):
        await lookout._look()
    directory.error = PermissionError(13, "Permission denied", "/run/gone")
    await lookout._look()
    told = [(record.message, record.values["error"]) for record in caplog.records]
    assert [message for message, _ in told] == ["run_directory_lost"] * 2
    assert "No such file" in str(told[0][1])
    assert "Permission denied" in str(told[1][1])
    assert lookout._renewals.asked == [], "no other process could be reached either"
    directory.error = None
    await lookout._look()
    assert caplog.records[-1].message == "run_directory_restored"
    assert lookout._control.opened == [directory.control_path]
    assert len(lookout._renewals.asked) == 1
