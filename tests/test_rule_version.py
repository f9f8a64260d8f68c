"""Other numbers are another version of the rule: stored runs are known by it."""

import json

import pytest
import trajectories


@pytest.mark.parametrize("case", trajectories.CASES)
def test_the_rule_does_what_its_version_did(case: str) -> None:
    """Where this fails on purpose, raise a version and run tests/trajectories.py."""
    stored = json.loads(trajectories.STORED.read_text())[trajectories.key_of(case)][case]
    found = trajectories.trajectory(case)
    assert [step[0] for step in found] == [step[0] for step in stored]
    for now, then in zip(found, stored, strict=True):
        assert now == pytest.approx(then, rel=1e-9)
