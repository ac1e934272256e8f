"""Where a run starts: decided by what was found; nothing is lost or begun anew in silence."""

import pytest

from mimjax.errors import ConfigError
from mimjax.run.restore import choose
from mimjax.storage.verdicts import Outcome

GOOD, OLD = Outcome(20), Outcome(10)
BAD, BAD_TOO = Outcome(30, "damaged", "cut short"), Outcome(20, "damaged", "cut short")
UNFIT = Outcome(30, "unfit", "it holds no encoder/x")
NEWER = Outcome(30, "newer", "its config_version is 9")
MEMORY = Outcome(30, "unreadable", "MemoryError")
SPEAKS = "metrics.jsonl speaks of step 30"


@pytest.mark.parametrize(
    ("outcomes", "settings", "kind", "aside", "anew"),
    [
        ([], {}, "scratch", 0, False),
        ([], {"init_from": "a.pth"}, "init_from", 0, False),
        ([], {"resume": "other"}, "resume", 0, False),
        ([], {"resume": "other", "init_from": "a.pth"}, "resume", 0, False),
        ([GOOD], {}, "continue", 0, False),
        ([GOOD], {"init_from": "a.pth", "resume": "other"}, "continue", 0, False),
        ([GOOD], {"began": SPEAKS}, "continue", 0, False),
        ([BAD, GOOD], {}, "continue", 1, False),
        ([BAD, BAD_TOO, OLD], {}, "continue", 2, False),
        # asked for, and only where nothing can be continued
        ([GOOD], {"restart": True}, "continue", 0, False),
        ([BAD, GOOD], {"restart": True}, "continue", 1, False),
        ([], {"restart": True}, "scratch", 0, False),
        ([], {"restart": True, "began": SPEAKS}, "scratch", 0, True),
        ([BAD, BAD_TOO], {"restart": True}, "scratch", 2, True),
        ([BAD], {"restart": True, "init_from": "a.pth"}, "init_from", 1, True),
    ],
)
def test_starts(outcomes, settings, kind, aside, anew):
    start = choose("runs/a", outcomes, **settings)
    assert (start.kind, len(start.damaged), start.anew) == (kind, aside, anew)


@pytest.mark.parametrize(
    ("outcomes", "settings", "words"),
    [
        ([BAD], {}, r"30 cannot be read: it is damaged \(cut short\).*restart=True"),
        ([BAD, BAD_TOO], {}, r"2 are damaged in all"),
        ([BAD], {"init_from": "a.pth"}, r"restart=True"),
        ([BAD], {"resume": "other"}, r"restart=True"),
        ([], {"began": SPEAKS}, r"holds no checkpoint, but metrics.jsonl speaks of step 30"),
        ([], {"began": SPEAKS, "init_from": "a.pth"}, r"holds no checkpoint, but"),
        ([UNFIT], {}, r"30 does not fit this run \(it holds no encoder/x\).*another --workdir"),
        ([NEWER], {}, r"30 was written by a newer mimjax \(its config_version is 9\)"),
        ([MEMORY], {}, r"not proven to be damaged \(MemoryError\).*the same command again"),
        # what is not proven to be damaged is never passed over, whatever is asked for
        ([BAD, MEMORY._replace(step=20)], {}, r"checkpoint 20 cannot be read, and is not proven"),
        ([UNFIT], {"restart": True}, r"does not fit"),
        ([MEMORY], {"restart": True}, r"not proven"),
    ],
)
def test_refusals(outcomes, settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        choose("runs/a", outcomes, **settings)
    assert "nothing was changed; allowed: " in str(error.value)
    assert "\n" not in str(error.value)
