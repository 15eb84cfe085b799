"""A backend whose candidates misbehave, each in its own way; children import it by name."""

from redline.backends.base import Candidate
from redline.backends.null import NullBackend


class Planted(NullBackend):
    """The null backend with a plan: every behaviour once."""

    name = "null"
    plan = ("right",)

    def candidates(self, traits):
        return [
            Candidate("null", {"behaviour": behaviour, "seconds": 0.0, "error": 0.5}, rank=90)
            for behaviour in self.plan
        ]


class Crash(Planted):
    plan = ("crash", "build-crash")


class Hang(Planted):
    plan = ("hang", "build-hang")


class Memory(Planted):
    plan = ("memory",)


class NotANumber(Planted):
    plan = ("nan",)


class Wrong(Planted):
    plan = ("wrong",)


class Fails(Planted):
    plan = ("error", "build-error")


class Right(Planted):
    plan = ("right",)
