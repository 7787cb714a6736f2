"""General rows mixed into the training rows, against forgetting."""

import pytest

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import to_messages
from gemma_colab.training.replay import general_rows, mix_in


def test_general_rows_are_a_share_of_all(workspace):
    own = [to_messages({"instruction": str(n), "output": "a"}) for n in range(40)]
    general = general_rows(workspace)
    mixed = mix_in(own, general, 0.2)
    assert mixed[:40] == own
    assert len(mixed) == 50
    assert all(row in general for row in mixed[40:])
    assert mix_in(own, general, 0.2) == mixed
    assert mix_in(own, general, 0.0) == own
    with pytest.raises(
        SettingsError, match=r"replay=0\.5 needs 40 general rows for 40 of yours, and there are 3; set it to 0\.06"
    ):
        mix_in(own, general[:3], 0.5)
    workspace.write_jsonl("rows/replay.jsonl", own[:2])
    assert general_rows(workspace) == [row | {"line": None} for row in own[:2]]  # no line of your own file
