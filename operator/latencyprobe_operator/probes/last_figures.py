"""The last figures of a probe: those of its newest status, written or not.

They are written when the measurement ends. Until then, most rows of pods are beyond the budget of
bytes. So only the facts of those are kept, and their rows are built if they are needed.
"""

from __future__ import annotations

from latencyprobe_operator.probes.document import Document, KeptDocument
from latencyprobe_operator.probes.draft import Draft
from latencyprobe_operator.probes.facts import ProbeFacts
from latencyprobe_operator.probes.status import FIGURES, pod_rows


class LastFigures:
    """The newest figures of a probe, as parts of a status document."""

    def __init__(self) -> None:
        self._document = KeptDocument({})
        self._facts: ProbeFacts | None = None
        """The facts of the rows that the document lacks."""

    def keep(self, draft: Draft) -> None:
        """Keep the figures of this draft, in place of those before."""
        document, facts = draft.document, draft.left_out
        self._document = KeptDocument({key: document[key] for key in FIGURES if key in document})
        # The sums of all nodes are no part of the rows, and take much memory.
        self._facts = facts and ProbeFacts(
            spec=None, generation=0, pods=facts.pods, omitted_pods=facts.omitted_pods
        )

    def whole(self) -> Document:
        """Return the parts of a document."""
        document = self._document.whole()
        return {**document, **pod_rows(self._facts)} if self._facts else document
