"""What an operator may choose of the log."""

from typing import Literal

LogFormat = Literal["text", "json"]
LoggedCalls = Literal["none", "failed", "all"]
