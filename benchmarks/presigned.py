"""LivePerson with tokens that cost nothing to make."""

from collections.abc import Mapping

from sandbox.liveperson import LivePerson

_SIGNATURE = "A" * 342
"""No check is made of it here: signing is not measured."""


class Presigned(LivePerson):
    def _signed(self, header: Mapping[str, object], claims: Mapping[str, object]) -> str:
        head = super()._signed({**header, "alg": "none"}, claims).split(".")[1]
        return f"eyJraWQiOiJhcHBqd3QtMTMtMDUtMTciLCJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.{head}.{_SIGNATURE}"
