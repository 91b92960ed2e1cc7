"""`Parts`: groups by what they want beside DIDs, and the steps in which events are judged for them. Pure.

    content filter        ByContent       the first of these that a group has decides in which part it is
    sample                BySample
    kinds                 ByKind
    collections           ByCollection
    none of these         `everything`, which no event is tested for

`Groups` has one for the groups of a lane without DIDs, and one for each list of DIDs: for the groups that use
the list. Each part judges all of a filter but its DIDs; `ByContent` judges these, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.index_parts import ByCollection, ByContent, ByKind, BySample, Part, Picked
from jetstream.delivery.render_cache import fitting
from jetstream.delivery.subscriber import Group
from jetstream.model.batch import Batch
from jetstream.model.sample import SAMPLE_WHOLE
from jetstream.steps import Steps

# Records that are parsed in one step, and their bytes: 0.5 ms of ordinary posts, and 3 ms of the worst.
_PARSED_EVENTS: Final = 100
_PARSED_BYTES: Final = 16 << 10
# The same where what is judged is counted: the cost of a record, and bytes of it, in groups that are judged.
_PARSING: Final = 80
_PARSED_PER_GROUP: Final = 2


def parsing(batch: Batch, index: int) -> int:
    """Return what it costs to parse a record, in groups that are judged (the unit of `judged_per_step`)."""
    return _PARSING + len(batch.bodies[index]) // _PARSED_PER_GROUP


def parsed_in_one_step(batch: Batch, indices: Sequence[int]) -> Sequence[int]:
    """Return the first of `indices`, as many as may be parsed in one step, but at least one."""
    some = indices[:_PARSED_EVENTS]
    return some[: fitting([batch.bodies[i] for i in some], _PARSED_BYTES)]


class Parts:
    """Groups by what they want beside DIDs, each in the part of the index that finds it.

    Of what `judge` does between two turns of the event loop, events times groups is at most `per_step`.
    """

    __slots__ = ("_by_collection", "_by_content", "_by_kind", "_by_sample", "_per_step", "everything", "used")

    def __init__(self, remembered_max: int, features: FeatureCache, per_step: int) -> None:
        self._per_step = per_step
        # Groups that want every collection and kind; `judge` does not look at them:
        self.everything: dict[Group, None] = {}
        # Others, without kinds:
        self._by_collection = ByCollection(remembered_max)
        # Those with kinds:
        self._by_kind = ByKind(remembered_max)
        # Those with a sample, whatever else they have:
        self._by_sample = BySample(remembered_max)
        # Those with a content filter, whatever else they have. The last, since others may come and go while
        # it picks:
        self._by_content = ByContent(remembered_max, features, per_step)
        # Of the last four, those that have groups; `judge` has nothing to do where there are none.
        self.used: tuple[Part, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether there is any group."""
        return bool(self.everything or self.used)

    def add(self, group: Group) -> None:
        """Add a group that is not there."""
        part = self._part(group)
        if part is None:
            self.everything[group] = None
        else:
            part.add(group)
            self._note_used()

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""
        part = self._part(group)
        if part is None:
            del self.everything[group]
        else:
            part.remove(group)
            self._note_used()

    def judge(self, batch: Batch, indices: Sequence[int], picked: Picked) -> Steps[None]:
        """Add those of `indices` that each group wants, but for those that want everything, in steps.

        What is found is added to `picked`, in the order of `indices`, which rise. The caller adds the groups
        of `everything`, which want all of `indices`. Groups may come and go between two steps.
        """
        at, stop = 0, len(indices)
        while at < stop and self.used:
            some = self._fitting(batch, indices[at:])
            for part in self.used:
                steps = part.pick(batch, some, picked)
                if steps is not None:
                    yield from steps
            at += len(some)
            if at < stop:
                yield

    def _fitting(self, batch: Batch, indices: Sequence[int]) -> Sequence[int]:
        """Return the first of `indices`, as many as are judged in one step.

        The more groups, the fewer events. With content filters, the records and their bytes are bounded, too.
        """
        groups = sum([len(part.groups) for part in self.used])
        some = indices[: max(1, self._per_step // groups)]
        return parsed_in_one_step(batch, some) if self._by_content.groups else some

    def _note_used(self) -> None:
        """Find out which parts have groups, after one has come or gone."""
        parts: tuple[Part, ...] = (self._by_collection, self._by_kind, self._by_sample, self._by_content)
        self.used = tuple([part for part in parts if part.groups])

    def _part(self, group: Group) -> Part | None:
        """Return the part for a group; None for one that wants everything."""
        wanted = group.options.wanted
        if group.options.content is not None:
            return self._by_content
        if wanted.sample != SAMPLE_WHOLE:
            return self._by_sample
        if wanted.kinds:
            return self._by_kind
        return None if wanted.dids_only else self._by_collection
