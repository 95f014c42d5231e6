import pytest
import traces

from joulesweep.nets import products


@pytest.fixture(autouse=True)
def traces_are_followed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are traced in tests of their own, `tests/unit/nets`."""
    monkeypatch.setattr(products, "followed", traces.followed_once)
