"""Nobody reads along: what an answer is streamed into where only its record counts."""

from __future__ import annotations

import sys


class Silent:
    """A sink that tells of failures alone."""

    def text(self, piece):
        pass

    def call(self, call):
        pass

    def failed(self, attempt, following):  # noqa: ARG002
        print(f"  {attempt.host}: {attempt.error}", file=sys.stderr)
