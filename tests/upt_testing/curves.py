"""Curves that no reader takes, and what ours says of them."""

from typing import Any

_EPOCHS = {"epochs": [1, 2], "best_epoch": 2}
_WHOLE = _EPOCHS | {"holdout": [50.0, 75.5], "losses": [0.69, 0.4]}
_LONG = {"epochs": list(range(1, 62)), "losses": [0.5] * 61, "best_epoch": 1}
REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([0.69, 0.4], "curve: Input should be an object"),
    "no epochs": ({"losses": [0.69], "best_epoch": 1}, "curve.epochs.*Field required"),
    "no best epoch": ({"epochs": [1], "losses": [0.69]}, "curve.best_epoch.*Field required"),
    "an unknown key": (_WHOLE | {"seconds": 3.0}, "curve.seconds"),
    "61 epochs": (_LONG, "curve.epochs.*at most 60 items"),
    "more values than epochs": (
        _WHOLE | {"holdout": [50.0] * 61},
        "curve.holdout.*at most 60 items",
    ),
    "fewer values than epochs": (_WHOLE | {"losses": [0.69]}, "1 losses for 2 epochs"),
    "no epoch at all": (
        {"epochs": [], "losses": [], "best_epoch": 1},
        "curve.epochs.*at least 1 item",
    ),
    "nothing measured": (_EPOCHS, "a curve needs holdout, losses or both"),
    "epochs that go back": (_WHOLE | {"epochs": [2, 1]}, "epochs that ascend"),
    "an epoch twice": (_WHOLE | {"epochs": [2, 2]}, "epochs that ascend"),
    "epoch zero": (_WHOLE | {"epochs": [0, 2]}, "curve.epochs.0.*greater than 0"),
    "an epoch too large to count": (_WHOLE | {"epochs": [1, 2**31]}, "curve.epochs.1"),
    "half an epoch": (_WHOLE | {"epochs": [1.5, 2]}, "curve.epochs.0.*valid integer"),
    "a best epoch of none": (_WHOLE | {"best_epoch": 3}, "best_epoch 3 is none of the epochs"),
    "a value that is a text": (_WHOLE | {"losses": ["0.69", 0.4]}, "curve.losses.0"),
    "a value that is null": (_WHOLE | {"holdout": [None, 75.5]}, "curve.holdout.0"),
    "a value that is no number": (_WHOLE | {"holdout": [float("nan"), 75.5]}, "curve.holdout.0"),
}
